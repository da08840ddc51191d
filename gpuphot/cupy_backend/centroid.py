"""Centroids; twin of ``numpy_backend.centroid``."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuphot.models.frame import Frame, Positions

from .launch import as_bytes, blocks, launch

MAX_SHIFT = 0.01
"""A position has converged when a step moves it by less, in pixels."""

_WARPS = 4


def com_centroid(frame: Frame, pos: Positions, half_size: int, n_iter: int) -> tuple[Any, Any]:
    """Centre of mass in a square box, recentred on its own result."""
    x, y = pos.x.copy(), pos.y.copy()
    height, width = frame.shape
    if 2 * half_size + 1 > min(height, width):
        return x, y
    launch(
        "com_centroid",
        blocks(len(pos), _WARPS),
        (
            frame.data, frame.bad, np.int32(height), np.int32(width), pos.frame,
            as_bytes(pos.valid), np.int32(len(pos)), np.int32(half_size), np.int32(n_iter),
            np.float64(MAX_SHIFT), x, y,
        ),
    )  # fmt: skip
    return x, y
