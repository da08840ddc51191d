"""Which backend computes: NumPy on the CPU or CuPy on a GPU. Decided here and nowhere else."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import Any

from gpuphot._version import __version__

NAMES = ("numpy", "cupy")
ENVIRONMENT_VARIABLE = "GPUPHOT_BACKEND"


class BackendError(RuntimeError):
    """The backend that was asked for cannot compute here."""


@dataclass(frozen=True)
class Backend:
    """A backend and where it computes.

    Attributes
    ----------
    name : {"numpy", "cupy"}
    device : str
        The processor or GPU it runs on.
    primitives : module
        The package of its primitives, e.g. `gpuphot.numpy_backend`.
    """

    name: str
    device: str
    primitives: Any


def resolve_backend(backend: str | None = None, *arrays: object) -> Backend:
    """Choose the backend of a call.

    Parameters
    ----------
    backend : {None, "numpy", "cupy"}
        A name forces that backend. None chooses: "cupy" if one of `arrays` lives on a GPU, else
        what the environment variable ``GPUPHOT_BACKEND`` names, else "numpy", the only backend
        that this version has.
    *arrays
        Arrays of the call.

    Returns
    -------
    Backend

    Raises
    ------
    ValueError
        If `backend` or the environment variable is not the name of a backend.
    BackendError
        If the backend asked for, or the one that device arrays need, cannot compute.
    """
    name, reason = _requested(backend, arrays)
    if name == "cupy":
        raise BackendError(
            f"{reason}, but gpuphot {__version__} has no GPU kernels yet and computes on the CPU "
            f"only ({_gpu_state()}); use backend='numpy' with NumPy arrays"
        )
    from gpuphot import numpy_backend

    return Backend("numpy", platform.processor() or platform.machine(), numpy_backend)


def _requested(backend: str | None, arrays: tuple[object, ...]) -> tuple[str, str]:
    """The backend asked for, and a clause that says by what."""
    if backend is not None:
        return _known(backend, "backend"), f"backend={backend!r} was asked for"
    if any(hasattr(array, "__cuda_array_interface__") for array in arrays):
        return "cupy", "an input array lives on a GPU"
    from_environment = os.environ.get(ENVIRONMENT_VARIABLE)
    if from_environment:
        name = _known(from_environment, f"the environment variable {ENVIRONMENT_VARIABLE}")
        return name, f"{ENVIRONMENT_VARIABLE}={from_environment} is set"
    return "numpy", "it is the default"


def _known(name: object, source: str) -> str:
    if not isinstance(name, str) or name not in NAMES:
        raise ValueError(f"{source} must be one of {', '.join(NAMES)}, got {name!r}")
    return name


def _gpu_state() -> str:
    from gpuphot.cupy_backend.probe import find_gpu

    gpu = find_gpu()
    return f"the GPU {gpu.device} is usable" if gpu.problem is None else gpu.problem.rstrip(".")
