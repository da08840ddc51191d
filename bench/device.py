"""Instruments for benchmarks on a GPU: clocks, and what the card itself can do.

Needs CuPy, so import it only once a GPU is known to be usable.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cupy
import cupyx
import numpy as np
from numpy.typing import NDArray

from gpuphot.cupy_backend import launch
from gpuphot.cupy_backend.kernels.registry import OPTIONS

Call = Callable[[], Any]

_EMPTY = 'extern "C" __global__ void nothing() {}'

# Eight independent chains keep the pipeline busy. Compiled without contraction, as all kernels.
_ARITHMETIC = """
extern "C" __global__ void __launch_bounds__(256, 1) multiply_and_add(
    double factor, double term, int n_rounds, double* out) {
    double a = threadIdx.x, b = a + 1, c = a + 2, d = a + 3, e = a + 4, f = a + 5, g = a + 6,
           h = a + 7;
    for (int i = 0; i < n_rounds; ++i) {
        a = a * factor + term;
        b = b * factor + term;
        c = c * factor + term;
        d = d * factor + term;
        e = e * factor + term;
        f = f * factor + term;
        g = g * factor + term;
        h = h * factor + term;
    }
    out[blockIdx.x * blockDim.x + threadIdx.x] = a + b + c + d + e + f + g + h;
}
"""
_OPERATIONS_OF_A_ROUND = 16
_BLOCK = 256
_BLOCKS_PER_MULTIPROCESSOR = 8


def synchronize() -> None:
    """Wait until the device has done everything."""
    cupy.cuda.runtime.deviceSynchronize()


def device_seconds(call: Call) -> float:
    """Time that the stream spends on a call."""
    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return cupy.cuda.get_elapsed_time(start, stop) / 1000


def host_and_wall_seconds(call: Call) -> tuple[float, float]:
    """Time until a call returns, and until the device has done what it asked for."""
    synchronize()
    start = time.perf_counter()
    call()
    returned = time.perf_counter()
    synchronize()
    return returned - start, time.perf_counter() - start


# ------------------------------------------------------------------------------ kernels in a call


class KernelClock:
    """Time of each kernel of gpuphot, while it is in place."""

    def __init__(self) -> None:
        self._marks: list[tuple[str, Any, Any]] = []
        self._launch = launch.launch

    def launch(self, name: str, *arguments: Any, **options: Any) -> None:
        """Launch a kernel between two marks on its stream."""
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        self._launch(name, *arguments, **options)
        stop.record()
        self._marks.append((name, start, stop))

    def read(self) -> dict[str, float]:
        """Seconds of each kernel since the last reading."""
        synchronize()
        seconds: dict[str, float] = {}
        for name, start, stop in self._marks:
            elapsed = cupy.cuda.get_elapsed_time(start, stop) / 1000
            seconds[name] = seconds.get(name, 0) + elapsed
        self._marks.clear()
        return seconds


@contextmanager
def kernel_clock() -> Iterator[KernelClock]:
    """Put a clock in the place of the package's function that launches kernels."""
    clock = KernelClock()
    users = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("gpuphot.cupy_backend.")
        and getattr(module, "launch", None) is launch.launch
    ]
    original = launch.launch
    for module in users:
        setattr(module, "launch", clock.launch)  # noqa: B010
    try:
        yield clock
    finally:
        for module in users:
            setattr(module, "launch", original)  # noqa: B010


# ----------------------------------------------------------------------------------- the card


class Flush:
    """A copy that is larger than the caches, and long enough for the host to get ahead.

    After it nothing is in the cache, and kernels queue up behind it: the time between two marks
    is then the kernel's, not the host's.
    """

    def __init__(self, n_bytes: int) -> None:
        self._source = cupy.ones(n_bytes // 8)

    def __call__(self) -> None:
        self._source.copy()


def copy_bandwidth(n_bytes: int, repeats: int) -> list[float]:
    """Bytes per second of copies on the device, those read and those written."""
    source = cupy.ones(n_bytes // 8)
    source.copy()
    return [2 * source.nbytes / device_seconds(source.copy) for _ in range(repeats)]


def launch_seconds(n_launches: int, repeats: int) -> list[float]:
    """Time per launch of an empty kernel, many in a row."""
    kernel = cupy.RawKernel(_EMPTY, "nothing", OPTIONS)

    def launch_all() -> None:
        for _ in range(n_launches):
            kernel((1,), (32,), ())

    launch_all()
    return [device_seconds(launch_all) / n_launches for _ in range(repeats)]


def operation_rate(n_rounds: int, repeats: int) -> list[float]:
    """Double precision operations per second, none of them fused."""
    n_processors = cupy.cuda.Device().attributes["MultiProcessorCount"]
    n_blocks = _BLOCKS_PER_MULTIPROCESSOR * n_processors
    out = cupy.empty(n_blocks * _BLOCK)
    kernel = cupy.RawKernel(_ARITHMETIC, "multiply_and_add", OPTIONS)
    arguments = np.float64(0.999), np.float64(0.001), np.int32(n_rounds), out

    def compute() -> None:
        kernel((n_blocks,), (_BLOCK,), arguments)

    compute()
    n_operations = out.size * n_rounds * _OPERATIONS_OF_A_ROUND
    return [n_operations / device_seconds(compute) for _ in range(repeats)]


def upload_seconds(arrays: list[NDArray], repeats: int) -> list[float]:
    """Time to bring arrays to the device as the package does, from ordinary memory."""
    return [
        host_and_wall_seconds(lambda: [cupy.asarray(array) for array in arrays])[1]
        for _ in range(repeats + 1)
    ][1:]


def pinned_upload_seconds(arrays: list[NDArray], repeats: int) -> list[float]:
    """The same from page-locked memory: the least that an upload can take."""
    pinned = [cupyx.empty_pinned(array.shape, array.dtype) for array in arrays]
    targets = [cupy.empty(array.shape, array.dtype) for array in arrays]
    for copy, array in zip(pinned, arrays, strict=True):
        copy[...] = array

    def upload() -> None:
        for target, copy in zip(targets, pinned, strict=True):
            target.set(copy)

    return [host_and_wall_seconds(upload)[1] for _ in range(repeats + 1)][1:]


def download_seconds(n_values: int, n_arrays: int, repeats: int) -> list[float]:
    """Time to bring float64 arrays to the host as the package does."""
    arrays = [cupy.ones(n_values) for _ in range(n_arrays)]
    return [
        host_and_wall_seconds(lambda: [cupy.asnumpy(array) for array in arrays])[1]
        for _ in range(repeats + 1)
    ][1:]


def description() -> dict[str, Any]:
    """The card, its driver and the libraries."""
    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(runtime.getDevice())
    return {
        "name": properties["name"].decode(),
        "compute_capability": cupy.cuda.Device().compute_capability,
        "multiprocessors": properties["multiProcessorCount"],
        "memory_bytes": properties["totalGlobalMem"],
        "cuda_driver": runtime.driverGetVersion(),
        "cuda_runtime": runtime.runtimeGetVersion(),
        "cupy": cupy.__version__,
    }
