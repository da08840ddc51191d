"""Stamps of a point spread function; twin of ``numpy_backend.stamps``."""

from __future__ import annotations

import functools
import math
from typing import Any

import cupy
import numpy as np

from gpuphot.models.psf import PSFModel, spline_coefficients

from .kernels.registry import KERNELS
from .launch import launch, to_device


def psf_stamps(
    psf: PSFModel, x: Any, y: Any, half_size: int | None = None, fwhm: Any | None = None
) -> Any:
    """Stamps of the PSF at positions, each of sum 1, or their central parts."""
    stamps = cupy.empty((len(x), *psf.core_shape(half_size, fwhm is not None)))
    x, y = cupy.ascontiguousarray(x), cupy.ascontiguousarray(y)
    if psf.planes is None:
        _gaussian_stamps(cupy.full(1, psf.fwhm) if fwhm is None else fwhm, x, y, stamps)
    else:
        _resampled_stamps(psf, x, y, stamps)
    return stamps


def _gaussian_stamps(fwhm: Any, x: Any, y: Any, stamps: Any) -> None:
    size = stamps.shape[1]
    shared = 2 * size * 8
    if shared > KERNELS["gaussian_stamps"].max_shared:
        raise ValueError(f"a Gaussian stamp of {size} x {size} pixels is too large for a GPU")
    launch(
        "gaussian_stamps",
        len(x),
        (cupy.ascontiguousarray(fwhm), np.int32(len(fwhm) > 1), x, y, np.int32(size), stamps),
        shared,
    )


def _resampled_stamps(psf: PSFModel, x: Any, y: Any, stamps: Any) -> None:
    model, shared = model_arguments(psf, "psf_stamps")
    shape = (np.int32(length) for length in stamps.shape[1:])
    launch("psf_stamps", len(x), (*model, x, y, *shape, stamps), shared)


def model_arguments(psf: PSFModel, kernel: str) -> tuple[tuple[Any, ...], int]:
    """What a kernel must know of a model made of planes, and the shared memory that it takes.

    Parameters
    ----------
    psf : PSFModel
    kernel : str
        Its name in the registry.

    Returns
    -------
    arguments : tuple
        The fields of the structures ``Model`` and ``Tiling`` of ``stamps.cuh``, in their order.
    shared : int
        In bytes.
    """
    planes, light, place = _device_planes(psf, cupy.cuda.runtime.getDevice())
    tile, span, shared = _tiling(psf, KERNELS[kernel].max_shared)
    grid_columns = 0 if psf.grid_x is None else len(psf.grid_x)
    integers = (*planes.shape, psf.degree, grid_columns, psf.n_sub)
    tiling = (*psf.stamp_shape, *tile, *span)
    arguments = (
        *(planes, light, place),
        *(np.int32(value) for value in integers),
        np.float64(psf.sampling),
        *(np.int32(length) for length in tiling),
    )
    return arguments, shared


@functools.lru_cache(maxsize=16)
def _device_planes(psf: PSFModel, device: int) -> tuple[Any, Any, Any]:
    """Spline coefficients of the planes, the planes' sums, and their place, on a device."""
    assert psf.planes is not None
    if psf.grid_x is None or psf.grid_y is None:
        place = np.array([psf.x0, psf.y0, psf.sx, psf.sy])
    else:
        place = np.concatenate([psf.grid_x, psf.grid_y])
    planes, light, place = (
        to_device(values)
        for values in (spline_coefficients(psf.planes), psf.planes.sum(axis=(1, 2)), place)
    )
    # They are kept for calls on any stream, and must be there before those begin.
    cupy.cuda.get_current_stream().synchronize()
    return planes, light, place


@functools.lru_cache(maxsize=16)
def _tiling(psf: PSFModel, max_shared: int) -> tuple[list[int], list[int], int]:
    """Tiles that a stamp is made in, the nodes that they need at most, and shared memory in bytes.

    The whole stamp is one tile if that fits; else the longer side is halved until it does.
    """
    assert psf.planes is not None
    n_planes, *lengths = psf.planes.shape
    n_terms = n_planes if psf.grid_x is None else 4
    taps = [min(psf.n_sub + 3, length + 3) for length in lengths]
    step = psf.n_sub if psf.n_sub > 1 else 1 / psf.sampling
    tile = list(psf.stamp_shape)
    while True:
        span = [
            min(math.ceil((n - 1) * step) + 1 + n_taps, length + 3)
            for n, n_taps, length in zip(tile, taps, lengths, strict=True)
        ]
        doubles = n_terms + tile[0] * (taps[0] + span[1]) + tile[1] * taps[1] + span[0] * span[1]
        shared = 8 * doubles + 4 * (n_terms + sum(tile))
        if shared <= max_shared:
            return tile, span, shared
        if max(tile) == 1:
            raise ValueError(f"a PSF sampled with {psf.sampling} pixels is too fine for a GPU")
        longer = tile.index(max(tile))
        tile[longer] = (tile[longer] + 1) // 2
