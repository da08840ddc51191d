"""Grouped optimal sums: the members of a group fitted to their pixels at the same time.

The pixels of a group lie within the aperture's radius of one of its members. All of them weigh
the same in the least-squares fit of the members' stamps; the noise enters the errors only. Here
are the sums over pixels: normal equations and residuals; `blocks` solves the equations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpuphot.models.frame import Frame, Groups, OptimalSums, Positions
from gpuphot.models.groups import CORE
from gpuphot.models.psf import PSFModel

from .blocks import NormalEquations, solve_groups
from .chunks import chunks, runs
from .members import Members, all_pairs, make_members
from .optimal import by_stamp_shape, is_usable
from .sums import group_sums, row_sums

BAND = 1 << 21
"""Pixels of the stamps that are in memory at once."""


def grouped_optimal_sums(
    frame: Frame,
    pos: Positions,
    groups: Groups,
    psf: PSFModel,
    r: float,
    bg: NDArray[np.float64],
    fwhm: NDArray[np.float64] | None = None,
) -> OptimalSums:
    """Optimal sums of the sources in groups of two and more, each group fitted at once.

    A pixel belongs to a group if it is usable, lies within `r` of one of its members and on that
    member's stamp. Where members have a local background, its mean is subtracted and a constant
    is fitted along.

    Parameters
    ----------
    frame : Frame
    pos : Positions
    groups : Groups
    psf : PSFModel
    r : float
        Radius in pixels.
    bg : (N,) float64 array
        Local background of each source; NaN where there is none.
    fwhm : (N,) float64 array, optional
        FWHM of the Gaussian of each source's group, in place of that of a Gaussian `psf`.

    Returns
    -------
    OptimalSums
        `npix` and `chi2` are those of the group. Sources that the pixels cannot tell apart, with
        a variance that the others of the group inflate more than 1e8 times, are `singular`.

    References
    ----------
    Naylor 1998, MNRAS 296, 339 (optimal sums). Groups larger than 64 are solved in blocks, see
    `blocks`.
    """
    n = len(pos)
    flux, fluxerr, chi2, norm = (np.full(n, np.nan) for _ in range(4))
    npix, singular, in_crowd = np.zeros(n, np.int64), np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    rows = pos.order[(pos.valid & (groups.size > 1))[pos.order]]
    for shape, part in by_stamp_shape(psf, fwhm, rows):
        members, crowded = make_members(frame, pos, groups, part, shape, r, bg, fwhm)
        in_crowd[crowded] = True
        fit = _fit(frame, members, psf)
        i = members.source
        flux[i], fluxerr[i], chi2[i] = fit.flux, fit.fluxerr, fit.chi2
        norm[i], npix[i] = fit.norm, fit.npix
        singular[i] = fit.singular
    npix[in_crowd] = 0
    chi2[in_crowd] = norm[in_crowd] = np.nan
    singular |= in_crowd
    flux[singular] = fluxerr[singular] = np.nan
    return OptimalSums(flux, fluxerr, npix, chi2, norm, singular)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def _fit(frame: Frame, members: Members, psf: PSFModel) -> OptimalSums:
    """Optimal sums of the members."""
    i, j = all_pairs(members)
    equations, own = _normal_equations(frame, members, psf, i, j)
    halo = max(3 * max(members.half), CORE)
    solution = solve_groups(equations, members.x, members.y, halo)
    chi2 = _residuals(frame, members, psf, i, j, own, solution.flux, solution.constant)
    npix = group_sums(equations.own_area, members.group)
    seen = equations.power > 0
    n_terms = group_sums(seen.astype(np.float64), members.group)
    n_terms += group_sums(members.has_constant.astype(np.float64), members.group) > 0
    freedom = npix - n_terms
    reduced = np.where(freedom > 0, group_sums(chi2, members.group) / freedom, np.nan)
    group = members.group
    return OptimalSums(
        flux=np.where(seen, solution.flux, np.nan),
        fluxerr=np.where(seen, np.sqrt(solution.variance), np.nan),
        npix=npix[group].astype(np.int64),
        chi2=reduced[group],
        norm=np.where(npix[group] > 0, equations.light, np.nan),
        singular=solution.singular & seen,
    )


@dataclass(frozen=True)
class _Band:
    """A run of members, and the pairs that one of them belongs to.

    `ahead` are its pairs with later members, (i, j); `around` all of them as (member of the band,
    other member), sorted by both. Numbers are those of all members.
    """

    members: slice
    ahead: slice
    around: tuple[NDArray[np.intp], NDArray[np.intp]]


def _bands(members: Members, i: NDArray[np.intp], j: NDArray[np.intp]) -> Iterator[_Band]:
    by_j = np.argsort(j, kind="stable")
    sorted_j = j[by_j]
    for part in chunks(len(members), math.prod(members.shape), BAND):
        ahead = slice(*np.searchsorted(i, (part.start, part.stop)))
        behind = by_j[slice(*np.searchsorted(sorted_j, (part.start, part.stop)))]
        one = np.concatenate([i[ahead], j[behind]])
        other = np.concatenate([j[ahead], i[behind]])
        order = np.lexsort((other, one))
        yield _Band(part, ahead, (one[order], other[order]))


def _normal_equations(
    frame: Frame, members: Members, psf: PSFModel, i: NDArray[np.intp], j: NDArray[np.intp]
) -> tuple[NormalEquations, NDArray[np.bool_]]:
    """Sums over pixels that determine the fluxes, and each member's own pixels (M, T).

    Every pixel of a group is the own pixel of its first member in reach, so that the own pixels
    of all members are the pixels of the group, each once.
    """
    n = len(members)
    names = ("power", "noise", "rhs", "light", "light_noise", "own_area", "own_data", "own_noise")
    sums = {name: np.zeros(n) for name in names}
    products, noise_products = np.zeros(len(i)), np.zeros(len(i))
    own = np.zeros((n, len(members.disc[0])), np.bool_)
    for band in _bands(members, i, j):
        k = np.arange(band.members.start, band.members.stop)
        data, variance, usable = _read_pixels(frame, members, k, members.stamp)
        union, earlier = _pixels_of_groups(members, k, band)
        union &= usable
        stars = np.union1d(k, j[band.ahead])
        stamps = members.stamps(psf, stars)
        model = np.where(union, stamps[np.searchsorted(stars, k)], 0)
        model_noise = model * variance
        sums["power"][k] = row_sums(model, model)
        sums["noise"][k] = row_sums(model, model_noise)
        sums["rhs"][k] = row_sums(model, data)
        sums["light"][k] = row_sums(model)
        sums["light_noise"][k] = row_sums(model_noise)
        disc = _disc_in_stamp(members)
        mine = members.in_circle(k) & usable[:, disc] & ~earlier[:, disc]
        own[k] = mine
        sums["own_area"][k] = np.count_nonzero(mine, axis=1)
        sums["own_data"][k] = row_sums(np.where(mine, data[:, disc], 0))
        sums["own_noise"][k] = row_sums(np.where(mine, variance[:, disc], 0))
        products[band.ahead], noise_products[band.ahead] = _pair_products(
            members, i[band.ahead], j[band.ahead], k[0], stars, model, model_noise, stamps
        )
    equations = NormalEquations(
        i=i, j=j, group=members.group, has_constant=members.has_constant,
        products=products, noise_products=noise_products, **sums,
    )  # fmt: skip
    return equations, own


def _disc_in_stamp(members: Members) -> NDArray[np.intp]:
    """Pixels of a flat stamp that the disc covers."""
    row, column = members.disc
    return (row + members.half[0]) * members.shape[1] + column + members.half[1]


def _read_pixels(
    frame: Frame,
    members: Members,
    k: NDArray[np.intp],
    offset: tuple[NDArray[np.intp], NDArray[np.intp]],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Data without local background, variance, and which pixels are usable.

    Of the pixels at an offset, in rows and columns (T,), from those of the members k; (n, T). Data
    and variance are 0 where a pixel is not usable.
    """
    height, width = frame.shape
    first = (members.plane[k] * height + members.row[k]) * width + members.column[k]
    index = first[:, None] + (offset[0] * width + offset[1])
    usable = np.ones(index.shape, np.bool_)
    cut = np.flatnonzero(
        _crosses(members.row[k], offset[0], height) | _crosses(members.column[k], offset[1], width)
    )
    row = members.row[k[cut]][:, None] + offset[0]
    column = members.column[k[cut]][:, None] + offset[1]
    usable[cut] = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    index[cut] = np.where(usable[cut], index[cut], 0)
    data, err = frame.data.ravel().take(index), frame.err.ravel().take(index)
    usable &= is_usable(frame.bad.ravel().take(index), err)
    data -= members.bg[k, None]
    if not usable.all():
        data[~usable] = err[~usable] = 0
    return data, np.multiply(err, err, out=err), usable


def _crosses(
    position: NDArray[np.intp], offset: NDArray[np.intp], length: int
) -> NDArray[np.bool_]:
    return (position + offset.min() < 0) | (position + offset.max() >= length)


def _pixels_of_groups(
    members: Members, k: NDArray[np.intp], band: _Band
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Pixels on the stamps of the members k within the radius of any, or of an earlier, member.

    Of the same group. Both of shape (n, rows * columns).
    """
    size = math.prod(members.shape)
    union = np.zeros((len(k), size), np.bool_)
    earlier = np.zeros_like(union)
    union[:, _disc_in_stamp(members)] = members.in_circle(k)
    for part in chunks(len(band.around[0]), len(members.disc[0])):
        one, other = band.around[0][part], band.around[1][part]
        pixel, hit = members.disc_on_stamp(other, one)
        hit &= members.in_circle(other)
        pixel += (one - k[0])[:, None] * size
        union.ravel()[pixel[hit]] = True
        earlier.ravel()[pixel[hit & (other < one)[:, None]]] = True
    return union, earlier


def _pair_products(
    members: Members,
    i: NDArray[np.intp],
    j: NDArray[np.intp],
    first: int,
    stars: NDArray[np.intp],
    model: NDArray[np.float64],
    model_noise: NDArray[np.float64],
    stamps: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums of products of the stamps i and j over the pixels of their group, and with the noise.

    `model` and `model_noise` are the stamps from member `first` on, cut to the pixels of the
    group; `stamps` are those of `stars`. Pairs with the same offset are summed over the same
    window.
    """
    products, noise_products = np.zeros(len(i)), np.zeros(len(i))
    n_rows, n_columns = members.shape
    model, model_noise, stamps = (
        values.reshape(-1, n_rows, n_columns) for values in (model, model_noise, stamps)
    )
    down, right = members.row[j] - members.row[i], members.column[j] - members.column[i]
    offset = down * (2 * n_columns) + right
    order = np.argsort(offset, kind="stable")
    bounds = np.flatnonzero(np.diff(offset[order])) + 1
    for same in np.split(order, bounds) if len(i) else ():
        dy, dx = int(down[same[0]]), int(right[same[0]])
        of_i = np.s_[dy:, max(dx, 0) : n_columns + min(dx, 0)]
        of_j = np.s_[: n_rows - dy, max(-dx, 0) : n_columns - max(dx, 0)]
        for part in chunks(len(same), (n_rows - dy) * (n_columns - abs(dx))):
            pair = same[part]
            one, other = i[pair] - first, np.searchsorted(stars, j[pair])
            light = _flat(stamps[other, *of_j])
            products[pair] = row_sums(light, _flat(model[one, *of_i]))
            noise_products[pair] = row_sums(light, _flat(model_noise[one, *of_i]))
    return products, noise_products


def _flat(windows: NDArray[np.float64]) -> NDArray[np.float64]:
    return windows.reshape(len(windows), -1)


def _residuals(
    frame: Frame,
    members: Members,
    psf: PSFModel,
    i: NDArray[np.intp],
    j: NDArray[np.intp],
    own: NDArray[np.bool_],
    flux: NDArray[np.float64],
    constant: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Chi-squared of each member's own pixels, without what all members of its group put there."""
    chi2 = np.zeros(len(members))
    for band in _bands(members, i, j):
        k = np.arange(band.members.start, band.members.stop)
        one, other = (np.concatenate([k, side]) for side in band.around)
        order = np.lexsort((other, one))
        one, other = one[order], other[order]
        stars = np.unique(other)
        stamps = members.stamps(psf, stars) * flux[stars, None]
        start = np.flatnonzero(np.diff(one, prepend=-1))
        count = np.diff(start, append=len(one))
        for part in runs(count * len(members.disc[0])):
            pairs = slice(start[part.start], start[part.start] + int(count[part].sum()))
            light = _light_on_disc(members, one[pairs], other[pairs], stars, stamps)
            light = np.add.reduceat(light, start[part] - pairs.start, axis=0)
            data, variance, _ = _read_pixels(frame, members, k[part], members.disc)
            residual = data - constant[k[part], None] - light
            chi2[k[part]] = row_sums(np.where(own[k[part]], residual * residual / variance, 0))
    return chi2


def _light_on_disc(
    members: Members,
    one: NDArray[np.intp],
    other: NDArray[np.intp],
    stars: NDArray[np.intp],
    stamps: NDArray[np.float64],
) -> NDArray[np.float64]:
    """What the members `other` put on the discs around the members `one`; (n, T).

    `stamps`, times their fluxes, are those of `stars`, which include them.
    """
    pixel, hit = members.disc_on_stamp(one, other)
    pixel += np.searchsorted(stars, other)[:, None] * math.prod(members.shape)
    return np.where(hit, stamps.ravel().take(np.where(hit, pixel, 0)), 0)
