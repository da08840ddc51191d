"""Whether this machine has a usable GPU. Usable means: a small kernel compiled, ran and returned.

CuPy imports without a driver, and finds devices without a compiler, so nothing less is proof.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any

_INSTALL = 'pip install "gpuphot-survey[cuda13]" (CUDA 13 drivers) or "gpuphot-survey[cuda12]"'

_KERNEL = """
extern "C" __global__ void probe(int* out) { out[threadIdx.x] = 40 + threadIdx.x; }
"""


@dataclass(frozen=True)
class Gpu:
    """What the probe found.

    Attributes
    ----------
    device : str or None
        Name of the device; None if no GPU is usable.
    problem : str or None
        One sentence that says why not; None if a GPU is usable.
    """

    device: str | None
    problem: str | None


@functools.cache
def find_gpu() -> Gpu:
    """Look for a usable GPU, once per process.

    Returns
    -------
    Gpu
    """
    try:
        cupy = importlib.import_module("cupy")
    except ImportError:
        return Gpu(None, f"CuPy is not installed: {_INSTALL}.")
    except Exception as error:
        return Gpu(None, f"CuPy is installed but cannot be imported ({_first_line(error)}).")
    try:
        n_devices = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        return Gpu(None, f"No usable NVIDIA driver: {_first_line(error)}.")
    if n_devices == 0:
        return Gpu(None, "The NVIDIA driver finds no GPU (is CUDA_VISIBLE_DEVICES empty?).")
    try:
        answer = _run_kernel(cupy)
    except Exception as error:
        return Gpu(
            None,
            "A GPU is there, but CuPy cannot compile for it and run a kernel "
            f"({_first_line(error)}); NVRTC may be missing: {_INSTALL}.",
        )
    if answer != [40, 41]:
        return Gpu(None, f"A test kernel returned {answer} instead of [40, 41].")
    return Gpu(_device_name(cupy), None)


def _run_kernel(cupy: Any) -> list[int]:
    out = cupy.zeros(2, dtype=cupy.int32)
    cupy.RawKernel(_KERNEL, "probe")((1,), (2,), (out,))
    return cupy.asnumpy(out).tolist()


def _device_name(cupy: Any) -> str:
    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())["name"]
    return name.decode() if isinstance(name, bytes) else str(name)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
