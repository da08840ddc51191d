"""Grouped optimal sums; twin of ``numpy_backend.group_fit``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cupy
import numpy as np

from gpuphot.models.frame import Frame, Groups, OptimalSums, Positions
from gpuphot.models.groups import CORE
from gpuphot.models.psf import PSFModel, gaussian_size

from .blocks import NormalEquations, group_totals, solve_groups
from .launch import launch, workspace_items
from .members import Members, make_members, reaches_image

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
    npix = cupy.zeros(n, cupy.int64)
    singular, in_crowd = cupy.zeros(n, cupy.bool_), cupy.zeros(n, cupy.bool_)
    half_row, half_column = (cupy.full(n, size // 2, cupy.int32) for size in psf.stamp_shape)
    if fwhm is not None:
        half_row = half_column = (gaussian_size(fwhm) // 2).astype(cupy.int32)
    grouped = pos.valid & (groups.size > 1) & reaches_image(frame, pos, half_row, half_column)
    for of_class, half in _classes(grouped, half_row, half_column, fwhm is not None):
        members, crowded = make_members(
            frame, pos, groups, of_class, half_row, half_column, half, r, bg, fwhm
        )
        in_crowd |= crowded
        fit = _fit(frame, members, psf)
        i = members.source
        flux[i], fluxerr[i], chi2[i], norm[i] = fit.flux, fit.fluxerr, fit.chi2, fit.norm
        npix[i], singular[i] = fit.npix, fit.singular
    npix = cupy.where(in_crowd, 0, npix)
    chi2, norm = (cupy.where(in_crowd, cupy.nan, values) for values in (chi2, norm))
    singular |= in_crowd
    flux, fluxerr = (cupy.where(singular, cupy.nan, values) for values in (flux, fluxerr))
    return OptimalSums(flux, fluxerr, npix, chi2, norm, singular)


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


def _fit(frame: Frame, members: Members, psf: PSFModel) -> OptimalSums:
    """Optimal sums of the members."""
    equations = _normal_equations(frame, members, psf)
    halo = cupy.maximum(3.0 * cupy.maximum(members.half_row, members.half_column), CORE)
    solution = solve_groups(equations, members.x, members.y, halo)
    chi2 = _residuals(frame, members, psf, solution.flux, solution.constant)
    seen = equations.power > 0
    npix, n_seen, chi2 = (
        group_totals(values, members.group_begin, members.group_end)
        for values in (equations.own_area, seen.astype(cupy.float64), chi2)
    )
    freedom = npix - n_seen - equations.has_constant
    return OptimalSums(
        flux=cupy.where(seen, solution.flux, cupy.nan),
        fluxerr=cupy.where(seen, cupy.sqrt(solution.variance), cupy.nan),
        npix=npix.astype(cupy.int64),
        chi2=cupy.where(freedom > 0, chi2 / cupy.maximum(freedom, 1), cupy.nan),
        norm=cupy.where(npix > 0, equations.light, cupy.nan),
        singular=solution.singular & seen,
    )


def _parts(members: Members) -> Iterator[tuple[slice, int, int]]:
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


def _normal_equations(frame: Frame, members: Members, psf: PSFModel) -> NormalEquations:
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


def _residuals(frame: Frame, members: Members, psf: PSFModel, flux: Any, constant: Any) -> Any:
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
