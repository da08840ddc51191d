"""Members of groups that are fitted together; twin of ``numpy_backend.members``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cupy
import numpy as np

from gpuphot.models.frame import Frame, Groups, Positions
from gpuphot.models.groups import CROWD, MAX_CROWD
from gpuphot.models.psf import PSFModel

from .blocks import group_totals
from .neighbours import Neighbours, list_neighbours, runs
from .stamps import psf_stamps


@dataclass(frozen=True)
class Members:
    """M members of groups, sorted by group and, in it, canonically.

    Attributes
    ----------
    source : (M,) integer array
        Their rows among all sources.
    x, y, frame, row, column, half_row, half_column, group_begin, group_end : (M,) arrays
        Positions, planes, pixels, half sizes of the stamps, members of each one's group.
    level : (M,) float64 array
        Mean local background of the group; 0 without.
    fwhm : (M,) float64 array or None
    neighbours : Neighbours
    half : int
        Largest half size of the stamps.
    r : float
    """

    source: Any
    x: Any
    y: Any
    frame: Any
    row: Any
    column: Any
    half_row: Any
    half_column: Any
    group_begin: Any
    group_end: Any
    level: Any
    fwhm: Any | None
    neighbours: Neighbours
    half: int
    r: float

    def __len__(self) -> int:
        return len(self.x)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As kernels take them."""
        return (
            self.x, self.y, self.frame, self.row, self.column, self.half_row, self.half_column,
            self.level, *self.neighbours.arguments, np.float64(self.r),
        )  # fmt: skip

    def stamps(self, psf: PSFModel, part: slice) -> tuple[Any, tuple[Any, ...]]:
        """Stamps of a run of members, and how kernels take them."""
        fwhm = None if self.fwhm is None else self.fwhm[part]
        stamps = psf_stamps(psf, self.x[part], self.y[part], self.half, fwhm)
        _, rows, columns = stamps.shape
        return stamps, (stamps, np.int32(part.start), np.int32(rows), np.int32(columns))


def make_members(
    frame: Frame,
    pos: Positions,
    groups: Groups,
    wanted: Any,
    half_row: Any,
    half_column: Any,
    half: int,
    r: float,
    bg: Any,
    fwhm: Any | None,
) -> tuple[Members, Any]:
    """Members to fit, and which sources lie in crowds, most of which are left out."""
    rank = cupy.empty(len(pos), cupy.int64)
    rank[pos.order] = cupy.arange(len(pos))
    row, column = (cupy.rint(cupy.where(wanted, v, 0)).astype(cupy.int64) for v in (pos.y, pos.x))
    kept, crowded = thin_crowds(wanted, groups.id, row, column, rank)
    first = cupy.lexsort(cupy.stack([rank, groups.id, (~kept).astype(cupy.int64)]))
    source = first[: int(cupy.count_nonzero(kept))]
    group_begin, group_end = (v.astype(cupy.int32) for v in runs(groups.id[source]))
    row, column = (v[source].astype(cupy.int32) for v in (row, column))
    half_row, half_column = half_row[source], half_column[source]
    finite = cupy.isfinite(bg[source])
    total = group_totals(cupy.where(finite, bg[source], 0), group_begin, group_end)
    count = group_totals(finite.astype(cupy.float64), group_begin, group_end)
    return Members(
        source=source,
        x=pos.x[source],
        y=pos.y[source],
        frame=pos.frame[source],
        row=row,
        column=column,
        half_row=half_row,
        half_column=half_column,
        group_begin=group_begin,
        group_end=group_end,
        level=total / cupy.maximum(count, 1),
        fwhm=None if fwhm is None else fwhm[source],
        neighbours=list_neighbours(
            row, column, half_row, half_column, group_begin, group_end, widest=half_row
        ),
        half=half,
        r=r,
    ), crowded


def thin_crowds(wanted: Any, group: Any, row: Any, column: Any, rank: Any) -> tuple[Any, Any]:
    """`MAX_CROWD` wanted sources of a group in each square, and all in fuller ones.

    The first ones on their pixels come first: others may lie on the spot of a crowd.
    """
    left_out = (~wanted).astype(cupy.int64)
    on_pixel, _ = _places(rank, left_out, group, row, column)
    place, count = _places(on_pixel, left_out, group, row // CROWD, column // CROWD, rank=rank)
    return (place < MAX_CROWD) & wanted, (count > MAX_CROWD) & wanted


def _places(order: Any, *keys: Any, rank: Any | None = None) -> tuple[Any, Any]:
    """Place of each element among those with the same keys, and how many these are."""
    first = [order] if rank is None else [rank, order]
    columns = cupy.stack([*first, *keys])
    by_key = cupy.lexsort(columns)
    sorted_keys = columns[len(first) :, by_key]
    starts = cupy.ones(len(order), cupy.int64)
    starts[1:] = (sorted_keys[:, 1:] != sorted_keys[:, :-1]).any(axis=0)
    begin, end = runs(cupy.cumsum(starts, dtype=cupy.int64))
    place, count = cupy.empty(len(order), cupy.int64), cupy.empty(len(order), cupy.int64)
    place[by_key] = cupy.arange(len(order)) - begin
    count[by_key] = end - begin
    return place, count


def reaches_image(frame: Frame, pos: Positions, half_row: Any, half_column: Any) -> Any:
    """Whether the stamps around valid positions have pixels in the image."""
    height, width = frame.shape
    row, column = cupy.rint(pos.y), cupy.rint(pos.x)
    return (
        (row >= -half_row) & (row < height + half_row)
        & (column >= -half_column) & (column < width + half_column)
    )  # fmt: skip
