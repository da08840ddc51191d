"""What CuPy has but the installation that gpuphot asks for cannot run.

The CUDA extras install the compiler and the runtime only, not the libraries of linear algebra,
random numbers and Fourier transforms, which are twenty times their size.
"""

from __future__ import annotations

LIBRARY_OF = {
    **dict.fromkeys(("matmul", "dot", "vdot", "inner", "einsum", "tensordot"), "cuBLAS"),
    "linalg": "cuBLAS and cuSOLVER",
    "random": "cuRAND",
    "fft": "cuFFT",
    "sparse": "cuSPARSE",
}
"""The library behind a name."""


def missing_library(what: str, library: str) -> str:
    """The sentence that refuses it."""
    return f"{what} needs {library}, which the CUDA extras of gpuphot do not install"
