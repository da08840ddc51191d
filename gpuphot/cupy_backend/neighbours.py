"""Who is near whom; twin of ``numpy_backend.neighbours``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cupy
import numpy as np

from gpuphot.models.frame import Groups, Positions
from gpuphot.models.groups import CELL, MARGIN, MAX_CELL, MAX_REACH, MIN_REACH, N_GRIDS

from .launch import blocks, launch, to_device

_WARPS = 4
_NO_GRID = N_GRIDS
"""Number of the grid of sources that are on none."""


def link_groups(pos: Positions, reach: Any) -> Groups:
    """Connected components of the sources that are linked if the circles around them touch."""
    n = len(pos)
    if n == 0:
        return Groups(cupy.empty(0, cupy.int64), cupy.empty(0, cupy.int64))
    reach = cupy.minimum(
        cupy.broadcast_to(to_device(reach).astype(cupy.float64, copy=False), (n,)), MAX_REACH
    )
    grouped = pos.valid & (reach >= 0)
    grid, key, of_grids = _cells(pos, reach, grouped)
    order = cupy.lexsort(cupy.stack([key, grid]))
    grid, key = (v[order] for v in (grid, key))
    begin = cupy.searchsorted(grid, cupy.arange(N_GRIDS + 1)).astype(cupy.int32)
    # Each source points to the first one of its cell; on no grid, to itself.
    starts = cupy.ones(n, cupy.int64)
    starts[1:] = (key[1:] != key[:-1]) | (grid[1:] != grid[:-1]) | (grid[1:] == _NO_GRID)
    parent = runs(cupy.cumsum(starts, dtype=cupy.int64))[0].astype(cupy.int32)
    x, y, reach = (v[order] for v in (pos.x, pos.y, reach))
    launch(
        "link_cells",
        blocks(n, _WARPS),
        (
            grid.astype(cupy.int32), key, x, y, reach, np.int32(n), begin, *of_grids,
            np.int32(N_GRIDS), np.float64(MARGIN), parent,
        ),
    )  # fmt: skip
    label = cupy.empty(n, cupy.int32)
    launch("flatten_links", blocks(n, 256), (parent, np.int32(n), label))
    group = cupy.empty(n, cupy.int64)
    group[order] = label.astype(cupy.int64)
    return _in_order_of_appearance(cupy.where(grouped, group, -1))


def _cells(pos: Positions, reach: Any, grouped: Any) -> tuple[Any, Any, tuple[Any, Any, Any]]:
    """Grid and cell of every source, and what describes the grids.

    These are the side of their cells and the widest reach on each, and, for all of them, lowest row
    and column of a cell and how many of both there are.
    """
    on_grid = grouped & (reach >= MIN_REACH)
    narrowest = cupy.where(on_grid, reach, cupy.inf).min()
    edges = narrowest * cupy.asarray(2.0 ** np.arange(N_GRIDS))
    grid = cupy.clip(cupy.searchsorted(edges, reach, side="right") - 1, 0, N_GRIDS - 1)
    by_reach = cupy.lexsort(cupy.stack([reach, cupy.where(on_grid, grid, _NO_GRID)]))
    reaches, grids = reach[by_reach], cupy.where(on_grid, grid, _NO_GRID)[by_reach]
    begin, end = (
        cupy.searchsorted(grids, cupy.arange(N_GRIDS), side=side) for side in ("left", "right")
    )
    side = 2 * CELL * reaches[cupy.minimum(begin, len(pos) - 1)]
    widest = reaches[cupy.maximum(end - 1, 0)]
    own_side = side[grid]
    on_grid &= cupy.maximum(cupy.abs(pos.x), cupy.abs(pos.y)) < MAX_CELL * own_side
    own_side = cupy.where(on_grid, own_side, 1)
    row, column = (
        cupy.floor(cupy.where(on_grid, v, 0) / own_side).astype(cupy.int64) for v in (pos.y, pos.x)
    )
    low = [cupy.where(on_grid, v, MAX_CELL).min() for v in (row, column)]
    row, column = (
        cupy.where(on_grid, v - lowest, 0) for v, lowest in zip((row, column), low, strict=True)
    )
    n_rows, n_columns = (v.max() + 1 for v in (row, column))
    key = (pos.frame * n_rows + row) * n_columns + column
    of_all = cupy.stack([*low, n_rows, n_columns])
    return cupy.where(on_grid, grid, _NO_GRID), key, (side, widest, of_all)


def runs(values: Any) -> tuple[Any, Any]:
    """Begin and end of the run of equal values that each of the sorted ones belongs to."""
    return cupy.searchsorted(values, values), cupy.searchsorted(values, values, side="right")


def _in_order_of_appearance(group: Any) -> Groups:
    """Groups of arbitrary labels, which are negative where there is none."""
    n = len(group)
    row = cupy.arange(n)
    order = cupy.lexsort(cupy.stack([row, group]))
    begin, end = runs(group[order])
    first, size = cupy.empty(n, cupy.int64), cupy.empty(n, cupy.int64)
    first[order] = order[begin]
    size[order] = end - begin
    in_group = group >= 0
    identity = cupy.cumsum((first == row) & in_group, dtype=cupy.int64)[first]
    return Groups(cupy.where(in_group, identity, -1), cupy.where(in_group, size, 0))


def group_median(groups: Groups, values: Any) -> Any:
    """Median of the values of every source's group."""
    if len(values) == 0:
        return cupy.empty(0)
    finite = cupy.isfinite(values) & (groups.id > 0)
    number = groups.id.astype(cupy.float64)
    order = cupy.lexsort(cupy.stack([cupy.where(finite, values, cupy.inf), number]))
    begin, end = runs(number[order])
    counted = cupy.cumsum(finite[order], dtype=cupy.int64)
    n = counted[end - 1] - counted[begin] + finite[order][begin]
    low, high = (values[order[begin + cupy.maximum(n - 1 + k, 0) // 2]] for k in (0, 1))
    median = cupy.empty(len(values))
    median[order] = cupy.where(n > 0, 0.5 * (low + high), cupy.nan)
    return median


@dataclass(frozen=True)
class Neighbours:
    """Members of the same group whose stamps overlap a member's, in order, for n members.

    Attributes
    ----------
    offset : (n + 1,) int64 array
        Where the list of each member begins in `list`.
    list : (total,) int32 array
    begin, end : (n,) int32 arrays
        The members from `begin` to `end` include all in the list.
    """

    offset: Any
    list: Any
    begin: Any
    end: Any

    @property
    def arguments(self) -> tuple[Any, Any]:
        """As kernels take them."""
        return self.offset, self.list


def list_neighbours(
    row: Any,
    column: Any,
    half_row: Any,
    half_column: Any,
    group_begin: Any,
    group_end: Any,
    widest: Any,
) -> Neighbours:
    """Neighbours of n members, which are sorted by group and, in it, by row.

    Parameters
    ----------
    row, column : (n,) int32 arrays
        Pixels of the members.
    half_row, half_column : (n,) int32 arrays
        Half sizes of their stamps.
    group_begin, group_end : (n,) int32 arrays
        The members of each one's group.
    widest : (n,) int32 array
        The largest `half_row` of each one's group.
    """
    n = len(row)
    count, begin, end = (cupy.empty(n, cupy.int32) for _ in range(3))
    members = row, column, half_row, half_column, group_begin, group_end, widest, np.int32(n)
    offset, listed = cupy.zeros(n + 1, cupy.int64), cupy.empty(1, cupy.int32)

    def run(listing: bool) -> None:
        launch(
            "list_neighbours",
            blocks(n, _WARPS),
            (*members, np.int32(listing), offset, count, begin, end, listed),
        )

    run(listing=False)
    offset[1:] = cupy.cumsum(count, dtype=cupy.int64)
    listed = cupy.empty(max(1, int(offset[-1])), cupy.int32)
    run(listing=True)
    return Neighbours(offset, listed, begin, end)
