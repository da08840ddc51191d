"""Smooth fields over the image: how they are fitted to scattered values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

Extent = tuple[float, float]
"""Lowest and highest coordinate."""


MAX_OFFSET = 1e150
"""Scaled positions are not let farther out, so that their distances are finite."""


@dataclass(frozen=True)
class LoessOptions:
    """Local linear regression with Gaussian weights, robust against outliers.

    Attributes
    ----------
    scales : (float, float) or None
        Pixels in x and y that count as a distance of 1; by default a quarter of the extent of the
        fitted positions.
    k : int
        Neighbours that a value is fitted to.
    robust_iters : int
        How often outliers are given less weight.
    robust_c : float
        Residuals of so many standard deviations weigh nothing.
    min_bandwidth : float
        Scaled distance that the width of the weights is not let below.
    ridge : float
        Added to the diagonal of the normal equations.
    """

    scales: tuple[float, float] | None = None
    k: int = 100
    robust_iters: int = 2
    robust_c: float = 4.685
    min_bandwidth: float = 1e-6
    ridge: float = 1e-10


@dataclass(frozen=True)
class GridOptions:
    """Medians in the cells of a grid, smoothed and interpolated.

    Attributes
    ----------
    image_shape : (int, int) or None
        Rows and columns that the grid covers; by default the extent of the fitted positions.
    grid_shape : (int, int)
        Cells in x and y.
    min_per_cell : int
        Values that a cell needs for a median.
    smooth_sigma : float
        Of the Gaussian, in cells; 0 for none.
    """

    image_shape: tuple[int, int] | None = None
    grid_shape: tuple[int, int] = (12, 8)
    min_per_cell: int = 6
    smooth_sigma: float = 1.0


def loess_scales(x: Extent, y: Extent, options: LoessOptions) -> tuple[float, float]:
    """Pixels in x and y that count as a distance of 1, for fitted positions of this extent."""
    if options.scales is not None:
        return float(options.scales[0]), float(options.scales[1])
    return ((x[1] - x[0]) or 1.0) / 4, ((y[1] - y[0]) or 1.0) / 4


def cell_edges(
    x: Extent, y: Extent, options: GridOptions
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Edges of the cells in x and y for fitted positions of this extent; None if they have none.

    A cell holds the positions from its lower edge on that lie below its upper edge; the outermost
    cells also hold all that lie beyond.
    """
    if options.image_shape is not None:
        x, y = (0.0, options.image_shape[1]), (0.0, options.image_shape[0])
    edges = [
        np.linspace(low, low + (high - low), n + 1)
        for (low, high), n in zip((x, y), options.grid_shape, strict=True)
    ]
    if not all((np.diff(cell_centres(e)) > 0).all() for e in edges):
        return None
    return edges[0], edges[1]


def cell_centres(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centres of the cells between edges."""
    return 0.5 * (edges[:-1] + edges[1:])


def smooth_cells(
    median: NDArray[np.float64],
    count: NDArray[np.integer],
    x_centres: NDArray[np.float64],
    y_centres: NDArray[np.float64],
    options: GridOptions,
) -> NDArray[np.float64]:
    """Smooth values at the centres of all cells, some of them with too few values or none.

    Parameters
    ----------
    median : (ny, nx) float64 array
        Ignored where `count` is 0.
    count : (ny, nx) integer array
        Values in each cell, at least one of them in all.
    x_centres, y_centres : (nx,), (ny,) float64 arrays
    options : GridOptions

    Returns
    -------
    (ny, nx) float64 array
    """
    needed = max(1, int(options.min_per_cell))
    while count.max() < needed:
        needed //= 2
    full = count >= needed
    centres = np.stack(np.broadcast_arrays(x_centres, y_centres[:, np.newaxis]), axis=-1)
    _, nearest = cKDTree(centres[full]).query(centres[~full])
    values = np.array(median, np.float64)
    values[~full] = median[full][nearest]
    if options.smooth_sigma <= 0:
        return values
    weight = np.where(full, count, 0.0)
    light, total = (
        gaussian_filter(v, options.smooth_sigma, mode="nearest") for v in (values * weight, weight)
    )
    return np.divide(light, total, out=values, where=total > 0)
