"""Centroids: positions moved to where the light is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpuphot.models.frame import Bad, Frame, Positions

from .chunks import chunks, windows
from .sums import row_sums

MAX_SHIFT = 0.01
"""A position has converged when a step moves it by less, in pixels."""


def com_centroid(
    frame: Frame, pos: Positions, half_size: int, n_iter: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre of mass in a square box, recentred on its own result.

    Pixels that are masked, not finite or negative are left out. A source keeps its last
    position when its box would leave the image or holds no light.

    Parameters
    ----------
    frame : Frame
    pos : Positions
    half_size : int
        The box has ``2 * half_size + 1`` pixels a side.
    n_iter : int
        At most this many steps; a step shorter than 0.01 pixels is the last.

    Returns
    -------
    x, y : (N,) float64 arrays
        Equal to the input where nothing was moved.
    """
    x, y = pos.x.copy(), pos.y.copy()
    size = 2 * half_size + 1
    for part in chunks(len(pos), size * size):
        i = pos.order[part]
        i = i[pos.valid[i] & _inside(frame, x[i], y[i], half_size)]
        for _ in range(n_iter):
            i = i[_fits(frame, x[i], y[i], half_size)]
            if not len(i):
                break
            new_x, new_y = _step(frame, pos.frame[i], x[i], y[i], half_size)
            moved = np.isfinite(new_x)
            i, new_x, new_y = i[moved], new_x[moved], new_y[moved]
            shift = np.hypot(new_x - x[i], new_y - y[i])
            x[i], y[i] = new_x, new_y
            i = i[shift >= MAX_SHIFT]
    return x, y


def _inside(frame: Frame, x: NDArray, y: NDArray, half_size: int) -> NDArray[np.bool_]:
    """Whether a position keeps the half size from the edges, as centroiding asks at its start."""
    height, width = frame.shape
    near = (x < half_size) | (x >= width - half_size) | (y < half_size) | (y >= height - half_size)
    return ~near


def _fits(frame: Frame, x: NDArray, y: NDArray, half_size: int) -> NDArray[np.bool_]:
    """Whether the box around the nearest pixel lies in the image."""
    return _inside(frame, np.rint(x), np.rint(y), half_size)


def _step(
    frame: Frame, plane: NDArray, x: NDArray, y: NDArray, half_size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One centre of mass per source; NaN where there is no light."""
    size = 2 * half_size + 1
    column = np.rint(x).astype(np.intp) - half_size
    row = np.rint(y).astype(np.intp) - half_size
    light = windows(frame.data, plane, row, column, size, size)
    bad = windows(frame.bad, plane, row, column, size, size)
    light = np.where((light >= 0) & ((bad & Bad.UNUSABLE) == 0), light, 0)
    offset_y, offset_x = np.indices((size, size), dtype=np.float64).reshape(2, -1)
    total = row_sums(light)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = np.where(total < 1e-30, np.nan, total)
        return (
            column + row_sums(light, offset_x) / total,
            row + row_sums(light, offset_y) / total,
        )
