"""The modules that stand in for CuPy's, and how they get into the way of ``import cupy``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from . import device, functions, kernels
from .array import ndarray
from .missing import LIBRARY_OF, missing_library

VERSION = "14.2.0+standin"


class _Module(ModuleType):
    """A module that has what is on its list and says so when asked for anything else."""

    def __init__(self, name: str, **names: Any) -> None:
        super().__init__(name, "Stand-in for tests; see tests/hostcuda/standin.")
        self.__spec__ = ModuleSpec(name, None, is_package=True)
        self.__path__: list[str] = []
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(_refusal(f"{self.__name__}.{name}"))


def _refusal(name: str) -> str:
    last = name.rpartition(".")[2]
    if last in LIBRARY_OF:
        return missing_library(name, LIBRARY_OF[last])
    return (
        f"{name} is not on the stand-in's list. Check that the real CuPy has it, what it does "
        "there, and that it runs with the libraries that gpuphot's CUDA extras install; then add "
        "it to tests/hostcuda/standin"
    )


class _Finder(MetaPathFinder):
    """Refuses modules of CuPy that are not offered, also where the real ones are installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in ("cupy", "cupyx", "cupy_backends"):
            raise ImportError(_refusal(name), name=name)


def _make_modules() -> dict[str, _Module]:
    runtime = _Module(
        "cupy.cuda.runtime",
        **_named(
            device.CUDARuntimeError, device.getDeviceCount, device.getDevice, device.setDevice,
            device.getDeviceProperties, device.driverGetVersion, device.runtimeGetVersion,
            device.deviceSynchronize, device.memGetInfo,
        ),
    )  # fmt: skip
    driver = _Module("cupy.cuda.driver", **_named(device.CUDADriverError))
    memory = _Module("cupy.cuda.memory", **_named(device.OutOfMemoryError, device.MemoryPool))
    compiler = _Module("cupy.cuda.compiler", **_named(kernels.CompileException))
    cuda = _Module(
        "cupy.cuda",
        runtime=runtime, driver=driver, memory=memory, compiler=compiler,
        **_named(
            device.Device, device.Stream, device.Event, device.MemoryPool,
            device.get_current_stream,
        ),
    )  # fmt: skip
    cupy = _Module(
        "cupy",
        __version__=VERSION,
        cuda=cuda,
        **functions.FUNCTIONS,
        **functions.CONSTANTS,
        **_named(
            ndarray, kernels.RawModule, kernels.RawKernel,
            device.get_default_memory_pool,
        ),
    )  # fmt: skip
    # Empty, but there: whoever asks for their parts is told why they are missing.
    scipy = _Module("cupyx.scipy")
    cupyx = _Module("cupyx", scipy=scipy)
    modules = (cupy, cuda, runtime, driver, memory, compiler, cupyx, scipy)
    return {module.__name__: module for module in modules}


def _named(*things: Any) -> dict[str, Any]:
    return {thing.__name__: thing for thing in things}


MODULES = _make_modules()
_finder = _Finder()
_hidden: dict[str, ModuleType] = {}


def install() -> ModuleType:
    """Let ``import cupy`` give the stand-in, in its initial state.

    Returns
    -------
    module
        The stand-in for `cupy`, always the same.
    """
    if not is_installed():
        for name in [n for n in sys.modules if n.partition(".")[0] in ("cupy", "cupyx")]:
            _hidden[name] = sys.modules.pop(name)
        sys.modules.update(MODULES)
        sys.meta_path.insert(0, _finder)
    device.reset()
    return MODULES["cupy"]


def uninstall() -> None:
    """Let ``import cupy`` do again what it did before."""
    if is_installed():
        for name in MODULES:
            del sys.modules[name]
        sys.meta_path.remove(_finder)
        sys.modules.update(_hidden)
        _hidden.clear()
    device.reset()


def is_installed() -> bool:
    """Whether ``import cupy`` gives the stand-in."""
    return _finder in sys.meta_path


@contextmanager
def installed() -> Iterator[ModuleType]:
    """The stand-in for the duration of a block, unless it is installed anyway."""
    was_installed = is_installed()
    try:
        yield install()
    finally:
        if not was_installed:
            uninstall()
