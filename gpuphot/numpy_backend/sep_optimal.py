"""Optimal sums in SEP's way: pixels weigh as much as the Gaussian that they are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuphot.models.frame import Frame, Positions
from gpuphot.models.sep import SUBPIX, AnnulusMeans, SepSums

from .sep_frame import mask_of, rows_of, scattered


@np.errstate(over="ignore", invalid="ignore")
def sep_optimal_sums(
    frame: Frame,
    pos: Positions,
    r: NDArray[np.float64],
    fwhm: NDArray[np.float64],
    gain: float | None,
    annulus: AnnulusMeans | None = None,
) -> SepSums:
    """Optimal sums of Gaussians, each source on its own; ``sep_x.sum_circle_optimal``.

    The Gaussian, integrated over the pixels, is fitted to those that have one of their sub-pixels
    in a circle, each of which weighs as the inverse of its variance.

    Parameters
    ----------
    frame : Frame
    pos : Positions
    r : (N,) float64 array
        Radii of the circles in pixels.
    fwhm : (N,) float64 array
        Of the Gaussians, in pixels.
    gain : float or None
        Electrons per count, for the sources' Poisson noise; None for none.
    annulus : AnnulusMeans, optional
        Backgrounds to subtract.

    Returns
    -------
    SepSums
        0 where no pixel is usable. NaN without a radius or a width, and without a background if
        backgrounds are subtracted.
    """
    rows = rows_of(pos, pos.valid & has_profile(r, fwhm))
    circles = pos.x[rows], pos.y[rows], r[rows], fwhm[rows]
    flux, fluxerr, flag = circle_sums(frame, frame.data[0], *circles, gain=gain)
    if annulus is not None:
        level, error = annulus.level[rows], annulus.error[rows]
        response, _, _ = circle_sums(frame, constant(frame), *circles)
        flux = flux - level * response
        fluxerr = with_error(fluxerr, error * response, level)
    sums = flux, fluxerr, flag
    return SepSums(*(scattered(len(pos), rows, values) for values in sums))


def has_profile(r: NDArray[np.float64], fwhm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether there are a radius and a width; SEP raises an exception where not."""
    return (r >= 0) & (fwhm > 0)


def constant(frame: Frame) -> NDArray[np.float32]:
    """A background of 1: the flux that it makes is how fluxes respond to a background."""
    return np.ones(frame.shape, np.float32)


def circle_sums(
    frame: Frame,
    data: NDArray[np.float32],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    r: NDArray[np.float64],
    fwhm: NDArray[np.float64],
    **options: Any,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """SEP's flux, error and flags from an image with the noise and the mask of the frame."""
    import sep_x

    flux, fluxerr, flag = sep_x.sum_circle_optimal(
        data, x, y, r, fwhm=fwhm, err=frame.err[0], mask=mask_of(frame), subpix=SUBPIX, **options
    )
    return flux, fluxerr, flag.astype(np.int64)


def with_error(
    fluxerr: NDArray[np.float64], of_level: NDArray[np.float64], level: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Errors with what that of the background adds; NaN where there is no background."""
    total = np.sqrt(np.square(fluxerr) + np.square(of_level))
    return np.where(np.isnan(level), np.nan, total)
