"""Stamps of a point spread function; twin of ``numpy_backend.stamps``."""

from __future__ import annotations

import functools
import math
from typing import Any

import cupy
import numpy as np

from gpuphot.models.psf import FWHM_PER_SIGMA, PSFModel, spline_coefficients

from .kernels.registry import KERNELS
from .launch import launch, to_device


def psf_stamps(psf: PSFModel, x: Any, y: Any) -> Any:
    """Stamps of the PSF at positions, each of sum 1."""
    stamps = cupy.empty((len(x), *psf.stamp_shape))
    x, y = cupy.ascontiguousarray(x), cupy.ascontiguousarray(y)
    (_gaussian_stamps if psf.planes is None else _resampled_stamps)(psf, x, y, stamps)
    return stamps


def _gaussian_stamps(psf: PSFModel, x: Any, y: Any, stamps: Any) -> None:
    shared = 2 * psf.width * 8
    if shared > KERNELS["gaussian_stamps"].max_shared:
        raise ValueError(f"a Gaussian with a FWHM of {psf.fwhm} pixels is too wide for a GPU")
    width = np.float64(math.sqrt(2) * (psf.fwhm / FWHM_PER_SIGMA))
    launch("gaussian_stamps", len(x), (width, x, y, np.int32(psf.width), stamps), shared)


def _resampled_stamps(psf: PSFModel, x: Any, y: Any, stamps: Any) -> None:
    planes, light = _device_planes(psf, cupy.cuda.runtime.getDevice())
    tile, span, shared = _tiling(psf)
    launch(
        "psf_stamps",
        len(x),
        (
            planes, light, *(np.int32(length) for length in planes.shape), np.int32(psf.degree),
            *(np.float64(v) for v in (psf.x0, psf.y0, psf.sx, psf.sy, psf.sampling)),
            np.int32(psf.n_sub), x, y,
            *(np.int32(length) for length in (*psf.stamp_shape, *tile, *span)), stamps,
        ),
        shared,
    )  # fmt: skip


@functools.lru_cache(maxsize=16)
def _device_planes(psf: PSFModel, device: int) -> tuple[Any, Any]:
    """Spline coefficients of the planes, and the planes' sums, on a device."""
    assert psf.planes is not None
    planes = to_device(spline_coefficients(psf.planes))
    light = to_device(psf.planes.sum(axis=(1, 2)))
    # They are kept for calls on any stream, and must be there before those begin.
    cupy.cuda.get_current_stream().synchronize()
    return planes, light


@functools.lru_cache(maxsize=16)
def _tiling(psf: PSFModel) -> tuple[list[int], list[int], int]:
    """Tiles that a stamp is made in, the nodes that they need at most, and shared memory in bytes.

    The whole stamp is one tile if that fits; else the longer side is halved until it does.
    """
    assert psf.planes is not None
    n_planes, *lengths = psf.planes.shape
    taps = [min(psf.n_sub + 3, length + 3) for length in lengths]
    step = psf.n_sub if psf.n_sub > 1 else 1 / psf.sampling
    tile = list(psf.stamp_shape)
    while True:
        span = [
            min(math.ceil((n - 1) * step) + 1 + n_taps, length + 3)
            for n, n_taps, length in zip(tile, taps, lengths, strict=True)
        ]
        doubles = n_planes + tile[0] * (taps[0] + span[1]) + tile[1] * taps[1] + span[0] * span[1]
        shared = 8 * doubles + 4 * sum(tile)
        if shared <= KERNELS["psf_stamps"].max_shared:
            return tile, span, shared
        if max(tile) == 1:
            raise ValueError(f"a PSF sampled with {psf.sampling} pixels is too fine for a GPU")
        longer = tile.index(max(tile))
        tile[longer] = (tile[longer] + 1) // 2
