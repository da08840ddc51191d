"""Medians and clipped means of annuli in SEP's way; twin of ``numpy_backend.sep_annulus``."""

from __future__ import annotations

import math
from typing import Any

import cupy
import numpy as np

from gpuphot.models.frame import Frame, Positions
from gpuphot.models.sep import MARGIN, AnnulusMeans

from .kernels.registry import KERNELS
from .launch import as_bytes, launch

_CORNER_SAMPLE = 0.5657
"""Distance of the outermost of 5 x 5 sub-pixels from the centre of their pixel."""


def sep_annulus_median(frame: Frame, pos: Positions, r_in: Any, r_out: Any) -> Any:
    """Weighted medians of annuli, the third result of ``sep_x.stats_circann``."""
    level = cupy.empty(len(pos))
    height, width = frame.shape
    _launch(
        "sep_annulus_median",
        _most_pixels(frame, r_in, r_out, MARGIN + _CORNER_SAMPLE),
        (
            frame.data, frame.bad, np.int32(height), np.int32(width), pos.x, pos.y, pos.frame,
            as_bytes(pos.valid), r_in, r_out,
        ),
        (level,),
    )  # fmt: skip
    return level


def sep_annulus_means(
    frame: Frame,
    pos: Positions,
    r_in: Any,
    r_out: Any,
    clip_sigma: float,
    clip_iters: int,
    gain: float | None,
) -> AnnulusMeans:
    """Clipped means of annuli, what the ``bkgann`` of SEP subtracts."""
    level, error, area = (cupy.empty(len(pos)) for _ in range(3))
    height, width = frame.shape
    _launch(
        "sep_annulus_means",
        _most_pixels(frame, r_in, r_out, MARGIN),
        (
            frame.data, frame.err, frame.bad, np.int32(height), np.int32(width), pos.x, pos.y,
            pos.frame, as_bytes(pos.valid), r_in, r_out,
        ),
        (np.float64(clip_sigma), np.int32(clip_iters), np.float64(gain or 0), level, error, area),
    )  # fmt: skip
    return AnnulusMeans(level, error, area)


def _most_pixels(frame: Frame, r_in: Any, r_out: Any, margin: float) -> Any:
    """More pixels than each annulus can hold, whose squares lie up to a margin outside of it."""
    outer, inner = r_out + margin, cupy.maximum(r_in - margin, 0.0)
    area = cupy.minimum(math.pi * (outer - inner) * (outer + inner), math.prod(frame.shape))
    return cupy.where(area > 0, area, 0.0)  # not NaN


def _launch(name: str, most: Any, before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
    """Launch a kernel for annuli that are sorted in shared memory and, for others, its twin."""
    needed = float(most.max()) if most.size else 0.0
    limit = KERNELS[name].max_shared // 8
    capacity = 1
    while capacity < min(needed, limit):
        capacity *= 2
    arguments = (*before, most, np.int32(capacity), *after)
    launch(name, most.size, arguments, 8 * capacity)
    if needed > capacity:
        launch(f"{name}_streaming", most.size, arguments)
