"""SEP's conventions: the bits of its flags, and what its primitives take and return.

SEP rounds every pixel to single precision when it reads it. The planes of a `Frame` for these
primitives are float32 therefore, and everything is computed from them in double precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .frame import Array
from .psf import PSFModel

FWHM_PER_SIGMA = 2.354820045
"""SEP's value, in the profile of its optimal sums."""

SUBPIX = 5
"""Sub-pixels along the side of a pixel of apertures and annuli."""

MARGIN = 0.7072
"""In pixels, half the diagonal of one as SEP has it: a pixel whose centre lies so far inside of a
circle, or outside, is not split to sub-pixels."""

MIN_SIGMA = 2.0 / 2.35 * 0.5
"""Of the narrowest window of centroids, in pixels."""

SAMPLES = 4
"""Along the side of a pixel, of a Gaussian to be fitted. Stamps are sums of samples, of which those
that the border of a pixel cuts count by their part: two make fluxes 0.7 % wrong, four 0.2 %."""

MAX_EXACT_GROUP = 32
"""Members of the largest group whose optimal sums SEP solves exactly."""

HALO = 10
"""Typical FWHM, so many of them, from a part of a large group to the farthest members that are
solved for together with it."""

MAX_FIT_GROUP = 64
"""Members of the largest group whose PSFs SEP fits all at the same time."""


class SepFlag:
    """Bits that SEP's routines raise, int64 in all primitives."""

    TRUNCATED = 16  # the aperture or the stamp crosses the border of the image
    HAS_MASKED = 32  # some of its pixels are masked
    ALL_MASKED = 64  # all of them are, or there is none
    NON_POSITIVE = 128  # the weighted sum of a centroid is not positive


@dataclass(frozen=True)
class SepSums:
    """Aperture or optimal sums, each of shape (N,); NaN, and 0 for `flag`, for rows not valid.

    Attributes
    ----------
    flux : float64
    fluxerr : float64, standard deviation of `flux`
    flag : int64, `SepFlag` bits
    """

    flux: Array
    fluxerr: Array
    flag: Array


@dataclass(frozen=True)
class AnnulusMeans:
    """Mean backgrounds in annuli, each of shape (N,).

    Attributes
    ----------
    level : float64, clipped mean of the annulus per pixel; NaN where there is none
    error : float64, standard deviation of the level as SEP estimates it; NaN where there is none
    area : float64, unmasked pixels of the annulus before clipping; 0 where there are none
    """

    level: Array
    error: Array
    area: Array


@dataclass(frozen=True)
class FitOptions:
    """How PSFs are fitted; see `gpuphot.measure_objects_sep`.

    Attributes
    ----------
    maxiter : int
        Steps at most, above 0.
    fit_positions : bool
        Whether positions are fitted along with the fluxes.
    fit_radius : float
        Distance in pixels up to which pixels are used; 0 for the whole stamp.
    damp_snthresh : float
        Signal-to-noise ratio below which steps are damped; 0 for none.
    group_factor : float
        Size of the surroundings that SEP fits along in parts of large groups.
    """

    maxiter: int
    fit_positions: bool
    fit_radius: float
    damp_snthresh: float
    group_factor: float


@dataclass(frozen=True)
class PSFFits:
    """Fitted PSFs, each of shape (N,).

    For rows not valid: NaN, and 0 for the integers.

    Attributes
    ----------
    flux, fluxerr : float64
    x, y : float64, fitted positions, or those of the input
    flag : int64, `SepFlag` bits
    chi2 : float64, reduced chi-squared; NaN if no positions were fitted
    n_iter : int64, steps
    """

    flux: Array
    fluxerr: Array
    x: Array
    y: Array
    flag: Array
    chi2: Array
    n_iter: Array


def sampled_gaussian(fwhm: float) -> PSFModel:
    """A Gaussian on planes, for routines that know no other models.

    Parameters
    ----------
    fwhm : float
        In pixels.

    Returns
    -------
    PSFModel
        On a square of four FWHM, as ``sep_x.PSF.from_gaussian`` makes it with its `oversampling`
        of `SAMPLES`.
    """
    size = SAMPLES * (math.ceil(4 * fwhm) // 2 * 2 + 1)
    offset = (np.arange(size) - size // 2) / SAMPLES
    sigma = fwhm / FWHM_PER_SIGMA
    values = np.exp(-(offset**2 + offset[:, None] ** 2) / (2 * sigma * sigma))
    plane = values / values.sum()
    return PSFModel(plane[None], sampling=1 / SAMPLES, width=size, height=size, fwhm=float(fwhm))
