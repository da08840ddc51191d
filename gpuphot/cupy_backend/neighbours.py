"""Who is near whom; twin of ``numpy_backend.neighbours``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cupy
import numpy as np

from gpuphot.models.frame import Groups, Positions
from gpuphot.models.groups import CELL, MAX_CELL, REACH

from .launch import blocks, launch

_WARPS = 4
_OFF_GRID = np.int64(1 << 62)


def link_groups(pos: Positions, radius: float) -> Groups:
    """Connected components of the sources that are linked if they are at most `radius` apart."""
    n = len(pos)
    if n == 0:
        return Groups(cupy.empty(0, cupy.int64), cupy.empty(0, cupy.int64))
    key, stride = _cells(pos, CELL * radius)
    order = cupy.argsort(key)
    key = key[order]
    # Each source points to the first one of its cell; off the grid, to itself.
    number = cupy.arange(n, dtype=cupy.int32)
    parent = cupy.where(key == _OFF_GRID, number, cupy.searchsorted(key, key).astype(cupy.int32))
    x, y = pos.x[order], pos.y[order]
    launch(
        "link_cells",
        blocks(n, _WARPS),
        (key, x, y, np.int32(n), stride, _OFF_GRID, np.float64(radius), parent),
    )
    label = cupy.empty(n, cupy.int32)
    launch("flatten_links", blocks(n, 256), (parent, np.int32(n), label))
    group = cupy.empty(n, cupy.int64)
    group[order] = label.astype(cupy.int64)
    return _in_order_of_appearance(cupy.where(pos.valid, group, -1))


def _cells(pos: Positions, side: float) -> tuple[Any, Any]:
    """Number of every source's cell, and cells in a row of the grid, an array of one."""
    near = pos.valid & (cupy.maximum(cupy.abs(pos.x), cupy.abs(pos.y)) < MAX_CELL * side)
    column, row = (
        cupy.floor(cupy.where(near, v, 0) / (side or 1.0)).astype(cupy.int64)
        for v in (pos.x, pos.y)
    )
    column, row = (v - cupy.where(near, v, 2 * MAX_CELL).min() for v in (column, row))
    row += pos.frame * (cupy.where(near, row, 0).max() + REACH + 1)
    stride = cupy.where(near, column, 0).max() + REACH + 1
    return cupy.where(near, row * stride + column, _OFF_GRID), stride.reshape(1)


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
    row: Any, column: Any, half_row: Any, half_column: Any, group_begin: Any, group_end: Any
) -> Neighbours:
    """Neighbours of n members, which are sorted by group and, in it, by row.

    Parameters
    ----------
    row, column : (n,) int32 arrays
        Pixels of the members.
    half_row, half_column : (n,) int32 arrays
        Half sizes of their stamps, the same in a group.
    group_begin, group_end : (n,) int32 arrays
        The members of each one's group.
    """
    n = len(row)
    count, begin, end = (cupy.empty(n, cupy.int32) for _ in range(3))
    members = row, column, half_row, half_column, group_begin, group_end, np.int32(n)
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
