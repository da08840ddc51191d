"""Optimal sums of groups in SEP's way: the members' Gaussians are fitted at the same time."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.spatial import cKDTree
from scipy.special import erf

from gpuphot.models.frame import Bad, Frame, Groups, Positions
from gpuphot.models.groups import CORE
from gpuphot.models.sep import (
    FWHM_PER_SIGMA,
    HALO,
    MARGIN,
    MAX_EXACT_GROUP,
    SUBPIX,
    AnnulusMeans,
    SepSums,
)

from .blocks import GroupSolution, NormalEquations, solve_groups
from .chunks import ranges
from .members import thin_crowds
from .neighbours import group_median
from .sep_frame import mask_of, rows_of, scattered
from .sep_optimal import circle_sums, constant, has_profile
from .sums import group_sums

CLOSE = 0.1
"""Groups with members nearer to each other, in pixels, are not left to SEP: it has no answer but
rounding errors where members coincide."""

BAND = 1 << 21
"""Pixels of the circles whose pairs are summed at once."""


@np.errstate(over="ignore", invalid="ignore")
def sep_grouped_optimal_sums(
    frame: Frame,
    pos: Positions,
    groups: Groups,
    r: NDArray[np.float64],
    fwhm: NDArray[np.float64],
    gain: float | None,
    annulus: AnnulusMeans | None = None,
    *,
    radius_factor: float,
) -> SepSums:
    """Optimal sums of Gaussians, the members of each group at the same time.

    As ``sep_x.sum_circle_optimal`` does for groups of up to 32 members. Larger groups are solved
    exactly, too, which SEP's iteration over tiles only comes near to.

    Parameters
    ----------
    frame : Frame
    pos : Positions
    groups : Groups
        Linked by ``link_groups`` with a reach of `radius_factor` times `r`.
    r : (N,) float64 array
        Radii of the circles in pixels.
    fwhm : (N,) float64 array
        Of the Gaussians, in pixels.
    gain : float or None
        Electrons per count, for the sources' Poisson noise; None for none.
    annulus : AnnulusMeans, optional
        Backgrounds to subtract; a group has the mean of its members' ones, weighted with the areas.
    radius_factor : float
        Of SEP, which links the sources anew.

    Returns
    -------
    SepSums
        NaN for members that cannot be told from others, without a radius or a width, and without
        a background if backgrounds are subtracted.

    Notes
    -----
    In a group of up to 32 with a member that has no usable pixel, each member is measured on its
    own, as SEP does. The background is subtracted there, too, which SEP forgets.
    """
    measured = pos.valid & (groups.id > 0) & has_profile(r, fwhm)
    members = _make_members(pos, groups, rows_of(pos, measured), r, fwhm)
    level, error, missing = _group_background(members, annulus)
    ones, alone = None, np.zeros(len(members))
    if annulus is not None:
        ones = constant(frame)
        alone, _, _ = circle_sums(frame, ones, *members.circles)
    flux, variance = np.empty(len(members)), np.empty(len(members))
    flag = np.empty(len(members), np.int64)
    left_to_sep = (members.size <= MAX_EXACT_GROUP) & ~_in_close_company(members)
    fit_by_sep = functools.partial(_fit_by_sep, ones=ones, radius_factor=radius_factor)
    for i, fit in ((left_to_sep, fit_by_sep), (~left_to_sep, _fit_in_blocks)):
        flux[i], variance[i], flag[i] = fit(frame, members.take(i), level[i], alone[i])
    if gain is not None:
        # Of sources alone, the background counts as their light.
        light = np.where(members.size > 1, flux, flux + level * alone)
        variance += np.where(light > 0, light / gain, 0)
    variance += np.square(error * alone)
    flux[missing] = variance[missing] = np.nan
    sums = flux, np.sqrt(variance), flag
    return SepSums(*(scattered(len(pos), members.source, values) for values in sums))


@dataclass(frozen=True)
class _Members:
    """M sources to be measured, in canonical order.

    Attributes
    ----------
    source : (M,) integer array
        Their rows among all sources.
    x, y, r, fwhm : (M,) float64 arrays
    group, size : (M,) integer arrays
        Groups from 0 on, and how many sources to be measured are in each one.
    """

    source: NDArray[np.intp]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    r: NDArray[np.float64]
    fwhm: NDArray[np.float64]
    group: NDArray[np.intp]
    size: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.x)

    @property
    def circles(self) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        """As `circle_sums` takes them."""
        return self.x, self.y, self.r, self.fwhm

    def take(self, which: NDArray) -> _Members:
        """Some of the members, groups numbered anew."""
        some = {name: values[which] for name, values in vars(self).items()}
        some["group"] = np.unique(some["group"], return_inverse=True)[1]
        return _Members(**some)

    def in_any(self, which: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether any member of each one's group is among some."""
        return np.bincount(self.group[which], minlength=len(self))[self.group] > 0


def _make_members(
    pos: Positions,
    groups: Groups,
    rows: NDArray[np.intp],
    r: NDArray[np.float64],
    fwhm: NDArray[np.float64],
) -> _Members:
    _, group, size = np.unique(groups.id[rows], return_inverse=True, return_counts=True)
    return _Members(rows, pos.x[rows], pos.y[rows], r[rows], fwhm[rows], group, size[group])


def _group_background(
    members: _Members, annulus: AnnulusMeans | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Background of each member's group and its error, and which members have none of their own."""
    if annulus is None:
        nothing = np.zeros(len(members))
        return nothing, nothing, nothing != 0
    level, error, area = (
        values[members.source] for values in (annulus.level, annulus.error, annulus.area)
    )
    missing = ~((area > 0) & np.isfinite(level))
    weight = np.where(missing, 0, area)
    level, error = (np.where(missing, 0, values) for values in (level, error))
    sums = (group_sums(v, members.group) for v in (weight, weight * level, (weight * error) ** 2))
    total, of_level, of_error = (values[members.group] for values in sums)
    total = np.where(total > 0, total, 1)
    in_group = members.size > 1
    return (
        np.where(in_group, of_level / total, level),
        np.where(in_group, np.sqrt(of_error) / total, error),
        missing,
    )


def _in_close_company(members: _Members) -> NDArray[np.bool_]:
    """Which members belong to groups with some that nearly coincide."""
    candidate = np.flatnonzero(members.size > 1)
    points = np.stack([members.x[candidate], members.y[candidate]], axis=1)
    pairs = cKDTree(points).query_pairs(CLOSE, output_type="ndarray")
    close = np.zeros(len(members), np.bool_)
    close[candidate[pairs]] = True
    return members.in_any(close)


def _fit_by_sep(
    frame: Frame,
    members: _Members,
    level: NDArray[np.float64],
    alone: NDArray[np.float64],
    ones: NDArray[np.float32] | None,
    radius_factor: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Flux without background, variance and flag of each member, fitted by SEP.

    `alone` is how the flux of each member on its own responds to a background of 1, which is `ones`
    where backgrounds are subtracted.
    """
    options: dict[str, Any] = {"grouped": True, "group_radius_factor": radius_factor}
    if not len(members):
        return level, alone, members.size
    flux, fluxerr, flag = circle_sums(frame, frame.data[0], *members.circles, **options)
    response, grouped = alone.copy(), members.size > 1
    if ones is not None and grouped.any():
        circles = members.take(grouped).circles
        response[grouped], _, _ = circle_sums(frame, ones, *circles, **options)
    return flux - level * response, np.square(fluxerr), flag


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def _fit_in_blocks(
    frame: Frame, members: _Members, level: NDArray[np.float64], alone: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """The same from normal equations, solved for groups of any size."""
    flux, fluxerr, flag = circle_sums(frame, frame.data[0], *members.circles)
    flux, variance = flux - level * alone, np.square(fluxerr)
    usable = variance > 0
    spoilt = ~usable | _sees_undefined_noise(frame, members)
    apart = members.in_any(spoilt) & (members.size <= MAX_EXACT_GROUP)
    i = np.flatnonzero(usable & ~apart)
    x, y, r, fwhm = members.take(i).circles
    i = i[np.lexsort((fwhm, r, x, y, members.group[i]))]
    row, column = (np.rint(v[i]).astype(np.intp) for v in (members.y, members.x))
    kept, crowded = thin_crowds(members.group[i], row, column)
    fitted = i[kept]
    solution = _solve(frame, members.take(fitted), flux[fitted], variance[fitted])
    flux[fitted], variance[fitted] = solution.flux, solution.variance
    unknown = np.concatenate([i[crowded], fitted[solution.singular]])
    flux[unknown] = variance[unknown] = np.nan
    return flux, variance, flag


def _sees_undefined_noise(frame: Frame, members: _Members) -> NDArray[np.bool_]:
    """Whether the noise is NaN in a pixel of the circles that is not masked."""
    import sep_x

    if not np.isnan(frame.err[0].min()):  # the quickest way to know that there is no NaN
        return np.zeros(len(members), np.bool_)
    undefined = np.isnan(frame.err[0]) & (mask_of(frame) == 0)
    x, y, r, _ = members.circles
    count, _, _ = sep_x.sum_circle(undefined, x, y, r, subpix=SUBPIX)
    return count > 0


def _solve(
    frame: Frame, members: _Members, flux: NDArray[np.float64], variance: NDArray[np.float64]
) -> GroupSolution:
    """Fluxes of the members together, from those of each one on its own and their variances."""
    i, j, products = _pair_products(frame, members)
    power, nothing = 1 / variance, np.zeros(len(members))
    equations = NormalEquations(
        i=i, j=j, products=products, noise_products=products, power=power, noise=power,
        rhs=flux * power, light=nothing, light_noise=nothing, own_area=nothing, own_data=nothing,
        own_noise=nothing, group=members.group, has_constant=nothing > 0,
    )  # fmt: skip
    groups = Groups(members.group + 1, members.size)
    halo = np.minimum(HALO * group_median(groups, members.fwhm), max(frame.shape))
    halo = np.maximum(halo, CORE)
    return solve_groups(equations, members.x, members.y, halo)


def _pair_products(frame: Frame, members: _Members) -> tuple[NDArray, NDArray, NDArray]:
    """Pairs i < j of members of one group, and sums of P_i P_j / V over pixels of both circles.

    P is a member's Gaussian and V the variance. Members are sorted by group.
    """
    height, width = frame.shape
    first_row, last_row = (
        members.group * (height + 1) + np.clip(members.y + sign * (members.r + 1), 0, height)
        for sign in (-1, 1)
    )
    band = np.cumsum(np.square(2 * np.minimum(members.r, max(height, width)) + 3)) // BAND
    begin = np.append(np.flatnonzero(np.diff(band, prepend=-1)), len(band))
    pairs = [(np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0))]
    for first, last in itertools.pairwise(begin):
        ahead = last + np.flatnonzero(first_row[last:] <= last_row[first:last].max())
        k = np.concatenate([np.arange(first, last), ahead])
        light = _light_on_pixels(frame, members, k)
        product = (light[: last - first] @ light.T.tocsr()).tocoo()
        i, j = k[product.row], k[product.col]
        keep = (i < j) & (members.group[i] == members.group[j])
        pairs.append((i[keep], j[keep], product.data[keep]))
    i, j, products = (np.concatenate(values) for values in zip(*pairs, strict=True))
    return i, j, products


def _light_on_pixels(frame: Frame, members: _Members, k: NDArray[np.intp]) -> csr_array:
    """Gaussians of the members k in units of the noise, a row each; columns are usable pixels."""
    height, width = frame.shape
    x, y, r, fwhm = (values[k] for values in members.circles)
    columns, n_columns, of_column = _lines(x, r, fwhm, width)
    rows, n_rows, of_row = _lines(y, r, fwhm, height)
    n = n_rows * n_columns
    member = np.repeat(np.arange(len(k)), n)
    number = ranges(np.zeros(len(k), np.intp), n)
    i = (np.cumsum(n_columns) - n_columns)[member] + number % n_columns[member]
    j = (np.cumsum(n_rows) - n_rows)[member] + number // n_columns[member]
    distance2 = of_column.distance2[i] + of_row.distance2[j]
    inside = distance2 <= np.square(np.maximum(r - MARGIN, 0))[member]
    touched = (of_column.nearest2[i] + of_row.nearest2[j] < np.square(r)[member]) & (
        distance2 < np.square(r + MARGIN)[member]
    )
    pixel = rows[j] * width + columns[i]
    err = frame.err.ravel()[pixel]
    variance = err * err
    usable = (frame.bad.ravel()[pixel] & Bad.MASKED == 0) & (variance > 0) & (inside | touched)
    member, pixel, i, j = (values[usable] for values in (member, pixel, i, j))
    light = 0.25 * of_column.light[i] * of_row.light[j] / np.sqrt(variance[usable], dtype=float)
    seen, place = np.unique(pixel, return_inverse=True)
    begin = np.searchsorted(member, np.arange(len(k) + 1))
    return csr_array((light, place, begin), shape=(len(k), len(seen)))


@dataclass(frozen=True)
class _Lines:
    """What columns, or rows, add to their pixels.

    Attributes
    ----------
    light : integral of the Gaussian across the column, times two
    distance2 : squared distance of its centre
    nearest2 : squared distance of the nearest centre of its sub-pixels
    """

    light: NDArray[np.float64]
    distance2: NDArray[np.float64]
    nearest2: NDArray[np.float64]


def _lines(
    centre: NDArray[np.float64], r: NDArray[np.float64], fwhm: NDArray[np.float64], length: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], _Lines]:
    """Columns of circles, or rows, one circle after the other, and how many of each."""
    begin = np.clip(np.trunc(centre - r + 0.5), 0, length).astype(np.intp)
    n = np.clip(np.trunc(centre + r + 1.4999999), 0, length).astype(np.intp) - begin
    number = ranges(begin, n)
    offset = number - np.repeat(centre, n)
    scale = np.repeat(1 / (np.sqrt(2) * (fwhm / FWHM_PER_SIGMA)), n)
    sample = offset + 0.5 * (1 / SUBPIX - 1)
    nearest2 = np.square(sample)
    for _ in range(SUBPIX - 1):
        sample += 1 / SUBPIX
        np.minimum(nearest2, np.square(sample), out=nearest2)
    light = erf((offset + 0.5) * scale) - erf((offset - 0.5) * scale)
    return number, n, _Lines(light, np.square(offset), nearest2)
