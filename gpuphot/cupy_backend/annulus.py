"""The local background in an annulus; twin of ``numpy_backend.annulus``."""

from __future__ import annotations

import math
from typing import Any

import cupy
import numpy as np

from gpuphot.models.frame import Frame, Positions

from .launch import as_bytes, launch
from .mesh import sorted_or_streaming


def annulus_mode(frame: Frame, pos: Positions, r_in: float, r_out: float) -> Any:
    """Sigma-clipped mode of the pixels in an annulus, ``3 median - 2 mean``."""
    # Squares of pixels whose centres the annulus holds lie within half a diagonal of it.
    half_diagonal = 0.7072
    outer, inner = r_out + half_diagonal, max(0.0, r_in - half_diagonal)
    area = math.pi * (outer - inner) * (outer + inner)
    n_pixels = int(min(area, frame.shape[0] * frame.shape[1]))
    name, shared = sorted_or_streaming("annulus_mode", n_pixels)
    return _launch(name, frame, pos, r_in, r_out, shared)


def annulus_polynomial(frame: Frame, pos: Positions, r_in: float, r_out: float, order: int) -> Any:
    """Value at the source of a polynomial surface through the pixels of an annulus."""
    return _launch({1: "annulus_plane", 2: "annulus_quadratic"}[order], frame, pos, r_in, r_out)


def _launch(
    name: str, frame: Frame, pos: Positions, r_in: float, r_out: float, shared: int = 0
) -> Any:
    level = cupy.empty(len(pos))
    height, width = frame.shape
    launch(
        name,
        len(pos),
        (
            frame.data, frame.bad, np.int32(height), np.int32(width), pos.x, pos.y, pos.frame,
            as_bytes(pos.valid), np.float64(r_in), np.float64(r_out), level,
        ),
        shared,
    )  # fmt: skip
    return level
