"""Optimal extraction: which PSF each source has, who is fitted together, and what is reported."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from gpuphot.flags import Flag
from gpuphot.models.frame import Array, Frame, Groups, Measurement, OptimalSums, Positions
from gpuphot.models.fwhm import FWHM
from gpuphot.models.psf import PSFModel, gaussian_size

from . import inputs
from .inputs import Log

MAX_CHI2 = 1000.0
"""A reduced chi-squared above it is a poor fit."""


@dataclass(frozen=True)
class Extraction:
    """What is fitted to the sources.

    Attributes
    ----------
    psf : PSFModel
    fwhm : callable or None
        Width of each source's own Gaussian, in place of that of `psf`.
    r : float
        Radius in pixels of the circle that clips the stamps.
    grouper_radius : float or None
        Distance in pixels up to which sources are fitted together; None to fit each one alone.
    """

    psf: PSFModel
    fwhm: FWHM | None
    r: float
    grouper_radius: float | None


def measure_optimal(
    measurement: Measurement,
    frame: Frame,
    pos: Positions,
    extraction: Extraction,
    bg_local: Array,
    failed: Array,
    ops: Any,
    log: Log | None,
) -> None:
    """Append the columns of optimal extraction; sources that have `failed` get no flux."""
    xp = ops.xp
    groups = None
    if extraction.grouper_radius is not None:
        groups = ops.link_groups(pos, extraction.grouper_radius / 2)
    if log:
        how = "each on its own" if groups is None else "grouped"
        log(f"Optimal sums within {extraction.r:.2f} pixels, {how}")
    fitted, widths = _fitted_positions(frame, pos, extraction, groups, ops)
    sums = _optimal_sums(frame, fitted, extraction, groups, widths, bg_local, ops)
    if widths is not None:
        failed = failed | ~xp.isfinite(widths.of_source)
    flux = xp.where(failed, xp.nan, sums.flux)
    measurement.flags |= xp.where(xp.isfinite(flux), 0, int(Flag.NO_FIT))
    poor = sums.singular | (sums.chi2 > MAX_CHI2)
    measurement.flags |= xp.where(poor, int(Flag.POOR_FIT), 0)

    fluxerr = xp.where(failed, xp.nan, sums.fluxerr)
    measurement.add_flux("flux", flux, "Flux of the PSF that fits best")
    measurement.add_flux("fluxerr", fluxerr, "Standard deviation of flux from the pixel noise")
    integer = xp.int64
    measurement.add("npix_optimal", sums.npix, "Pixels of the fit", integer)
    measurement.add("chi2_optimal", sums.chi2, "Reduced chi-squared of the fit")
    measurement.add("norm_optimal", sums.norm, "Light of the PSF on these pixels")
    if groups is not None:
        measurement.add("group_id", groups.id, "Group of sources fitted together", integer)
        measurement.add("group_size", groups.size, "Sources in the group", integer)


@dataclass(frozen=True)
class _Widths:
    """FWHM of Gaussians, (N,): of each source, NaN where it has none, and of what it is fitted by.

    These differ in groups, which are fitted by Gaussians of the median width of their members.
    """

    of_source: Array
    of_fit: Array


def _fitted_positions(
    frame: Frame, pos: Positions, extraction: Extraction, groups: Groups | None, ops: Any
) -> tuple[Positions, _Widths | None]:
    """The positions whose stamps fit into the image, and the widths of their Gaussians, if any."""
    xp = ops.xp
    largest = min(frame.shape)
    if extraction.fwhm is None:
        rows, columns = extraction.psf.stamp_shape
        fits = rows <= frame.shape[0] and columns <= frame.shape[1]
        return replace(pos, valid=pos.valid & fits), None
    x, y, valid = ops.to_host(xp.stack([pos.x, pos.y, pos.valid.astype(xp.float64)]))
    widths = ops.to_device(inputs.read_widths(extraction.fwhm, x, y, valid != 0))
    # Compared before it is rounded to a size: a width may be larger than any integer.
    fits = (widths <= largest) & (gaussian_size(xp.where(widths <= largest, widths, 1)) <= largest)
    widths = xp.where(fits, widths, xp.nan)
    of_fit = widths if groups is None else ops.group_median(groups, widths)
    usable = xp.isfinite(of_fit)
    return replace(pos, valid=pos.valid & usable), _Widths(widths, xp.where(usable, of_fit, 1.0))


def _optimal_sums(
    frame: Frame,
    pos: Positions,
    extraction: Extraction,
    groups: Groups | None,
    widths: _Widths | None,
    bg_local: Array,
    ops: Any,
) -> OptimalSums:
    """Sums of single sources, and of groups of two and more."""
    fwhm = None if widths is None else widths.of_fit
    arguments = extraction.psf, extraction.r, bg_local, fwhm
    if groups is None:
        return ops.optimal_sums(frame, pos, *arguments)
    alone = replace(pos, valid=pos.valid & (groups.size == 1))
    single = ops.optimal_sums(frame, alone, *arguments)
    grouped = ops.grouped_optimal_sums(frame, pos, groups, *arguments)
    merged = {
        each.name: ops.xp.where(
            groups.size > 1, getattr(grouped, each.name), getattr(single, each.name)
        )
        for each in fields(OptimalSums)
    }
    return OptimalSums(**merged)
