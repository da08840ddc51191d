"""Who is near whom: groups of linked sources, and pairs whose stamps overlap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from gpuphot.models.frame import Groups, Positions
from gpuphot.models.groups import CELL, MARGIN, MAX_CELL, MAX_REACH, MIN_REACH, N_GRIDS

from .chunks import chunks, ranges

FIRST_TESTS, MORE_TESTS, MAX_TESTS = 64, 64, 1 << 20
"""Pairs of sources that are tested at first to link two cells, how many times more in every
further round, and how many at most."""


def link_groups(pos: Positions, reach: ArrayLike) -> Groups:
    """Connected components of the sources that are linked if the circles around them touch.

    Sources whose reaches differ by less than a factor of two lie on one grid, and those in one cell
    of it, with 0.7 linking radii a side, are always linked: cells are linked, not sources, and two
    cells that others have linked already are not looked at. Memory grows with the number of
    sources, whatever their density; time does, too, unless dense cells interlock without a link.

    Parameters
    ----------
    pos : Positions
    reach : float or (N,) float64 array
        Radii of the circles in pixels: two sources are linked if they are at most the sum of
        theirs apart. A source with a reach below `MIN_REACH` is a group of its own, one with NaN
        is in none.

    Returns
    -------
    Groups
    """
    reach = np.minimum(np.broadcast_to(np.asarray(reach, np.float64), len(pos)), MAX_REACH)
    grouped = pos.valid & (reach >= 0)
    cells = _make_cells(pos, reach, grouped)
    label = _link_cells(cells, *_near_cells(cells))
    group = np.full(len(pos), -1, np.int64)
    group[grouped] = len(label) + np.arange(np.count_nonzero(grouped))  # those on no grid
    group[cells.rows] = np.repeat(label, cells.count)
    return _in_order_of_appearance(group)


@dataclass(frozen=True)
class _Cells:
    """Occupied cells of all grids, sorted by grid and key, and the sources in them.

    Attributes
    ----------
    rows : integer array
        Sources on a grid, cell by cell.
    x, y, reach : float64 arrays
        Of these sources.
    grid, key, first, count : (n_cells,) integer arrays
        Grid and number in it of each cell, its first source and how many there are.
    begin : (N_GRIDS + 1,) integer array
        Where the cells of each grid begin.
    side, widest : (N_GRIDS,) float64 arrays
        Side of the cells of each grid, and the widest reach on it.
    corner, shape : (int, int)
        Lowest row and column of a cell, and how many of both there are.
    """

    rows: NDArray[np.intp]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    reach: NDArray[np.float64]
    grid: NDArray[np.intp]
    key: NDArray[np.int64]
    first: NDArray[np.intp]
    count: NDArray[np.intp]
    begin: NDArray[np.intp]
    side: NDArray[np.float64]
    widest: NDArray[np.float64]
    corner: tuple[int, int]
    shape: tuple[int, int]

    def __len__(self) -> int:
        return len(self.key)

    def per_cell(self, extreme: np.ufunc, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Extreme value of the sources of each cell."""
        return extreme.reduceat(values, self.first) if len(self) else values


def _make_cells(pos: Positions, reach: NDArray, grouped: NDArray[np.bool_]) -> _Cells:
    rows = np.flatnonzero(grouped & (reach >= MIN_REACH))
    edges = reach[rows].min(initial=np.inf) * 2.0 ** np.arange(N_GRIDS)
    grid = np.searchsorted(edges, reach[rows], side="right") - 1
    narrowest, widest = np.full(N_GRIDS, np.inf), np.zeros(N_GRIDS)
    np.minimum.at(narrowest, grid, reach[rows])
    np.maximum.at(widest, grid, reach[rows])
    side = 2 * CELL * narrowest
    near = np.maximum(np.abs(pos.x[rows]), np.abs(pos.y[rows])) < MAX_CELL * side[grid]
    rows, grid = rows[near], grid[near]
    row, column = (np.floor(v[rows] / side[grid]).astype(np.int64) for v in (pos.y, pos.x))
    corner, shape = (0, 0), (1, 1)
    if len(rows):
        corner = int(row.min()), int(column.min())
        shape = int(row.max()) - corner[0] + 1, int(column.max()) - corner[1] + 1
    key = pos.frame[rows].astype(np.int64) * shape[0] + row - corner[0]
    key = key * shape[1] + column - corner[1]
    order = np.lexsort((key, grid))
    rows, grid, key = rows[order], grid[order], key[order]
    changed = (np.diff(key) != 0) | (np.diff(grid) != 0)
    first = np.flatnonzero(np.append(len(rows) > 0, changed))
    return _Cells(
        rows=rows, x=pos.x[rows], y=pos.y[rows], reach=reach[rows], grid=grid[first],
        key=key[first], first=first, count=np.diff(first, append=len(rows)),
        begin=np.searchsorted(grid[first], np.arange(N_GRIDS + 1)), side=side, widest=widest,
        corner=corner, shape=shape,
    )  # fmt: skip


def _near_cells(cells: _Cells) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs of cells whose sources may be linked; the first one's are not wider than the other's.

    Of two cells of one grid the first one comes first.
    """
    low_y, low_x = (cells.per_cell(np.minimum, v) for v in (cells.y, cells.x))
    high_y, high_x = (cells.per_cell(np.maximum, v) for v in (cells.y, cells.x))
    reach = cells.per_cell(np.maximum, cells.reach)
    own_row = cells.key // cells.shape[1]
    plane = own_row // cells.shape[0] * cells.shape[0]
    pairs = [(np.zeros(0, np.intp), np.zeros(0, np.intp))]
    for grid in np.unique(cells.grid):
        a = np.arange(cells.begin[grid + 1])
        own = slice(cells.begin[grid], cells.begin[grid + 1])
        side = cells.side[grid]
        distance = reach[a] + cells.widest[grid] + MARGIN * side

        def place(v: NDArray[np.float64], axis: int, side: float = side) -> NDArray[np.int64]:
            number = np.floor(v / side) - cells.corner[axis]
            return np.clip(number, 0, cells.shape[axis] - 1).astype(np.int64)

        top, bottom = place(low_y[a] - distance, 0), place(high_y[a] + distance, 0)
        left, right = place(low_x[a] - distance, 1), place(high_x[a] + distance, 1)
        top, bottom = top + plane[a], bottom + plane[a]
        top[own] = own_row[own]
        after = np.zeros(len(a), np.intp)
        after[own] = np.arange(1, own.stop - own.start + 1)
        for down in range(int((bottom - top).max()) + 1):
            start = (top + down) * cells.shape[1]
            begin = np.searchsorted(cells.key[own], start + left)
            end = np.searchsorted(cells.key[own], start + right, side="right")
            begin = np.maximum(begin, after)
            n = np.where(top + down <= bottom, np.maximum(end - begin, 0), 0)
            pairs.append((np.repeat(a, n), own.start + ranges(begin, n)))
    first, second = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return first, second


def _link_cells(cells: _Cells, a: NDArray[np.intp], b: NDArray[np.intp]) -> NDArray[np.intp]:
    """Component of every cell; a, b are pairs of cells near each other."""
    count = cells.count
    label: NDArray = np.arange(len(cells))
    near = _boxes_near(cells, a, b)
    a, b = a[near], b[near]
    tested, n_tests = 0, FIRST_TESTS
    while len(a):
        linked = np.zeros(len(a), np.bool_)
        for part in chunks(len(a), n_tests, MAX_TESTS):
            linked[part] = _any_linked(cells, a[part], b[part], tested, n_tests)
        graph = coo_array(
            (np.ones(np.count_nonzero(linked), np.bool_), (label[a[linked]], label[b[linked]])),
            shape=(len(cells), len(cells)),
        )
        _, merged = connected_components(graph, directed=False)
        label = merged[label]
        tested += n_tests
        n_tests = min(n_tests * MORE_TESTS, MAX_TESTS)
        open_pairs = (label[a] != label[b]) & (count[a] * count[b] > tested)
        a, b = a[open_pairs], b[open_pairs]
    return label


def _boxes_near(cells: _Cells, a: NDArray[np.intp], b: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Whether the boxes around the sources of two cells are near enough for links."""
    gap = []
    for v in (cells.x, cells.y):
        low, high = (cells.per_cell(f, v) for f in (np.minimum, np.maximum))
        gap.append(np.maximum(np.maximum(low[b] - high[a], low[a] - high[b]), 0))
    reach = cells.per_cell(np.maximum, cells.reach)
    return gap[0] * gap[0] + gap[1] * gap[1] <= np.square(reach[a] + reach[b])


def _any_linked(
    cells: _Cells, a: NDArray[np.intp], b: NDArray[np.intp], tested: int, n_tests: int
) -> NDArray[np.bool_]:
    """Whether a source of cell a is linked to one of b, among the pairs to be tested.

    These are up to `n_tests` pairs of sources from number `tested` on.
    """
    linked = np.zeros(len(a), np.bool_)
    n = np.clip(cells.count[a] * cells.count[b] - tested, 0, n_tests)
    pair = np.repeat(np.arange(len(a)), n)
    number = ranges(np.full(len(a), tested), n)
    width = cells.count[b][pair]
    i, j = cells.first[a][pair] + number // width, cells.first[b][pair] + number % width
    dx, dy = cells.x[i] - cells.x[j], cells.y[i] - cells.y[j]
    linked[pair[dx * dx + dy * dy <= np.square(cells.reach[i] + cells.reach[j])]] = True
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
