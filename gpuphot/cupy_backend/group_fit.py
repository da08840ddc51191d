"""Grouped optimal sums; twin of ``numpy_backend.group_fit``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cupy
import numpy as np

from gpuphot.models.frame import Frame, Groups, OptimalSums, Positions
from gpuphot.models.groups import CORE, CROWD, MAX_CROWD
from gpuphot.models.psf import PSFModel, gaussian_size

from .blocks import NormalEquations, group_totals, solve_groups
from .launch import launch, workspace_items
from .neighbours import Neighbours, list_neighbours, runs
from .stamps import psf_stamps

_SMALLEST_CLASS = 8
"""Half size of stamps. Members with stamps up to it, up to twice it, and so on, are fitted apart,
so that one wide star does not make all stamps wide."""


def grouped_optimal_sums(
    frame: Frame,
    pos: Positions,
    groups: Groups,
    psf: PSFModel,
    r: float,
    bg: Any,
    fwhm: Any | None = None,
) -> OptimalSums:
    """Optimal sums of the sources in groups of two and more, each group fitted at once."""
    n = len(pos)
    flux, fluxerr, chi2, norm = (cupy.full(n, cupy.nan) for _ in range(4))
    npix, singular = cupy.zeros(n, cupy.int64), cupy.zeros(n, cupy.bool_)
    half_row, half_column = (cupy.full(n, size // 2, cupy.int32) for size in psf.stamp_shape)
    if fwhm is not None:
        half_row = half_column = (gaussian_size(fwhm) // 2).astype(cupy.int32)
    grouped = pos.valid & (groups.size > 1) & _reaches_image(frame, pos, half_row, half_column)
    for of_class, half in _classes(grouped, half_row, half_column, fwhm is not None):
        members, crowded = _make_members(
            frame, pos, groups, of_class, half_row, half_column, half, r, bg, fwhm
        )
        singular |= crowded
        fit = _fit(frame, members, psf)
        i = members.source
        flux[i], fluxerr[i], chi2[i], norm[i] = fit.flux, fit.fluxerr, fit.chi2, fit.norm
        npix[i], singular[i] = fit.npix, singular[i] | fit.singular
    flux, fluxerr = (cupy.where(singular, cupy.nan, values) for values in (flux, fluxerr))
    return OptimalSums(flux, fluxerr, npix, chi2, norm, singular)


def _reaches_image(frame: Frame, pos: Positions, half_row: Any, half_column: Any) -> Any:
    """Whether the stamps around valid positions have pixels in the image."""
    height, width = frame.shape
    row, column = cupy.rint(pos.y), cupy.rint(pos.x)
    return (
        (row >= -half_row) & (row < height + half_row)
        & (column >= -half_column) & (column < width + half_column)
    )  # fmt: skip


def _classes(
    grouped: Any, half_row: Any, half_column: Any, by_size: bool
) -> Iterator[tuple[Any, int]]:
    """Sources with stamps of similar size, and the largest half size among them."""
    half = cupy.maximum(half_row, half_column)
    largest = int(cupy.where(grouped, half, -1).max()) if len(half) else -1
    if largest < 0:
        return
    if not by_size:
        yield grouped, largest
        return
    low, high = -1, _SMALLEST_CLASS
    while low < largest:
        of_class = grouped & (half > low) & (half <= high)
        largest_of_class = int(cupy.where(of_class, half, -1).max())
        if largest_of_class >= 0:
            yield of_class, largest_of_class
        low, high = high, 2 * high


@dataclass(frozen=True)
class _Members:
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


def _make_members(
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
) -> tuple[_Members, Any]:
    """Members to fit, and which sources lie in crowds, most of which are left out."""
    rank = cupy.empty(len(pos), cupy.int64)
    rank[pos.order] = cupy.arange(len(pos))
    row, column = (cupy.rint(cupy.where(wanted, v, 0)).astype(cupy.int64) for v in (pos.y, pos.x))
    kept, crowded = _sparse(wanted, groups.id, row, column, rank)
    first = cupy.lexsort(cupy.stack([rank, groups.id, (~kept).astype(cupy.int64)]))
    source = first[: int(cupy.count_nonzero(kept))]
    group_begin, group_end = (v.astype(cupy.int32) for v in runs(groups.id[source]))
    row, column = (v[source].astype(cupy.int32) for v in (row, column))
    half_row, half_column = half_row[source], half_column[source]
    finite = cupy.isfinite(bg[source])
    total = group_totals(cupy.where(finite, bg[source], 0), group_begin, group_end)
    count = group_totals(finite.astype(cupy.float64), group_begin, group_end)
    return _Members(
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
        neighbours=list_neighbours(row, column, half_row, half_column, group_begin, group_end),
        half=half,
        r=r,
    ), crowded


def _sparse(wanted: Any, group: Any, row: Any, column: Any, rank: Any) -> tuple[Any, Any]:
    """The first `MAX_CROWD` wanted sources of a group in each square, and all in fuller ones."""
    squares = column // CROWD, row // CROWD
    keys = cupy.stack([rank, *squares, group, (~wanted).astype(cupy.int64)])
    order = cupy.lexsort(keys)
    sorted_keys = keys[1:, order]
    starts = cupy.ones(len(order), cupy.int64)
    starts[1:] = (sorted_keys[:, 1:] != sorted_keys[:, :-1]).any(axis=0)
    begin, end = runs(cupy.cumsum(starts))
    kept, crowded = cupy.empty(len(order), cupy.bool_), cupy.empty(len(order), cupy.bool_)
    kept[order] = cupy.arange(len(order)) - begin < MAX_CROWD
    crowded[order] = end - begin > MAX_CROWD
    return kept & wanted, crowded & wanted


def _fit(frame: Frame, members: _Members, psf: PSFModel) -> OptimalSums:
    """Optimal sums of the members."""
    equations = _normal_equations(frame, members, psf)
    halo = cupy.maximum(3.0 * cupy.maximum(members.half_row, members.half_column), CORE)
    solution = solve_groups(equations, members.x, members.y, halo)
    chi2 = _residuals(frame, members, psf, solution.flux, solution.constant)
    totals = [
        group_totals(values, members.group_begin, members.group_end)
        for values in (equations.own_area, chi2)
    ]
    npix = totals[0]
    n_terms = members.group_end - members.group_begin + equations.has_constant
    freedom = npix - n_terms
    lost = equations.power == 0
    return OptimalSums(
        flux=cupy.where(lost, cupy.nan, solution.flux),
        fluxerr=cupy.where(lost, cupy.nan, cupy.sqrt(solution.variance)),
        npix=npix.astype(cupy.int64),
        chi2=cupy.where(freedom > 0, totals[1] / cupy.maximum(freedom, 1), cupy.nan),
        norm=cupy.where(npix > 0, equations.light, cupy.nan),
        singular=solution.singular & ~lost,
    )


def _parts(members: _Members) -> Iterator[tuple[slice, int, int]]:
    """Runs of members, and those from which to which their neighbours reach.

    Stamps of members and neighbours are in memory at the same time.
    """
    n = len(members)
    step = workspace_items(9 * (2 * members.half + 1) ** 2)
    if n <= step:
        yield slice(0, n), 0, n
        return
    starts = np.arange(0, n, step)
    stops = np.minimum(starts + step, n)
    near = members.neighbours
    low, high = cupy.asnumpy(
        cupy.stack([near.begin[cupy.asarray(starts)], near.end[cupy.asarray(stops - 1)]])
    )
    for start, stop, lowest, highest in zip(starts, stops, low, high, strict=True):
        yield (
            slice(int(start), int(stop)),
            min(int(lowest), int(start)),
            max(int(highest), int(stop)),
        )


def _image_arguments(frame: Frame) -> tuple[Any, ...]:
    height, width = frame.shape
    return frame.data, frame.err, frame.bad, np.int32(height), np.int32(width)


def _normal_equations(frame: Frame, members: _Members, psf: PSFModel) -> NormalEquations:
    """Sums over pixels that determine the fluxes."""
    n, near = len(members), members.neighbours
    names = ("power", "noise", "rhs", "light", "light_noise", "own_area", "own_data", "own_noise")
    sums = {name: cupy.empty(n) for name in names}
    products, noise_products = cupy.empty(len(near.list)), cupy.empty(len(near.list))
    height, width = frame.shape
    for part, _, highest in _parts(members):
        stamps, stamp_arguments = members.stamps(psf, slice(part.start, highest))
        count = part.stop - part.start
        in_group = cupy.empty((count, *stamps.shape[1:]), cupy.uint8)
        begin = np.int32(part.start)
        launch(
            "member_sums",
            count,
            (
                *_image_arguments(frame), *members.arguments, begin, *stamp_arguments, in_group,
                *sums.values(),
            ),
        )  # fmt: skip
        launch(
            "pair_products",
            count,
            (
                frame.err, np.int32(height), np.int32(width), members.frame, members.row,
                members.column, members.half_row, members.half_column, *near.arguments, begin,
                *stamp_arguments, in_group, products, noise_products,
            ),
        )  # fmt: skip
    return NormalEquations(
        neighbours=near,
        products=products,
        noise_products=noise_products,
        **sums,
        group_begin=members.group_begin,
        group_end=members.group_end,
        has_constant=members.level != 0,
    )


def _residuals(frame: Frame, members: _Members, psf: PSFModel, flux: Any, constant: Any) -> Any:
    """Chi-squared of each member's own pixels, without what all members of its group put there."""
    chi2 = cupy.empty(len(members))
    for part, lowest, highest in _parts(members):
        _, stamp_arguments = members.stamps(psf, slice(lowest, highest))
        launch(
            "group_residuals",
            part.stop - part.start,
            (
                *_image_arguments(frame), *members.arguments, np.int32(part.start),
                *stamp_arguments, flux, constant, chi2,
            ),
        )  # fmt: skip
    return chi2
