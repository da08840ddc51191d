"""A stand-in for CuPy, for tests of the GPU backend on machines without a GPU.

``install()`` puts modules `cupy` and `cupyx` in the way of imports. Arrays are NumPy's inside,
and kernels really run: `HostModule` compiles their CUDA source for the CPU. What it cannot show
is anything about a GPU; nothing that was obtained with it is a GPU result.

It is worth something only as long as it is no more lenient than CuPy, so

- nothing mixes: host arrays are refused wherever a device array is needed, device arrays never
  become host arrays by themselves, and reductions stay on the device;
- only names on a list exist, and a test holds all of them against the real CuPy;
- what needs cuBLAS, cuSOLVER, cuSPARSE, cuRAND or cuFFT is refused, see `missing`;
- fresh memory holds NaN (all bits set);
- a stream other than the null stream does nothing until it is waited for;
- kernels refuse arrays that are not contiguous or live on another device, and empty grids;
- `counters` knows every launch, copy and synchronisation, also those that CuPy makes silently.

It is stricter than CuPy where that is cheap: indices out of range raise, different values for
the same element are refused, and host arrays are uploaded on request only.
"""

from .device import counters, machine, reset
from .kernels import races
from .package import MODULES, install, installed, is_installed, uninstall

__all__ = [
    "MODULES",
    "counters",
    "install",
    "installed",
    "is_installed",
    "machine",
    "races",
    "reset",
    "uninstall",
]
