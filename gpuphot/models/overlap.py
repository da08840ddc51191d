"""Stars and the apertures that their light may fall into: where those are looked for."""

from __future__ import annotations

import math
from typing import Any

from .frame import Array, Positions
from .psf import PSFModel

MAX_NEAR = 10**8
"""Pixels from the origin beyond which a star has no neighbours."""

MAX_BOX = 10**9
"""Pixels on either side of the central one that no box exceeds: more than there are near stars."""


def reach(psf: PSFModel, r: float) -> float:
    """Distance in pixels up to which a star is looked for in an aperture of radius r."""
    return psf.width * psf.sampling / 2 + r


def box_half_size(r: float, subpix: int) -> int:
    """Pixels on either side of the central one whose sub-pixels may lie in a circle."""
    return math.floor(min(r + 1 - 0.5 / subpix, MAX_BOX))


def search_keys(
    pos: Positions, distance: float, neighbours: bool, xp: Any
) -> tuple[Array, Array, Array]:
    """Numbers of pixels in the order in which stars are summed, and ranges around every star.

    Pixels are numbered along bands that are at least as high as `distance`: what is nearer than
    that lies in one of three ranges. Stars without neighbours have bands of their own.

    Parameters
    ----------
    pos : Positions
    distance : float
    neighbours : bool
        If False, no star has any.
    xp : module
        NumPy or CuPy.

    Returns
    -------
    key : (N,) int64 array
    low, high : (3, N) int64 arrays
        First and last number of each range; they rise with the key.
    """
    side = max(1.001 * distance, 1.0)  # no rounding moves what is near to another range
    n_bands = 2 * math.ceil(MAX_NEAR / side) + 3
    n_columns = 2 * MAX_NEAR + 1
    near = pos.valid & (xp.maximum(xp.abs(pos.x), xp.abs(pos.y)) < MAX_NEAR)
    x, y = (xp.where(near, v, 0.0) for v in (pos.x, pos.y))
    band = (xp.floor(y / side) + n_bands // 2).astype(xp.int64)
    own = n_bands + 3 * xp.arange(len(pos), dtype=xp.int64)
    start = xp.where(near & neighbours, band, own) * n_columns

    column = xp.floor(x).astype(xp.int64) + MAX_NEAR
    n_aside = math.floor(min(side, n_columns)) + 1
    low, high = (
        xp.stack([start + step * n_columns + end for step in (-1, 0, 1)])
        for end in (
            xp.maximum(column - n_aside, 0),
            xp.minimum(column + n_aside, n_columns - 1),
        )
    )
    return start + column, low, high
