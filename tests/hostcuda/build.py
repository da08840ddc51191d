"""Launch kernels on the CPU as CuPy would on a GPU.

``compiler.py`` makes the library; here its functions get arguments, limits and an order of threads.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpuphot.cupy_backend.kernels.registry import OPTIONS

from .compiler import VARIANTS, build, find_kernels

# Kernels that ran in this process, and how often.
executed: Counter[str] = Counter()

ORDERS = ("forward", "reverse", "random")

# A library has one set of fibers and of built-in variables.
_LOCK = threading.Lock()


class _Launch(ctypes.Structure):
    """``hostcuda::Launch``."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("order", ctypes.c_int),
    ]


class _Parameter(ctypes.Structure):
    """``hostcuda::Parameter``."""

    _fields_ = [
        ("type", ctypes.c_char_p),
        ("is_pointer", ctypes.c_bool),
        ("is_constant", ctypes.c_bool),
    ]


class _Report(ctypes.Structure):
    """``hostcuda::races::Report``."""

    _fields_ = [
        ("is_shared", ctypes.c_int),
        ("kinds", ctypes.c_int * 2),
        ("threads", ctypes.c_uint * 2),
        ("blocks", ctypes.c_uint64 * 2),
        ("offsets", ctypes.c_uint64 * 2),
    ]


class HostModule:
    """CUDA source, compiled for the CPU.

    Parameters
    ----------
    code : str
        Flattened source, as ``registry.source`` gives it.
    options : sequence of str
        NVRTC's options; those on contraction are the variant's affair.
    variant : {"plain", "sanitized", "race", "contracted"}
        README.md says what each is for.

    Attributes
    ----------
    names : tuple of str
        The kernels found.
    """

    def __init__(self, code: str, options: Sequence[str] = OPTIONS, variant: str = "plain") -> None:
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        if variant == "sanitized" and "libasan" not in os.environ.get("LD_PRELOAD", ""):
            raise RuntimeError("sanitized kernels run in a process with sanitizer_environment()")
        self.bounds = find_kernels(code)
        self.names = tuple(self.bounds)
        self.path = build(code, self.names, options, VARIANTS[variant])
        self.library = ctypes.CDLL(str(self.path))
        self.library.hostcuda_error.restype = ctypes.c_char_p
        self._order, self._seed = "forward", 0
        self._detects_races = variant == "race"
        self._races: list[str] = []

    def function(self, name: str) -> HostFunction:
        """A kernel, to be called like CuPy's."""
        if name not in self.names:
            raise KeyError(f"no kernel {name!r} among {', '.join(self.names)}")
        return HostFunction(self, name)

    def schedule(self, order: str = "forward", seed: int = 0) -> None:
        """Set the order in which threads and blocks take turns from now on."""
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
        self._order, self._seed = order, seed

    def races(self) -> list[str]:
        """Races found since the last call; empty if the launches were clean."""
        if not self._detects_races:
            raise RuntimeError('races are detected in variant="race" only')
        found, self._races = self._races, []
        return found

    def launch(self, name: str, launch: _Launch, arguments: Any) -> None:
        """Run a grid; what HostFunction calls once it has checked everything."""
        launch.order, launch.seed = ORDERS.index(self._order), self._seed
        run = getattr(self.library, f"hostcuda_launch_{name}")
        run.restype = ctypes.c_bool
        with _LOCK:
            if not run(ctypes.byref(launch), arguments):
                raise RuntimeError(f"{name}: {self.library.hostcuda_error().decode()}")
            if self._detects_races:
                self._races += [f"{name}: {race}" for race in self._collect_races()]
        executed[name] += 1

    def _collect_races(self) -> list[str]:
        count = ctypes.c_size_t()
        self.library.hostcuda_races.restype = ctypes.POINTER(_Report)
        reports = self.library.hostcuda_races(ctypes.byref(count))[: count.value]
        places = _source_places(self.path, [offset for r in reports for offset in r.offsets])
        return [_describe(r, places[2 * i], places[2 * i + 1]) for i, r in enumerate(reports)]


def _source_places(library: Path, offsets: Sequence[int]) -> list[str]:
    """File and line of places in a library's code."""
    if not offsets:
        return []
    # One back: the offsets are where the hook returns to, which may be on the next line.
    addresses = [hex(offset - 1) for offset in offsets]
    command = ["addr2line", "-s", "-e", str(library), *addresses]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.partition(" (")[0] for line in done.stdout.splitlines()]


def _describe(report: _Report, *places: str) -> str:
    kinds = ("read", "write", "atomic")
    first, second = (
        f"{kinds[report.kinds[i]]} by thread {report.threads[i]} of block {report.blocks[i]}"
        f" at {places[i]}"
        for i in (0, 1)
    )
    memory = "shared" if report.is_shared else "global"
    return f"race in {memory} memory: {first}, {second}"


class HostFunction:
    """A kernel on the CPU: ``function(grid, block, args, shared_mem=0)``.

    What a GPU would misread in silence, a wrong type or too few arguments, is a TypeError here;
    what it would refuse, a RuntimeError.
    """

    def __init__(self, module: HostModule, name: str) -> None:
        self.name = name
        self._module = module
        count = ctypes.c_int()
        describe = getattr(module.library, f"hostcuda_parameters_{name}")
        describe.restype = ctypes.POINTER(_Parameter)
        self._parameters = describe(ctypes.byref(count))[: count.value]

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        shared_mem: int = 0,
    ) -> None:
        launch = self._launch(grid, block, shared_mem)
        if len(args) != len(self._parameters):
            raise TypeError(f"{self.name} takes {len(self._parameters)} arguments, got {len(args)}")
        values = [
            _packed(f"argument {i} of {self.name}", argument, parameter)
            for i, (argument, parameter) in enumerate(zip(args, self._parameters, strict=True))
        ]
        # One address per parameter, as the driver takes them.
        addresses = [value.ctypes.data for value in values]
        self._module.launch(self.name, launch, (ctypes.c_void_p * len(values))(*addresses))

    def _launch(self, grid: tuple[int, ...], block: tuple[int, ...], shared_mem: int) -> _Launch:
        """The limits of a launch on every architecture."""
        n_threads = int(np.prod(block))
        if min(*block, 1) < 1 or n_threads > 1024 or len(block) > 3:
            raise RuntimeError(f"{self.name}: invalid block {block}: at most 1024 threads")
        bound = self._module.bounds[self.name]
        if n_threads > bound:
            raise RuntimeError(f"{self.name}: {n_threads} threads, __launch_bounds__ says {bound}")
        limits = (2**31 - 1, 65535, 65535)[: len(grid)]
        if len(grid) > 3 or not all(1 <= n <= limits[i] for i, n in enumerate(grid)):
            raise RuntimeError(f"{self.name}: invalid grid {grid}")
        if not 0 <= shared_mem <= 48 * 1024:
            raise RuntimeError(f"{self.name}: {shared_mem} bytes of shared memory, limit 48 KiB")
        return _Launch(_three(grid), _three(block), shared_mem)


def _three(size: tuple[int, ...]) -> tuple[int, ...]:
    return (*size, 1, 1)[:3]


_DTYPES = {
    "bool": "bool",
    "char": "int8",
    "signed char": "int8",
    "unsigned char": "uint8",
    "short": "int16",
    "unsigned short": "uint16",
    "int": "int32",
    "unsigned int": "uint32",
    "long": "int64",
    "unsigned long": "uint64",
    "long long": "int64",
    "unsigned long long": "uint64",
    "float": "float32",
    "double": "float64",
}


def _packed(what: str, argument: Any, parameter: _Parameter) -> np.ndarray:
    """An argument as an array whose bytes are the parameter's."""
    if not parameter.type:
        raise TypeError(f"{what}: no NumPy dtype for this parameter's type")
    dtype = np.dtype(_DTYPES[parameter.type.decode()])
    if not parameter.is_pointer:
        return _packed_scalar(what, argument, dtype)
    return np.array(_address(what, argument, dtype, parameter.is_constant), dtype=np.uint64)


def _address(what: str, argument: Any, dtype: np.dtype, is_constant: bool) -> int:
    if argument is None:
        return 0
    array = getattr(argument, "_host", argument)
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{what}: an array of {dtype} is wanted, got {type(argument).__name__}")
    if array.dtype != dtype or not array.dtype.isnative:
        raise TypeError(f"{what}: an array of {dtype} is wanted, got {array.dtype}")
    if not array.flags.c_contiguous:
        raise TypeError(f"{what}: the array is not contiguous")
    if not (is_constant or array.flags.writeable):
        raise TypeError(f"{what}: the kernel writes to a read-only array")
    return array.ctypes.data


def _packed_scalar(what: str, value: Any, dtype: np.dtype) -> np.ndarray:
    """A scalar; CuPy passes Python's int as 8 bytes, float as a double, NumPy's as they are."""
    given = np.dtype(type(value)) if isinstance(value, np.generic) else None
    fits = given == dtype
    if given is None:
        kinds = {int: "iu", float: "f"}.get(type(value), "")
        fits = dtype.kind in kinds and (dtype.kind != "f" or dtype.itemsize == 8)
    if not fits:
        raise TypeError(f"{what}: {dtype} is wanted, got {given or type(value).__name__}")
    if dtype.kind in "iu" and not np.iinfo(dtype).min <= int(value) <= np.iinfo(dtype).max:
        raise TypeError(f"{what}: {value} does not fit {dtype}")
    return np.array(value, dtype=dtype)
