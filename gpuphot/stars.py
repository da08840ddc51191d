"""The stars of an image among what is detected on it: which ones, how wide, which are hidden."""

from __future__ import annotations

import math

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .detect import detect_objects
from .models.psf import PSFModel
from .rendering import render_psf_image

ENOUGH = 10
"""Stars, below which the choice is less strict."""

_BRIGHTEST_PERCENTILE = 98
_MOST = 100
_CORE = 0.3
"""Pixels above this part of the peak are fitted: the half maximum lies well within them."""

_NEAREST = 1.0
"""In FWHM from a known star: what is left nearer to it speaks of its own model."""
_LEFT = 0.1
"""Of the light of the known stars: what is less may be an error of the PSF."""


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

    Where hardly any are, as in an image of a few stars, unflagged objects have to do.

    Parameters
    ----------
    found, shape, edge
        As in `suitable_stars`.

    Returns
    -------
    Table
    """
    stars = found[suitable_stars(found, shape, edge)]
    if len(stars) < ENOUGH:
        stars = found[(found["flags"] == 0) & (found["flux"] > 0)]
    return stars[np.argsort(-stars["flux"], kind="stable")[:_MOST]]


def estimate_fwhm(
    data: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64], width: float
) -> float:
    """FWHM of stars: the median of Gaussians fitted to their cores.

    The logarithm of a circular Gaussian is linear in its parameters, centre and height included,
    so that a weighted linear least-squares fit gives its width (Guo 2011, IEEE Signal Process.
    Mag. 28, 134; weights are the squares of the pixels).

    Parameters
    ----------
    data : (H, W) float64 array
        Image without its background.
    x, y : (N,) float64 arrays
        Positions of the stars.
    width : float
        A first guess of the FWHM in pixels: boxes twice as wide are looked at.

    Returns
    -------
    float
        In pixels; NaN if no star gives a width.
    """
    half = max(2, math.ceil(width))
    pixels = _boxes(data, x, y, half)
    offsets = np.arange(-half, half + 1.0)
    dx, dy = np.broadcast_arrays(offsets, offsets[:, None])
    peak = pixels[:, half - 1 : half + 2, half - 1 : half + 2].max(axis=(1, 2), initial=0)
    used = pixels > _CORE * peak[:, None, None]
    weights = np.where(used, pixels, 0) ** 2
    logs = np.log(pixels, where=used & (pixels > 0), out=np.zeros_like(pixels))
    terms = np.stack([np.ones_like(dx), dx, dy, dx**2 + dy**2], axis=-1).reshape(-1, 4)
    weighted = weights.reshape(len(pixels), -1, 1) * terms
    normal = weighted.transpose(0, 2, 1) @ terms
    right = (weighted * logs.reshape(len(pixels), -1, 1)).sum(axis=1)
    solvable = np.linalg.cond(normal) < 1e12
    curvature = np.linalg.solve(normal[solvable], right[solvable, :, None])[:, 3, 0]
    widths = 2 * np.sqrt(math.log(2) / -curvature[curvature < 0])
    return float(np.median(widths)) if len(widths) else math.nan


def _boxes(
    data: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64], half: int
) -> NDArray[np.float64]:
    """Square boxes around positions, of those that lie in the image: (M, size, size)."""
    column, row = np.rint(x).astype(int), np.rint(y).astype(int)
    height, width = data.shape
    inside = (row >= half) & (row < height - half) & (column >= half) & (column < width - half)
    offsets = np.arange(-half, half + 1)
    rows = row[inside, None, None] + offsets[:, None]
    return data[rows, column[inside, None, None] + offsets]


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
        than a tenth of the light of the known stars there.
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
    return found[(distance > _NEAREST * psf.fwhm) & (found["peak"] > _LEFT * light[row, column])]
