"""Who is near whom: groups of linked sources, and pairs whose stamps overlap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from gpuphot.models.frame import Groups, Positions
from gpuphot.models.groups import CELL, MAX_CELL, REACH

from .chunks import chunks, ranges

FIRST_TESTS, MORE_TESTS, MAX_TESTS = 64, 64, 1 << 20
"""Pairs of sources that are tested at first to link two cells, how many times more in every
further round, and how many at most."""


def link_groups(pos: Positions, radius: float) -> Groups:
    """Connected components of the sources that are linked if they are at most `radius` apart.

    Sources in one cell of a grid with 0.7 radii a side are always linked, and linked ones lie at
    most two cells apart: cells are linked, not sources, and two cells that others have linked
    already are not looked at. Memory grows with the number of sources, whatever their density; time
    does, too, unless dense cells interlock without a link.

    Parameters
    ----------
    pos : Positions
    radius : float
        In pixels; at 0 every source is a group.

    Returns
    -------
    Groups
    """
    rows, key, stride = _cells(pos, CELL * radius)
    order = np.argsort(key, kind="stable")
    rows, key = rows[order], key[order]
    first = np.flatnonzero(np.diff(key, prepend=-1))
    count = np.diff(first, append=len(key))
    a, b = _near_cells(key[first], stride)
    label = _link_cells(pos.x[rows], pos.y[rows], first, count, a, b, radius)
    group = np.full(len(pos), -1, np.int64)
    group[pos.valid] = len(first) + np.arange(np.count_nonzero(pos.valid))  # those off any grid
    group[rows] = np.repeat(label, count)
    return _in_order_of_appearance(group)


def _cells(pos: Positions, side: float) -> tuple[NDArray[np.intp], NDArray[np.int64], int]:
    """Rows of sources that lie on the grid, the key of each one's cell, and cells in a grid row."""
    near = pos.valid & (np.maximum(np.abs(pos.x), np.abs(pos.y)) < MAX_CELL * side)
    rows = np.flatnonzero(near)
    column, row = (np.floor(v[rows] / side).astype(np.int64) for v in (pos.x, pos.y))
    if not len(rows):
        return rows, row, 1
    column, row = column - column.min(), row - row.min()
    row += pos.frame[rows].astype(np.int64) * (row.max() + REACH + 1)
    stride = int(column.max()) + REACH + 1
    return rows, row * stride + column, stride


def _near_cells(cell: NDArray[np.int64], stride: int) -> tuple[NDArray, NDArray]:
    """Pairs of occupied cells, given by their sorted keys, that are at most `REACH` apart."""
    pairs = []
    for down in range(REACH + 1):
        middle = cell + down * stride
        begin = np.searchsorted(cell, middle + (1 if down == 0 else -REACH))
        end = np.searchsorted(cell, middle + REACH, side="right")
        n = end - begin
        a = np.repeat(np.arange(len(cell)), n)
        pairs.append((a, ranges(begin, n)))
    a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return a, b


def _link_cells(
    x: NDArray, y: NDArray, first: NDArray, count: NDArray, a: NDArray, b: NDArray, radius: float
) -> NDArray[np.intp]:
    """Component of every cell; sources are sorted by cell, and a, b are cells near each other."""
    label: NDArray = np.arange(len(first))
    near = _boxes_near(x, y, first, a, b, radius)
    a, b = a[near], b[near]
    tested, n_tests = 0, FIRST_TESTS
    while len(a):
        linked = np.zeros(len(a), np.bool_)
        for part in chunks(len(a), n_tests, MAX_TESTS):
            cells = first, count, a[part], b[part]
            linked[part] = _any_within(x, y, *cells, tested, n_tests, radius)
        graph = coo_array(
            (np.ones(np.count_nonzero(linked), np.bool_), (label[a[linked]], label[b[linked]])),
            shape=(len(first), len(first)),
        )
        _, merged = connected_components(graph, directed=False)
        label = merged[label]
        tested += n_tests
        n_tests = min(n_tests * MORE_TESTS, MAX_TESTS)
        open_pairs = (label[a] != label[b]) & (count[a] * count[b] > tested)
        a, b = a[open_pairs], b[open_pairs]
    return label


def _boxes_near(
    x: NDArray, y: NDArray, first: NDArray, a: NDArray, b: NDArray, radius: float
) -> NDArray[np.bool_]:
    """Whether the boxes around the sources of two cells are within the radius of each other."""
    gap = []
    for v in (x, y):
        low, high = (f.reduceat(v, first) for f in (np.minimum, np.maximum))
        gap.append(np.maximum(np.maximum(low[b] - high[a], low[a] - high[b]), 0))
    return np.sqrt(gap[0] * gap[0] + gap[1] * gap[1]) <= radius


def _any_within(
    x: NDArray,
    y: NDArray,
    first: NDArray,
    count: NDArray,
    a: NDArray,
    b: NDArray,
    tested: int,
    n_tests: int,
    radius: float,
) -> NDArray[np.bool_]:
    """Whether a source of cell a lies within the radius of one of b, among the pairs to be tested.

    These are up to `n_tests` pairs of sources from number `tested` on.
    """
    linked = np.zeros(len(a), np.bool_)
    n = np.clip(count[a] * count[b] - tested, 0, n_tests)
    pair = np.repeat(np.arange(len(a)), n)
    number = ranges(np.full(len(a), tested), n)
    width = count[b][pair]
    i, j = first[a][pair] + number // width, first[b][pair] + number % width
    dx, dy = x[i] - x[j], y[i] - y[j]
    linked[pair[np.sqrt(dx * dx + dy * dy) <= radius]] = True
    return linked


def _in_order_of_appearance(group: NDArray[np.int64]) -> Groups:
    """Groups of arbitrary labels, which are negative where there is none."""
    labels, first, inverse, size = np.unique(
        group, return_index=True, return_inverse=True, return_counts=True
    )
    missing = labels < 0
    rank = np.empty(len(labels), np.int64)
    rank[np.argsort(np.where(missing, len(group), first), kind="stable")] = np.arange(len(labels))
    identity = np.where(missing, -1, rank + 1)
    return Groups(identity[inverse], np.where(missing, 0, size)[inverse])


def group_median(groups: Groups, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median of the values of every source's group.

    Parameters
    ----------
    groups : Groups
    values : (N,) float64 array
        NaN where a source has none.

    Returns
    -------
    (N,) float64 array
        NaN for rows without group, and where no member has a value.
    """
    order = np.lexsort((values, groups.id))  # NaN comes last
    group = groups.id[order]
    count = np.bincount(groups.id[np.isfinite(values) & (groups.id > 0)], minlength=len(values) + 1)
    n = count[np.maximum(group, 0)]
    start = np.searchsorted(group, group)
    low, high = (values[order[start + np.maximum(n - 1 + k, 0) // 2]] for k in (0, 1))
    median = np.full(len(values), np.nan)
    median[order] = np.where((n > 0) & (group > 0), 0.5 * (low + high), np.nan)
    return median


def overlapping_pairs(
    row: NDArray, column: NDArray, group: NDArray, reach: tuple[int, int]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs i < j of one group less than `reach` rows and columns apart, sorted by i and j.

    Parameters
    ----------
    row, column : (n,) arrays
        Pixels of the sources.
    group : (n,) integer array
    reach : (int, int)
        Rows and columns of a stamp.
    """
    points = np.stack([row / reach[0], column / reach[1]], axis=1)
    pairs = cKDTree(points).query_pairs(1.0, p=np.inf, output_type="ndarray")
    i, j = pairs.min(axis=1), pairs.max(axis=1)
    near = (np.abs(row[i] - row[j]) < reach[0]) & (np.abs(column[i] - column[j]) < reach[1])
    keep = near & (group[i] == group[j])
    i, j = i[keep], j[keep]
    order = np.lexsort((j, i))
    return i[order], j[order]
