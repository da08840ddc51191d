"""Optimal sums of groups in SEP's way; twin of ``numpy_backend.sep_group_optimal``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cupy
import numpy as np

from gpuphot.models.frame import Frame, Groups, Positions
from gpuphot.models.groups import CORE
from gpuphot.models.sep import HALO, MAX_EXACT_GROUP, AnnulusMeans, SepSums

from .blocks import GroupSolution, NormalEquations, group_totals, solve_groups
from .launch import blocks, launch, workspace_items
from .members import thin_crowds
from .neighbours import Neighbours, group_median, list_neighbours, runs
from .sep_optimal import CircleSums, circle_sums, has_profile, lines_bytes, max_lines, with_gain

_WARPS = 4
_FARTHEST = 2.0**29
"""Rows, columns and half sizes are not let above it: their sums are integers of 32 bits."""


def sep_grouped_optimal_sums(
    frame: Frame,
    pos: Positions,
    groups: Groups,
    r: Any,
    fwhm: Any,
    gain: float | None,
    annulus: AnnulusMeans | None = None,
    *,
    radius_factor: float,
) -> SepSums:
    """Optimal sums of Gaussians, the members of each group at the same time."""
    n = len(pos)
    measured = pos.valid & (groups.id > 0) & has_profile(r, fwhm)
    sums = circle_sums(frame, pos, measured, r, fwhm)
    result = SepSums(cupy.full(n, cupy.nan), cupy.full(n, cupy.nan), sums.flag)
    if not n or not bool(measured.any()):
        return result
    members = _make_members(pos, groups, measured, r, fwhm, sums)
    level, error, missing = _group_background(members, annulus)
    response, in_group = members.sums.response, members.size > 1
    flux, variance = _fit(frame, members, level)
    # Of sources alone, the background counts as their light.
    variance = with_gain(variance, cupy.where(in_group, flux, members.sums.flux), gain)
    variance = variance + cupy.square(error * response)
    result.flux[members.source] = cupy.where(missing, cupy.nan, flux)
    result.fluxerr[members.source] = cupy.where(missing, cupy.nan, cupy.sqrt(variance))
    return result


@dataclass(frozen=True)
class _Members:
    """M sources to be measured, sorted by group and, in it, canonically.

    Attributes
    ----------
    source : (M,) integer array
        Their rows among all sources.
    x, y, r, fwhm, frame : (M,) arrays
    sums : CircleSums
    begin, end : (M,) int32 arrays
        The members of each one's group.
    """

    source: Any
    x: Any
    y: Any
    r: Any
    fwhm: Any
    frame: Any
    sums: CircleSums
    begin: Any
    end: Any

    def __len__(self) -> int:
        return len(self.x)

    @property
    def size(self) -> Any:
        """Members of each one's group."""
        return self.end - self.begin

    def take(self, i: Any) -> _Members:
        """Some of the members, in the same order."""
        some = {name: getattr(self, name)[i] for name in ("source", "x", "y", "r", "fwhm", "frame")}
        begin, end = (v.astype(cupy.int32) for v in runs(self.begin[i]))
        return _Members(**some, sums=self.sums.take(i), begin=begin, end=end)


def _make_members(
    pos: Positions, groups: Groups, measured: Any, r: Any, fwhm: Any, sums: CircleSums
) -> _Members:
    columns = fwhm, r, pos.x, pos.y, groups.id.astype(cupy.float64)
    keys = [cupy.where(measured, values, cupy.inf) for values in columns]
    order = cupy.lexsort(cupy.stack([*keys, (~measured).astype(cupy.float64)]))
    source = order[: int(cupy.count_nonzero(measured))]
    begin, end = (v.astype(cupy.int32) for v in runs(groups.id[source]))
    return _Members(
        source, pos.x[source], pos.y[source], r[source], fwhm[source], pos.frame[source],
        sums.take(source), begin, end,
    )  # fmt: skip


def _group_background(members: _Members, annulus: AnnulusMeans | None) -> tuple[Any, Any, Any]:
    """Background of each member's group and its error, and which members have none of their own."""
    if annulus is None:
        nothing = cupy.zeros(len(members))
        return nothing, nothing, nothing != 0
    level, error, area = (
        values[members.source] for values in (annulus.level, annulus.error, annulus.area)
    )
    missing = ~((area > 0) & cupy.isfinite(level))
    weight, level, error = (cupy.where(missing, 0, values) for values in (area, level, error))
    total, of_level, of_error = (
        group_totals(values, members.begin, members.end)
        for values in (weight, weight * level, cupy.square(weight * error))
    )
    total = cupy.where(total > 0, total, 1)
    in_group = members.size > 1
    return (
        cupy.where(in_group, of_level / total, level),
        cupy.where(in_group, cupy.sqrt(of_error) / total, error),
        missing,
    )


def _fit(frame: Frame, members: _Members, level: Any) -> tuple[Any, Any]:
    """Flux without background and variance of each member."""
    sums = members.sums
    flux, variance = sums.flux - level * sums.response, sums.variance
    usable = sums.power > 0
    spoilt = (~usable | sums.undefined).astype(cupy.float64)
    apart = group_totals(spoilt, members.begin, members.end) > 0
    apart &= members.size <= MAX_EXACT_GROUP
    i = cupy.flatnonzero(usable & ~apart & (members.size > 1))
    if not len(i):
        return flux, variance
    row, column = (cupy.rint(v[i]).astype(cupy.int64) for v in (members.y, members.x))
    number = cupy.arange(len(i))
    kept, crowded = thin_crowds(number >= 0, members.begin[i], row, column, number)
    fitted = i[cupy.flatnonzero(kept)]
    solution = _solve(frame, members.take(fitted), flux[fitted], variance[fitted])
    flux[fitted], variance[fitted] = solution.flux, solution.variance
    unknown = cupy.zeros(len(members), cupy.bool_)
    unknown[fitted] = solution.singular
    unknown[i] |= crowded
    return tuple(cupy.where(unknown, cupy.nan, values) for values in (flux, variance))


def _solve(frame: Frame, members: _Members, flux: Any, variance: Any) -> GroupSolution:
    """Fluxes of the members together, from those of each one on its own and their variances."""
    power, nothing = 1 / variance, cupy.zeros(len(members))
    near = _neighbours(members)
    products = _pair_products(frame, members, near)
    equations = NormalEquations(
        neighbours=near, products=products, noise_products=products, power=power, noise=power,
        rhs=flux * power, light=nothing, light_noise=nothing, own_area=nothing, own_data=nothing,
        own_noise=nothing, group_begin=members.begin, group_end=members.end,
        has_constant=nothing > 0,
    )  # fmt: skip
    groups = Groups(members.begin.astype(cupy.int64) + 1, members.size.astype(cupy.int64))
    halo = cupy.minimum(HALO * group_median(groups, members.fwhm), max(frame.shape))
    halo = cupy.maximum(halo, CORE)
    return solve_groups(equations, members.x, members.y, halo)


def _neighbours(members: _Members) -> Neighbours:
    """Members whose circles may have pixels in common."""
    row, column = (
        cupy.clip(cupy.rint(v), -_FARTHEST, _FARTHEST).astype(cupy.int32)
        for v in (members.y, members.x)
    )
    half = cupy.minimum(cupy.ceil(members.r) + 1, _FARTHEST).astype(cupy.int32)
    widest = half[cupy.lexsort(cupy.stack([half, members.begin]))][members.end - 1]
    return list_neighbours(row, column, half, half, members.begin, members.end, widest)


def _pair_products(frame: Frame, members: _Members, near: Neighbours) -> Any:
    """Sums of P_i P_j / V over the pixels of both, for each neighbour in the lists."""
    products = cupy.empty(len(near.list))
    stamp_begin = cupy.zeros(len(members) + 1, cupy.int64)
    stamp_begin[1:] = cupy.cumsum(members.sums.n_pixels, dtype=cupy.int64)
    size = tuple(np.int32(length) for length in frame.shape)
    n_lines = max_lines(frame, members.r)
    for first, last, highest, n_pixels in _parts(stamp_begin, near):
        stamps = cupy.empty(n_pixels)
        launch(
            "sep_member_stamps",
            blocks(highest - first, _WARPS),
            (
                frame.err, frame.bad, *size, members.x, members.y, members.frame, members.r,
                members.fwhm, np.int32(n_lines), np.int32(first), np.int32(highest), stamp_begin,
                stamps,
            ),
            lines_bytes(n_lines),
        )  # fmt: skip
        launch(
            "sep_pair_products",
            last - first,
            (
                *size, members.x, members.y, members.r, np.int32(first), *near.arguments,
                stamp_begin, stamps, products,
            ),
        )  # fmt: skip
    return products


def _parts(stamp_begin: Any, near: Neighbours) -> Iterator[tuple[int, int, int, int]]:
    """Runs of members, to which their neighbours reach, and how many pixels their stamps have."""
    n, step = len(stamp_begin) - 1, workspace_items(8)
    total = int(stamp_begin[-1])
    if total <= step:
        yield 0, n, n, total
        return
    cuts = cupy.searchsorted(stamp_begin, cupy.arange(0, total, step), side="right") - 1
    first = np.unique(cupy.asnumpy(cuts))
    last = np.append(first[1:], n)
    highest = cupy.asnumpy(near.end[cupy.asarray(last - 1)])
    highest = np.maximum(highest, last)
    pixels = cupy.asnumpy(stamp_begin[cupy.asarray(highest)] - stamp_begin[cupy.asarray(first)])
    for values in zip(first, last, highest, pixels, strict=True):
        start, stop, farthest, size = (int(v) for v in values)
        yield start, stop, farthest, size
