"""Which backend computes: NumPy on the CPU or CuPy on a GPU. Decided here and nowhere else."""

from __future__ import annotations

import importlib
import os
import platform
from dataclasses import dataclass
from typing import Any

from gpuphot.cupy_backend.probe import find_gpu

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
        Its primitives, e.g. `gpuphot.numpy_backend.primitives`.
    """

    name: str
    device: str
    primitives: Any

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process resolves the name itself: modules cannot be pickled."""
        return resolve_backend, (self.name,)


def resolve_backend(backend: str | None = None, *arrays: object) -> Backend:
    """Choose the backend of a call.

    Parameters
    ----------
    backend : {None, "numpy", "cupy"}
        A name forces that backend. None chooses: "cupy" if one of `arrays` lives on a GPU, else
        what the environment variable ``GPUPHOT_BACKEND`` names, else "cupy" if there is a usable
        GPU, else "numpy".
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
    if name == "numpy":
        if reason and _on_device(arrays):
            raise TypeError(f"{reason}, but an input array lives on a GPU: hand over NumPy arrays")
        return _numpy_backend()
    gpu = find_gpu()
    if gpu.device is not None:
        return Backend(
            "cupy", gpu.device, importlib.import_module("gpuphot.cupy_backend.primitives")
        )
    if reason:
        raise BackendError(f"{reason}, but no GPU is usable: {gpu.problem}")
    return _numpy_backend()


def _numpy_backend() -> Backend:
    device = platform.processor() or platform.machine()
    return Backend("numpy", device, importlib.import_module("gpuphot.numpy_backend.primitives"))


def _requested(backend: str | None, arrays: tuple[object, ...]) -> tuple[str, str]:
    """The backend to try, and a clause that says what asked for it; empty if nothing did."""
    if backend is not None:
        return _known(backend, "backend"), f"backend={backend!r} was asked for"
    if _on_device(arrays):
        return "cupy", "an input array lives on a GPU"
    from_environment = os.environ.get(ENVIRONMENT_VARIABLE)
    if from_environment:
        name = _known(from_environment, f"the environment variable {ENVIRONMENT_VARIABLE}")
        return name, f"{ENVIRONMENT_VARIABLE}={from_environment} is set"
    return "cupy", ""


def _on_device(arrays: tuple[object, ...]) -> bool:
    return any(hasattr(array, "__cuda_array_interface__") for array in arrays)


def _known(name: object, source: str) -> str:
    if not isinstance(name, str) or name not in NAMES:
        raise ValueError(f"{source} must be one of {', '.join(NAMES)}, got {name!r}")
    return name
