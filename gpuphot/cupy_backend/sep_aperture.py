"""Sums over circular apertures in SEP's way; twin of ``numpy_backend.sep_aperture``."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from gpuphot.models.frame import Frame, Positions
from gpuphot.models.sep import SUBPIX, SepSums

from .launch import as_bytes, blocks, launch

_WARPS = 4


def sep_aperture_sums(
    frame: Frame, pos: Positions, r: Any, gain: float | None, subpix: int = SUBPIX
) -> SepSums:
    """Sums over circular apertures of sub-pixels, ``sep_x.sum_circle``."""
    n = len(pos)
    flux, fluxerr, flag = cupy.empty(n), cupy.empty(n), cupy.empty(n, cupy.int64)
    height, width = frame.shape
    launch(
        "sep_aperture_sums",
        blocks(n, _WARPS),
        (
            frame.data, frame.err, frame.bad, np.int32(height), np.int32(width), pos.x, pos.y,
            pos.frame, as_bytes(pos.valid), r, np.int32(n), np.float64(gain or 0),
            np.int32(subpix), flux, fluxerr, flag,
        ),
    )  # fmt: skip
    return SepSums(flux, fluxerr, flag)
