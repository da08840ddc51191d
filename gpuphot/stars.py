"""The stars of an image among what is detected on it: which ones, how wide, which are hidden."""

from __future__ import annotations

import math

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter
from scipy.spatial import cKDTree

from .detect import detect_objects
from .models.psf import FWHM_PER_SIGMA, PSFModel
from .rendering import render_psf_image

ENOUGH = 10
"""Stars, below which the choice is less strict."""

_BRIGHTEST_PERCENTILE = 98
_MOST = 100
_FEW = 20
_CLEAR = 10
"""Signal-to-noise ratio of what is no bump of the noise."""
_CORE = 0.2
"""Pixels above this part of the peak are fitted: the half maximum lies well within them."""
_PIXEL_VARIANCE = 1 / 12
_SAME_WIDTH = 0.25
"""The PSF may vary that much over the image."""

_NEAREST = 1.0
"""In FWHM from a known star: what is left nearer to it speaks of its own model."""
_LEFT = 0.1
"""Of the light of the known stars nearby: what is less may be an error of the PSF."""


def suitable_stars(found: Table, shape: tuple[int, int], edge: float) -> NDArray[np.bool_]:
    """Which detected objects are bright, not saturated, and not cut by the edge.

    Parameters
    ----------
    found : Table of N rows
        What `detect_objects` found, with the columns ``flux`` and ``flags`` of a measurement.
    shape : (int, int)
        Height and width of the image.
    edge : float
        Distance from the image's edge that a star keeps, in pixels.

    Returns
    -------
    (N,) bool array
    """
    x, y, flux = (np.asarray(found[name]) for name in ("x", "y", "flux"))
    bright = (flux > np.nanmedian(flux)) & (flux < np.nanpercentile(flux, _BRIGHTEST_PERCENTILE))
    inside = (x > edge) & (x < shape[1] - edge) & (y > edge) & (y < shape[0] - edge)
    return bright & inside & (found["flags"] == 0) & (found["sep_flag"] == 0)


def brightest_stars(found: Table, shape: tuple[int, int], edge: float) -> Table:
    """The stars to learn the PSF from: at most 100 that are suitable, the brightest first.

    Where fewer than 20 are, as in an image of a few stars, the 20 brightest have to do that have
    no flag of the measurement, and are clearly above the noise.

    Parameters
    ----------
    found, shape, edge
        As in `suitable_stars`; here with the column ``fluxerr``, too.

    Returns
    -------
    Table
    """
    stars = found[suitable_stars(found, shape, edge)]
    most = _MOST
    if len(stars) < _FEW:
        stars = found[(found["flags"] == 0) & (found["flux"] > _CLEAR * found["fluxerr"])]
        most = _FEW
    return stars[np.argsort(-stars["flux"], kind="stable")[:most]]


def estimate_fwhm(
    data: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64], width: float
) -> float:
    """FWHM of the stars among objects: the lower quartile of their widths.

    Neighbours only widen a star, and galaxies are wider, so that the lower quartile is that of
    the stars where the median is not.

    Parameters
    ----------
    data, x, y, width
        As in `measure_widths`.

    Returns
    -------
    float
        In pixels; NaN if no object has a width.
    """
    return _typical(measure_widths(data, x, y, width))


def have_width_of_stars(
    data: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64], width: float
) -> NDArray[np.bool_]:
    """Which objects are as wide as the stars among them: no blends, galaxies and cosmic rays.

    Parameters
    ----------
    data, x, y, width
        As in `measure_widths`.

    Returns
    -------
    (N,) bool array
    """
    widths = measure_widths(data, x, y, width)
    return np.abs(widths / _typical(widths) - 1) < _SAME_WIDTH


def _typical(widths: NDArray[np.float64]) -> float:
    widths = widths[np.isfinite(widths)]
    return float(np.percentile(widths, 25)) if len(widths) else math.nan


def measure_widths(
    data: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64], width: float
) -> NDArray[np.float64]:
    """FWHM of each object, from a Gaussian fitted to its core.

    The logarithm of a Gaussian is a quadratic form, so that a weighted linear least-squares fit
    gives its shape (Guo 2011, IEEE Signal Process. Mag. 28, 134). Of an elliptical one the FWHM
    is that of a circle of the same area. The width that the pixels add is taken off.

    Gaussians of 1.5 pixels and more are recovered to 1 %, Moffat profiles of 3 pixels and more to
    5 %, mostly too wide.

    Parameters
    ----------
    data : (H, W) float64 array
        Image without its background, NaN where it is masked.
    x, y : (N,) float64 arrays
        Positions of the objects.
    width : float
        A first guess of the FWHM in pixels: boxes of that width are looked at.

    Returns
    -------
    (N,) float64 array
        In pixels; NaN where the box is cut by the edge, and for what is no peak or lights less
        than six pixels, as cosmic rays do.
    """
    half = max(2, math.ceil(width / 2))
    pixels, inside = _boxes(data, x, y, half)
    peak = pixels[:, half - 1 : half + 2, half - 1 : half + 2].max(axis=(1, 2), initial=0)
    peak = np.where(peak > 0, peak, np.nan)
    pixels = (pixels / peak[:, None, None]).reshape(-1, (2 * half + 1) ** 2)
    used = pixels > _CORE
    logs = np.log(pixels, where=used, out=np.zeros_like(pixels))
    offsets = np.arange(-half, half + 1.0)
    dx, dy = (axis.ravel() for axis in np.meshgrid(offsets, offsets))
    terms = np.stack([np.ones_like(dx), dx, dy, dx**2, dy**2, dx * dy], axis=1)
    # Noise alone would ask for squares. Higher powers leave the decision to the core: wings
    # are no Gaussians.
    weighted = np.where(used, pixels, 0)[:, :, None] ** 4 * terms
    normal = weighted.transpose(0, 2, 1) @ terms
    right = weighted.transpose(0, 2, 1) @ logs[:, :, None]
    solvable = np.linalg.cond(normal) < 1e12
    xx, yy, xy = np.linalg.solve(normal[solvable], right[solvable])[:, 3:, 0].T
    determinant = 4 * xx * yy - xy**2
    is_peak = (xx < 0) & (determinant > 0)
    variance = np.where(is_peak, determinant, np.nan) ** -0.5 - _PIXEL_VARIANCE
    widths = np.full(len(x), np.nan)
    widths[np.flatnonzero(inside)[solvable]] = FWHM_PER_SIGMA * np.sqrt(
        np.where(variance > 0, variance, np.nan)
    )
    return widths


def _boxes(
    data: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64], half: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Square boxes around the positions whose box lies in the image, and which ones these are."""
    column, row = np.rint(x), np.rint(y)
    height, width = data.shape
    inside = (row >= half) & (row < height - half) & (column >= half) & (column < width - half)
    column, row = (axis[inside, None, None].astype(int) for axis in (column, row))
    offsets = np.arange(-half, half + 1)
    return data[row + offsets[:, None], column + offsets], inside


def detect_hidden(
    data: NDArray[np.float64],
    bad: NDArray[np.bool_],
    psf: PSFModel,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    flux: NDArray[np.float64],
    *,
    threshold: float,
    bg_size: int,
    backend: str | None,
) -> Table:
    """Find the stars that the light of known ones hid: detect on the image without these.

    Parameters
    ----------
    data : (H, W) float64 array
        Image without its background.
    bad : (H, W) bool array
        Where it is masked.
    psf : PSFModel
        Of known FWHM.
    x, y, flux : (N,) float64 arrays
        The known stars; those with a value that is not finite have no light.
    threshold, bg_size, backend
        As in `measure_image`.

    Returns
    -------
    Table
        As `detect_objects` makes it, of what is neither within one FWHM of a known star nor less
        than a tenth of the light that the known stars have up to half a FWHM from it.
    """
    light = render_psf_image(psf, x, y, flux, data.shape, backend=backend)
    found = detect_objects(data - light, bad, threshold, bg_size)
    known = np.isfinite(x) & np.isfinite(y)
    positions = np.stack([found["x"], found["y"]], axis=1)
    distance, _ = cKDTree(np.stack([x[known], y[known]], axis=1)).query(positions)
    row, column = (
        np.clip(np.rint(positions[:, axis]).astype(int), 0, data.shape[1 - axis] - 1)
        for axis in (1, 0)
    )
    nearby = maximum_filter(light, 2 * math.ceil(psf.fwhm / 2) + 1)[row, column]
    return found[(distance > _NEAREST * psf.fwhm) & (found["peak"] > _LEFT * nearby)]
