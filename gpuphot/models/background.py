"""The background mesh: from the statistics of its cells to a smooth surface.

The mesh is tiny, so both backends share this NumPy code. The statistics of the cells come from a
backend (`mesh_statistics`), which also evaluates the surface on the pixels (`evaluate_surface`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import spline_filter
from scipy.spatial import cKDTree

MIN_GOOD_FRACTION = 1 - 90 / 100.0
"""A cell needs more good pixels than this fraction of a full cell. The reference computes it
from its percentile of 90 in floating point: exactly a tenth survives."""

N_FILL_NEIGHBOURS = 10
SPLINE_MARGIN = 2
"""Nodes that a cubic spline needs beyond the first and the last cell."""


@dataclass(frozen=True)
class SplineSurface:
    """A cubic B-spline over the cells of a mesh.

    Attributes
    ----------
    coefficients : (ny + 4, nx + 4) float64 array
        Spline coefficients, with two mirrored nodes on every side.
    cell : (int, int)
        Height and width of a cell in pixels.
    low, high : float
        Range that the surface is clipped to: the extremes of the mesh.
    """

    coefficients: NDArray[np.float64]
    cell: tuple[int, int]
    low: float
    high: float


def cell_shape(shape: tuple[int, int], bg_size: int) -> tuple[int, int]:
    """Height and width of the mesh cells of an image, at most those of the image itself."""
    return min(bg_size, shape[0]), min(bg_size, shape[1])


def spline_surface(cells: NDArray[np.float64], cell: tuple[int, int]) -> SplineSurface:
    """Smooth surface through the cells of a mesh, bad ones (NaN) filled.

    Bad cells take the inverse-distance mean of their nearest good ones, a 3 x 3 median filter
    removes outliers, and a cubic B-spline with half-sample symmetric edges goes through the rest:
    the steps of photutils' ``Background2D`` with its default interpolator.

    Parameters
    ----------
    cells : (ny, nx) float64 array
        One value per cell, NaN where the cell is bad; at least one must be good.
    cell : (int, int)
        Height and width of a cell in pixels.

    Returns
    -------
    SplineSurface
    """
    mesh = _median_filter(_fill_bad_cells(cells))
    coefficients = spline_filter(mesh, order=3, output=np.float64, mode="reflect")
    return SplineSurface(
        coefficients=np.pad(coefficients, SPLINE_MARGIN, mode="symmetric"),
        cell=cell,
        low=float(mesh.min()),
        high=float(mesh.max()),
    )


def _fill_bad_cells(cells: NDArray[np.float64]) -> NDArray[np.float64]:
    bad = np.isnan(cells)
    if not bad.any():
        return cells
    good = np.argwhere(~bad)
    # Which of several equally distant cells counts as a neighbour is decided by the tree: a
    # leaf size of 10 keeps the choice of the reference.
    distance, index = cKDTree(good, leafsize=10).query(
        np.argwhere(bad), k=np.arange(1, min(N_FILL_NEIGHBOURS, len(good)) + 1)
    )
    weight = 1 / np.asarray(distance)
    filled = cells.copy()
    filled[bad] = (weight * cells[~bad][index]).sum(axis=1) / weight.sum(axis=1)
    return filled


def _median_filter(mesh: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median of 3 x 3 cells, of those that exist at the edges."""
    padded = np.pad(mesh, 1, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    return np.nanmedian(windows.reshape(*mesh.shape, 9), axis=-1)
