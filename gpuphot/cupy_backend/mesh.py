"""The global background; twin of ``numpy_backend.mesh``."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from gpuphot.models.background import MIN_GOOD_FRACTION, SplineSurface

from .kernels.registry import KERNELS
from .launch import blocks, launch, to_device

_THREADS = 256


def mesh_statistics(data: Any, bad: Any, cell: tuple[int, int]) -> tuple[Any, Any]:
    """Sigma-clipped level and standard deviation of the background in every mesh cell."""
    height, width = data.shape
    shape = blocks(height, cell[0]), blocks(width, cell[1])
    level, rms = cupy.empty(shape), cupy.empty(shape)
    name, shared = sorted_or_streaming("mesh_statistics", cell[0] * cell[1])
    launch(
        name,
        level.size,
        (
            data, bad, np.int32(height), np.int32(width), np.int32(cell[0]), np.int32(cell[1]),
            np.float64(MIN_GOOD_FRACTION * cell[0] * cell[1]), level, rms,
        ),
        shared,
    )  # fmt: skip
    return level, rms


def sorted_or_streaming(name: str, n_pixels: int) -> tuple[str, int]:
    """The kernel for samples of up to so many pixels, and its shared memory in bytes."""
    shared = 8 << max(0, n_pixels - 1).bit_length()
    return (name, shared) if shared <= KERNELS[name].max_shared else (f"{name}_streaming", 0)


def evaluate_surface(surface: SplineSurface, shape: tuple[int, int]) -> Any:
    """A spline surface on every pixel of an image."""
    values = cupy.empty(shape)
    nodes, n_columns, low, high = surface_arguments(surface)
    cell = surface.cell
    launch(
        "evaluate_surface",
        blocks(values.size, _THREADS),
        (
            nodes, n_columns, np.int32(cell[0]), np.int32(cell[1]), low, high,
            np.int32(shape[0]), np.int32(shape[1]), values,
        ),
    )  # fmt: skip
    return values


def surface_arguments(surface: SplineSurface | None) -> tuple[Any, ...]:
    """Coefficients, their row length and the range of a surface, as kernels take them."""
    if surface is None:
        return cupy.empty(1), np.int32(0), np.float64(0), np.float64(0)
    coefficients = surface.coefficients
    return (
        to_device(np.ascontiguousarray(coefficients)),
        np.int32(coefficients.shape[1]),
        np.float64(surface.low),
        np.float64(surface.high),
    )
