"""Optimal sums of single sources; twin of ``numpy_backend.optimal``."""

from __future__ import annotations

import math
from typing import Any

import cupy
import numpy as np

from gpuphot.models.frame import Frame, OptimalSums, Positions
from gpuphot.models.psf import PSFModel, gaussian_size

from .launch import as_bytes, blocks, launch, workspace_items
from .stamps import psf_stamps

_WARPS = 4


def optimal_sums(
    frame: Frame, pos: Positions, psf: PSFModel, r: float, bg: Any, fwhm: Any | None = None
) -> OptimalSums:
    """Fit the scale of each source's PSF stamp to its pixels, all of which weigh the same."""
    n = len(pos)
    flux, fluxerr, chi2, norm = (cupy.empty(n) for _ in range(4))
    npix = cupy.empty(n, cupy.int64)
    height, width = frame.shape
    half_rows, half_columns = (size // 2 for size in psf.stamp_shape)
    if fwhm is not None:
        half_rows = half_columns = (min(frame.shape) - 1) // 2
    half_size = math.floor(min(r, max(half_rows, half_columns)))
    core = [2 * min(half, half_size) + 1 for half in (half_rows, half_columns)]
    half = npix if fwhm is None else (gaussian_size(fwhm) // 2)
    half = half.astype(cupy.int32)
    step = workspace_items(8 * math.prod(core))
    for begin in range(0, n, step):
        end = min(begin + step, n)
        part = slice(begin, end)
        widths = None if fwhm is None else fwhm[part]
        launch(
            "optimal_sums",
            blocks(end - begin, _WARPS),
            (
                frame.data, frame.err, frame.bad, np.int32(height), np.int32(width), pos.x, pos.y,
                pos.frame, as_bytes(pos.valid), bg, np.int32(fwhm is not None), half,
                np.int32(half_rows), np.int32(half_columns),
                psf_stamps(psf, pos.x[part], pos.y[part], half_size, widths),
                np.int32(core[0]), np.int32(core[1]), np.float64(r), np.int32(begin),
                np.int32(end), flux, fluxerr, npix, chi2, norm,
            ),
        )  # fmt: skip
    return OptimalSums(flux, fluxerr, npix, chi2, norm, cupy.zeros(n, cupy.bool_))
