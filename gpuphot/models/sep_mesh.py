"""SEP's background mesh: from the statistics of its cells to what its maps are made of.

The mesh is tiny, hence NumPy code. It is all in single precision and in SEP's order of
operations, so that maps agree with SEP's to the last bit.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, median_filter


def smooth_mesh(cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fill the bad cells, and take the median of 3 x 3 cells.

    The windows of the median shrink symmetrically at the edges: to 3 cells along the edge, and
    to the cell itself in the corners.

    Parameters
    ----------
    cells : (2, ny, nx) float32 array
        Level of the background and its standard deviation, NaN where the cell is bad.

    Returns
    -------
    (2, ny, nx) float32 array
        0 and 1 if all cells are bad.
    """
    filled = _fill_bad_cells(cells)
    smooth = median_filter(filled, (1, 3, 3))
    edges = [0, -1]
    smooth[:, edges] = median_filter(filled[:, edges], (1, 1, 3))
    smooth[:, :, edges] = median_filter(filled[:, :, edges], (1, 3, 1))
    corners = np.s_[:, [[0], [-1]], edges]
    smooth[corners] = filled[corners]
    with np.errstate(invalid="ignore"):
        changed = np.abs(smooth[0] - filled[0]) >= 0  # not where infinite levels remain so
    return np.where(changed, smooth, filled)


def _fill_bad_cells(cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bad cells take the mean of the good cells that are nearest, all at the same distance."""
    bad = np.isnan(cells[1])
    if not bad.any():
        return cells
    filled = cells.copy()
    if bad.all():
        filled[0], filled[1] = 0, 1
        return filled
    position = np.argwhere(bad)
    nearest = distance_transform_edt(bad, return_distances=False, return_indices=True)
    distance2 = ((nearest[:, bad].T - position) ** 2).sum(axis=1)
    steps, length2 = _steps(math.isqrt(distance2.max()))
    first, last = (np.searchsorted(length2, distance2, side) for side in ("left", "right"))
    total, count = np.zeros((2, len(position)), np.float32), np.zeros(len(position), np.float32)
    # Of those at that distance, one after the other, as float32 sums depend on the order.
    for k in range((last - first).max()):
        some = np.flatnonzero(first + k < last)
        cell = position[some] + steps[first[some] + k]
        outside = ((cell < 0) | (cell >= bad.shape)).any(axis=1)
        cell[outside] = position[some[outside]]  # which is not good
        y, x = cell.T
        good = ~bad[y, x]
        total[:, some] += np.where(good, cells[:, y, x], np.float32(0))
        count[some] += good
    filled[:, bad] = total / count
    return filled


def _steps(reach: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Steps (in y, in x) on a grid and their squared lengths; the shortest ones come first.

    Those of the same length are in the order of the rows.
    """
    steps = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1).T
    length2 = (steps**2).sum(axis=1)
    order = np.argsort(length2, kind="stable")
    return steps[order], length2[order]


def spline_factors(n: int) -> NDArray[np.float32]:
    """Factors of the recursion for second derivatives at n nodes."""
    factors = np.zeros(n, np.float32)
    for i in range(1, n - 1):
        factors[i] = -1 / (factors[i - 1] + 4)
    return factors


def second_derivatives(nodes: NDArray[np.float32]) -> NDArray[np.float32]:
    """SEP's second derivatives along the rows of a mesh.

    They are 0 at both ends like those of a natural spline, but are not its: the recursion uses
    each of them after the division by 6, where it should be before.

    Parameters
    ----------
    nodes : (2, ny, nx) float32 array

    Returns
    -------
    (2, ny, nx) float32 array
        Along y, a sixth of them.
    """
    n = nodes.shape[1]
    factors = spline_factors(n)
    derivatives = np.zeros_like(nodes)
    with np.errstate(over="ignore", invalid="ignore"):  # a cell can be infinite
        for i in range(1, n - 1):
            curvature = nodes[:, i + 1] + nodes[:, i - 1] - 2 * nodes[:, i]
            derivatives[:, i] = factors[i] * (derivatives[:, i - 1] - 6 * curvature)
        for i in range(n - 2, 0, -1):
            unscaled = factors[i] * derivatives[:, i + 1] + derivatives[:, i]
            derivatives[:, i] = unscaled.astype(np.float64) / 6
    return derivatives


def row_weights(height: int, cell: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Where the rows of an image lie between the nodes of the mesh.

    Returns
    -------
    lower : (H,) int32 array
        The node below each row, or the first or the last but one.
    weight : (H,) float32 array
        That of the next node, outside of [0, 1] beyond the ends, where the mesh is extrapolated.
    """
    last = -(-height // cell) - 1
    row = np.arange(height, dtype=np.float32) / np.float32(cell)
    weight = (row.astype(np.float64) - 0.5).astype(np.float32)
    lower = weight.astype(np.int32)
    weight -= lower.astype(np.float32)
    beyond = (lower >= last) & (lower > 0)
    lower[beyond] -= 1
    weight[beyond] += 1
    return lower, weight


def column_weights(width: int, cell: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Where the columns of an image lie between the nodes of the mesh.

    Like `row_weights`, but with weights that grow from column to column, along with their
    rounding, until the next node is reached.
    """
    last = -(-width // cell) - 1
    step = np.float32(1 / cell)
    column = np.arange(width)
    lower = np.clip((column - cell // 2) // cell, 0, max(0, last - 1)).astype(np.int32)
    since_node = column - np.where(lower > 0, lower * cell + cell // 2, 0)
    first, others = (step - 1) / 2, step / 2 if cell % 2 == 0 else np.float32(0)
    weight = np.where(
        lower > 0,
        _running_sum(others, step, width)[since_node],
        _running_sum(first, step, width)[since_node],
    )
    return lower, weight


def _running_sum(start: np.float32, step: np.float32, n: int) -> NDArray[np.float32]:
    terms = np.full(n, step)
    terms[0] = start
    return np.add.accumulate(terms)
