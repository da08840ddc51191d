"""``gpuphot info``: versions, backends and the state of the GPU."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import TYPE_CHECKING

from . import __version__
from .backend import ENVIRONMENT_VARIABLE, BackendError, resolve_backend
from .cupy_backend import probe

if TYPE_CHECKING:
    from .cupy_backend.compile import CompiledKernel


def print_info() -> None:
    """Print what is installed, what can compute and what would."""
    gpu = _probe_gpu()
    on_gpu = f"usable, on {gpu.device}" if gpu.problem is None else f"not usable. {gpu.problem}"
    rows = [
        ("gpuphot", __version__),
        ("Python", platform.python_version()),
        ("platform", platform.platform()),
        ("numpy", _version("numpy")),
        ("scipy", _version("scipy")),
        ("astropy", _version("astropy")),
        ("sep-x", _version("sep-x")),
        ("cupy", _version("cupy", "cupy-cuda13x", "cupy-cuda12x")),
        ("", ""),
        ("numpy backend", f"usable, on {resolve_backend('numpy').device}"),
        ("cupy backend", on_gpu),
        (ENVIRONMENT_VARIABLE, os.environ.get(ENVIRONMENT_VARIABLE) or "not set"),
        ("in use", _backend_in_use()),
    ]
    for name, value in rows:
        print(f"{name:<16} {value}".rstrip())


def _version(*distributions: str) -> str:
    """Version of the first of some distributions that is installed."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "not installed"


def _probe_gpu() -> probe.Gpu:
    try:
        return probe.find_gpu()
    except Exception as error:  # A broken driver may raise anything, and info is to say so
        return probe.Gpu(None, f"It cannot be probed: {one_line(error)}")


def _backend_in_use() -> str:
    try:
        return resolve_backend().name
    except (BackendError, ValueError) as error:
        return f"none: {one_line(error)}"


def print_kernels() -> None:
    """Compile all kernels for the GPU and print what they use.

    Raises
    ------
    BackendError
        If there is no usable GPU, or if a kernel does not compile or uses local memory.
    """
    gpu = _probe_gpu()
    if gpu.problem is not None:
        raise BackendError(gpu.problem)
    from .cupy_backend.compile import compile_kernels  # Needs CuPy, which may be missing

    try:
        kernels = compile_kernels()
    except Exception as error:  # Of CuPy's many types
        raise BackendError(f"the kernels do not compile: {one_line(error)}") from error
    print(f"{len(kernels)} kernels for {gpu.device}")
    _print_usage(kernels)
    slow = [kernel.name for kernel in kernels if kernel.local_bytes]
    if slow:
        raise BackendError(
            f"these kernels use local memory, which makes them slow: {', '.join(slow)}. "
            "Please report this"
        )


def _print_usage(kernels: list[CompiledKernel]) -> None:
    print(f"\n{'kernel':<26}{'registers':>10}{'local':>8}{'shared':>8}  memory in bytes")
    for kernel in kernels:
        print(
            f"{kernel.name:<26}{kernel.registers:>10}{kernel.local_bytes:>8}"
            f"{kernel.shared_bytes:>8}"
        )
    print(f"\n{'file':<26}{'seconds':>10}  next to none if CuPy had it in its cache")
    for file, seconds in {kernel.file: kernel.seconds for kernel in kernels}.items():
        print(f"{file:<26}{seconds:>10.3f}")


def one_line(error: Exception) -> str:
    """The message of an error, or its type if it has none, without line breaks."""
    return " ".join((str(error) or type(error).__name__).split())
