"""Kernels in CUDA C++: compiled for the CPU by `HostModule`, launched as CuPy launches them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from .array import SCALARS, ndarray, unwrap
from .device import (
    MAX_SHARED_MEMORY,
    CUDADriverError,
    counters,
    get_current_stream,
    machine,
)

DEFAULT_SHARED_MEMORY = 48 << 10
"""Bytes of dynamic shared memory that a kernel may have without asking."""

GRID_LIMITS = (2**31 - 1, 65535, 65535)
BLOCK_LIMITS = (1024, 1024, 64)
MAX_THREADS = 1024


class CompileException(Exception):  # noqa: N818
    """A kernel does not compile."""


class RawModule:
    """Kernels of one source. Compiled when the first of them is asked for, as in CuPy."""

    def __init__(
        self,
        code: str | None = None,
        *,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        name_expressions: Sequence[str] | None = None,
    ) -> None:
        if code is None:
            raise TypeError("the stand-in compiles `code`, and nothing else")
        if not isinstance(options, tuple):
            raise TypeError(
                "Argument 'options' has incorrect type "
                f"(expected tuple, got {type(options).__name__})"
            )
        if backend != "nvrtc":
            raise ValueError("gpuphot's CUDA extras install no compiler but NVRTC")
        self.code = code
        self.options = options
        self.backend = backend
        self.name_expressions = name_expressions
        self._modules: dict[str, Any] = {}

    def compile(self, log_stream: Any = None) -> None:
        self._built()

    def get_function(self, name: str) -> RawKernel:
        if name not in self._built().names:
            raise CUDADriverError(f"CUDA_ERROR_NOT_FOUND: named symbol not found ({name})")
        kernel = RawKernel(self.code, name, self.options)
        kernel._module = self
        return kernel

    def _built(self) -> Any:
        """The kernels for the CPU, in the variant that is asked for at the moment."""
        if machine.variant not in self._modules:
            self._modules[machine.variant] = self._build(machine.variant)
        return self._modules[machine.variant]

    def _build(self, variant: str) -> Any:
        from ..build import HostModule
        from ..compiler import CompilationError

        try:
            module = HostModule(self.code, self.options, variant)
        except CompilationError as error:
            raise CompileException(str(error)) from error
        unknown = set(self.name_expressions or ()) - set(module.names)
        if unknown:
            raise CompileException(f'no extern "C" kernels: {", ".join(sorted(unknown))}')
        if variant == "race":
            _watched.add(module)
        return module


_watched: weakref.WeakSet[Any] = weakref.WeakSet()


def races() -> list[str]:
    """Races in all launches since the last call, if the machine's variant is "race"."""
    return [race for module in _watched for race in module.races()]


class RawKernel:
    """One kernel of a source."""

    def __init__(
        self, code: str, name: str, options: tuple[str, ...] = (), backend: str = "nvrtc"
    ) -> None:
        self._module = RawModule(code, options=options, backend=backend)
        self.code = code
        self.name = name
        self.options = options
        self._max_shared = DEFAULT_SHARED_MEMORY

    def compile(self, log_stream: Any = None) -> None:
        self._module._built()

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._max_shared

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        if size > MAX_SHARED_MEMORY:
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        self._max_shared = size

    # A CPU has no such things, but reports read them.

    @property
    def num_regs(self) -> int:
        return 0

    @property
    def local_size_bytes(self) -> int:
        return 0

    @property
    def shared_size_bytes(self) -> int:
        return 0

    @property
    def max_threads_per_block(self) -> int:
        return MAX_THREADS

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple, *, shared_mem: int = 0
    ) -> None:
        _check_size("grid", grid, GRID_LIMITS)
        _check_size("block", block, BLOCK_LIMITS)
        if np.prod(block) > MAX_THREADS or shared_mem > self._max_shared:
            raise CUDADriverError(
                f"CUDA_ERROR_INVALID_VALUE: invalid argument ({self.name} of {block} threads with "
                f"{shared_mem} bytes of shared memory)"
            )
        hosts = [_argument(self.name, i, value) for i, value in enumerate(args)]
        module = self._module._built()
        function = module.function(self.name)
        schedule = dict(machine.schedule)

        def run() -> None:
            module.schedule(**schedule)
            function(grid, block, hosts, shared_mem=shared_mem)

        counters.launches.append(self.name)
        get_current_stream()._do(run)


def _check_size(what: str, size: Any, limits: tuple[int, ...]) -> None:
    if not isinstance(size, tuple) or not 1 <= len(size) <= 3:
        raise TypeError(f"{what} must be a tuple of up to three integers, got {size!r}")
    for length, limit in zip(size, limits, strict=False):
        if not isinstance(length, (int, np.integer)):
            raise TypeError(f"{what} must be a tuple of integers, got {size!r}")
        if not 1 <= length <= limit:
            raise CUDADriverError(f"CUDA_ERROR_INVALID_VALUE: invalid argument ({what} {size})")


def _argument(kernel: str, position: int, value: Any) -> Any:
    """What a kernel gets: memory, a null pointer or a scalar."""
    if value is None or isinstance(value, SCALARS):
        return value
    if not isinstance(value, ndarray):
        raise TypeError(f"Unsupported type {type(value)} (argument {position} of {kernel})")
    if not value.flags.c_contiguous:
        raise ValueError(
            f"argument {position} of {kernel} is not contiguous: a kernel would read its memory "
            "as if it were"
        )
    return unwrap(value)
