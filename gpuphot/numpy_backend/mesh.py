"""The global background: statistics of the mesh cells, and the surface through them."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from gpuphot.models.background import MIN_GOOD_FRACTION, SPLINE_MARGIN, SplineSurface
from gpuphot.models.frame import Bad

from .chunks import bands, chunks
from .clipping import SortedSamples


def mesh_statistics(
    data: NDArray[np.float64], bad: NDArray[np.uint8], cell: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sigma-clipped level and standard deviation of the background in every mesh cell.

    Pixels beyond 3 standard deviations of the median are rejected, at most 10 times. The level
    is the median if mean and median differ by 0.3 standard deviations or more, else SExtractor's
    estimate of the mode, ``2.5 median - 1.5 mean``.

    Parameters
    ----------
    data : (H, W) float64 array
    bad : (H, W) uint8 array
        `Bad` bits; masked pixels are left out.
    cell : (int, int)
        Height and width of the cells, which are anchored at pixel (0, 0); the last ones of a row
        or column hold the remainder.

    Returns
    -------
    level, rms : (ny, nx) float64 arrays
        NaN where a tenth of a full cell or less survives.
    """
    height, width = data.shape
    ny, nx = -(-height // cell[0]), -(-width // cell[1])
    level, rms = np.empty((ny, nx)), np.empty((ny, nx))
    # A strip of full cells, and a partial one at the end if a remainder is left.
    strips = [(0, width // cell[1], cell[1])]
    if width % cell[1]:
        strips.append((nx - 1, nx, width % cell[1]))
    for j in range(ny):
        top = j * cell[0]
        n_rows = min(cell[0], height - top)
        for first, last, cell_width in strips:
            for part in chunks(last - first, n_rows * cell_width):
                cells = slice(first + part.start, first + part.stop)
                left = cells.start * cell[1]
                right = left + (cells.stop - cells.start) * cell_width
                block = np.s_[top : top + n_rows, left:right]
                level[j, cells], rms[j, cells] = _clipped_level(
                    _as_rows(data[block], cell_width),
                    _as_rows((bad[block] & Bad.MASKED) == 0, cell_width),
                    MIN_GOOD_FRACTION * cell[0] * cell[1],
                )
    return level, rms


def _as_rows(block: NDArray, cell_width: int) -> NDArray:
    """The pixels of each cell of a row of cells, as an (n_cells, pixels) array."""
    height, width = block.shape
    cells = block.reshape(height, width // cell_width, cell_width).swapaxes(0, 1)
    return cells.reshape(width // cell_width, height * cell_width)


def _clipped_level(
    values: NDArray[np.float64], good: NDArray[np.bool_], min_good: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    samples = SortedSamples(values.copy(), None if good.all() else good)
    _, _, low, high = samples.clip()
    # The final bounds hold for all pixels of the cell, also for those rejected on the way.
    first, last = samples.between(low, high)
    median, mean, std = samples.median_mean_std(first, last)
    with np.errstate(invalid="ignore", divide="ignore"):
        skewed = np.abs(mean - median) / std >= 0.3
    level = np.where(skewed, median, 2.5 * median - 1.5 * mean)
    level = samples.reference + np.where(std == 0, mean, level)
    enough = last - first > min_good
    return np.where(enough, level, np.nan), np.where(enough, std, np.nan)


def evaluate_surface(surface: SplineSurface, shape: tuple[int, int]) -> NDArray[np.float64]:
    """A spline surface on every pixel of an image.

    Parameters
    ----------
    surface : SplineSurface
    shape : (int, int)
        Height and width of the image.

    Returns
    -------
    (H, W) float64 array
    """
    values = np.empty(shape)
    for rows in bands(shape):
        surface_rows(surface, rows, out=values[rows])
    return values


def surface_rows(
    surface: SplineSurface, rows: slice, out: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Write a spline surface on a band of image rows into `out`, and return it.

    The surface is a product of two narrow matrices of spline weights with the coefficients,
    computed in panels of columns so that the cost per pixel does not grow with the mesh.
    """
    cell_height, cell_width = surface.cell
    nodes, weights = _spline_weights(rows.start, rows.stop, cell_height)
    band = weights @ surface.coefficients[nodes]
    width = out.shape[1]
    panel = max(8 * cell_width, 256)
    for start in range(0, width, panel):
        columns = slice(start, min(start + panel, width))
        nodes, weights = _spline_weights(columns.start, columns.stop, cell_width)
        np.matmul(band[:, nodes], weights.T, out=out[:, columns])
    return np.clip(out, surface.low, surface.high, out=out)


@functools.lru_cache(maxsize=64)
def _spline_weights(start: int, stop: int, cell: int) -> tuple[slice, NDArray[np.float64]]:
    """Cubic B-spline weights of pixels [start, stop) on the padded nodes of one axis.

    Returns
    -------
    nodes : slice
        The nodes that these pixels need.
    weights : (stop - start, n_nodes) float64 array
    """
    u = (np.arange(start, stop) + 0.5) / cell - 0.5
    k = np.floor(u).astype(np.intp)
    t = (u - k)[:, None]
    weights = np.concatenate(
        [
            (1 - t) ** 3,
            4 - 6 * t**2 + 3 * t**3,
            1 + 3 * t + 3 * t**2 - 3 * t**3,
            t**3,
        ],
        axis=1,
    )
    first = k - 1 + SPLINE_MARGIN
    nodes = slice(int(first[0]), int(first[-1]) + 4)
    matrix = np.zeros((len(u), nodes.stop - nodes.start))
    np.put_along_axis(matrix, (first - nodes.start)[:, None] + np.arange(4), weights / 6, axis=1)
    return nodes, matrix
