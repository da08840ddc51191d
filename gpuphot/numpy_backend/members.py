"""Members of groups that are fitted together: which sources, where, and whose stamps overlap."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpuphot.models.frame import Frame, Groups, Positions
from gpuphot.models.groups import CROWD, MAX_CROWD
from gpuphot.models.psf import PSFModel

from .chunks import chunks
from .neighbours import overlapping_pairs
from .stamps import psf_stamps
from .sums import group_sums

BAND = 1 << 17
"""Members whose pairs are looked for at once."""


@dataclass(frozen=True)
class Members:
    """M members of groups in canonical order, all with stamps of one shape.

    Attributes
    ----------
    source : (M,) integer array
        Their rows among all sources.
    x, y : (M,) float64 arrays
    row, column : (M,) integer arrays
        The pixels they lie on; rows of further planes of the frame follow each other.
    group : (M,) integer array
        From 0 on.
    bg : (M,) float64 array
        Mean local background of the group; 0 without.
    has_constant : (M,) bool array
        Whether a constant is fitted along.
    fwhm : (M,) float64 array or None
    shape : (int, int)
        Of the stamps.
    r : float
    """

    source: NDArray[np.intp]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    row: NDArray[np.intp]
    column: NDArray[np.intp]
    plane: NDArray[np.intp]
    group: NDArray[np.intp]
    bg: NDArray[np.float64]
    has_constant: NDArray[np.bool_]
    fwhm: NDArray[np.float64] | None
    shape: tuple[int, int]
    r: float

    def __len__(self) -> int:
        return len(self.x)

    @property
    def half(self) -> tuple[int, int]:
        """Rows and columns of a stamp on either side of its central pixel."""
        return self.shape[0] // 2, self.shape[1] // 2

    @functools.cached_property
    def stamp(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows and columns of the pixels of a stamp, from the pixel of the source."""
        row, column = np.indices(self.shape).reshape(2, -1)
        return row - self.half[0], column - self.half[1]

    @functools.cached_property
    def disc(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows and columns (T,), from the pixel of a source, of all that its circle may hold."""
        reach = [min(half, math.floor(self.r + 0.5)) for half in self.half]
        row, column = np.indices([2 * n + 1 for n in reach]).reshape(2, -1)
        row, column = row - reach[0], column - reach[1]
        nearest = np.hypot(np.maximum(abs(row) - 0.5, 0), np.maximum(abs(column) - 0.5, 0))
        return row[nearest <= self.r], column[nearest <= self.r]

    def in_circle(self, i: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Which pixels of the disc lie within the radius of the members i; (n, T)."""
        row, column = self.disc
        dx = (self.column[i] - self.x[i])[:, None] + column
        dy = (self.row[i] - self.y[i])[:, None] + row
        return np.sqrt(dx * dx + dy * dy) <= self.r

    def disc_on_stamp(
        self, i: NDArray[np.intp], j: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Where the discs of the members i lie on the flat stamps of the members j; (n, T).

        And which pixels of the disc lie on the stamp at all.
        """
        n_rows, n_columns = self.shape
        row = (self.row[i] - self.row[j])[:, None] + self.disc[0] + self.half[0]
        column = (self.column[i] - self.column[j])[:, None] + self.disc[1] + self.half[1]
        inside = (row >= 0) & (row < n_rows) & (column >= 0) & (column < n_columns)
        return row * n_columns + column, inside

    def stamps(self, psf: PSFModel, i: NDArray[np.intp]) -> NDArray[np.float64]:
        """Stamps of the members i, of shape (n, rows * columns)."""
        half = max(self.half)
        fwhm = None if self.fwhm is None else self.fwhm[i]
        return psf_stamps(psf, self.x[i], self.y[i], half, fwhm).reshape(len(i), -1)


def make_members(
    frame: Frame,
    pos: Positions,
    groups: Groups,
    rows: NDArray[np.intp],
    shape: tuple[int, int],
    r: float,
    bg: NDArray[np.float64],
    fwhm: NDArray[np.float64] | None,
) -> tuple[Members, NDArray[np.intp]]:
    """Members to fit, and sources in crowds, most of which are left out."""
    rows = rows[_reaches_image(frame, pos, rows, shape)]
    row, column = (np.rint(v[rows]).astype(np.intp) for v in (pos.y, pos.x))
    kept, crowded = thin_crowds(groups.id[rows], row, column)
    left_out = rows[crowded]
    rows, row, column = rows[kept], row[kept], column[kept]
    _, first, group = np.unique(groups.id[rows], return_index=True, return_inverse=True)
    group = np.argsort(np.argsort(first))[group]  # numbered in canonical order
    level = _group_mean(bg[rows], group)
    members = Members(
        source=rows,
        x=pos.x[rows],
        y=pos.y[rows],
        row=row,
        column=column,
        plane=pos.frame[rows].astype(np.intp),
        group=group,
        bg=level,
        has_constant=level != 0,
        fwhm=None if fwhm is None else fwhm[rows],
        shape=shape,
        r=r,
    )
    return members, left_out


def _reaches_image(
    frame: Frame, pos: Positions, rows: NDArray[np.intp], shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """Whether the stamps of sources have pixels in the image."""
    reaches = np.ones(len(rows), np.bool_)
    for v, size, length in zip((pos.y, pos.x), shape, frame.shape, strict=True):
        pixel = np.rint(v[rows])
        reaches &= (pixel >= -(size // 2)) & (pixel < length + size // 2)
    return reaches


def thin_crowds(
    group: NDArray[np.int64], row: NDArray[np.intp], column: NDArray[np.intp]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """`MAX_CROWD` members of a group in each square, and all in fuller ones.

    The first ones on their pixels come first: others may lie on the spot of a crowd.
    """
    on_pixel, _ = _places(np.arange(len(group)), group, row, column)
    place, count = _places(on_pixel, group, row // CROWD, column // CROWD)
    return place < MAX_CROWD, count > MAX_CROWD


def _places(order: NDArray[np.intp], *keys: NDArray) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Place of each element among those with the same keys, and how many these are."""
    by_key = np.lexsort((order, *keys))
    changed = (np.diff(np.stack(keys)[:, by_key]) != 0).any(axis=0)
    start = np.flatnonzero(np.append(len(order) > 0, changed))
    size = np.diff(start, append=len(order))
    place, count = np.empty(len(order), np.intp), np.empty(len(order), np.intp)
    place[by_key] = np.arange(len(order)) - np.repeat(start, size)
    count[by_key] = np.repeat(size, size)
    return place, count


def _group_mean(values: NDArray[np.float64], group: NDArray[np.intp]) -> NDArray[np.float64]:
    """Mean of the finite values of each member's group; 0 if there is none."""
    finite = np.isfinite(values)
    total = group_sums(np.where(finite, values, 0), group)
    count = group_sums(finite.astype(np.float64), group)
    return (total / np.maximum(count, 1))[group]


def all_pairs(members: Members) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs i < j of members of one group whose stamps overlap, sorted, found band by band."""
    height, width = members.shape
    line = members.row + members.plane * (int(members.row.max(initial=0)) + height)
    pairs = []
    for band in chunks(len(members), 1, BAND):
        stop = np.searchsorted(line, line[band.stop - 1] + height)
        part = slice(band.start, stop)
        i, j = overlapping_pairs(
            line[part], members.column[part], members.group[part], (height, width)
        )
        mine = i < band.stop - band.start
        pairs.append((i[mine] + band.start, j[mine] + band.start))
    if not pairs:
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    i, j = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return i, j
