"""A PSF that varies over the image, fitted to stars: the pixels of `psf_builder`.

Every star is cut out of the image, freed of its neighbours and its background, resampled on the
pixels of the model around its centre and scaled to a flux of 1. In every pixel of the model, a
polynomial in the position is then fitted to what the stars have there. Steps and constants are
those of stdpipe's ``create_psf_model``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from .polynomial import n_terms, polynomial_terms
from .psf import PSFModel

Background = Literal["none", "median", "plane"]

_FWHM_PER_SIGMA = 2.3548
_REACH = 5
"""Distance in sigmas up to which the light of a neighbour matters."""
_SAME_STAR = 0.5
"""Distance in pixels, along both axes, below which an entry of the catalogue is the star itself."""
_MAX_MASKED = 0.1
"""Stars are dropped if more than this fraction of their pixels is masked."""
_MIN_VALID = 0.99
"""A pixel of the model is used if unmasked pixels have at least this weight in it."""
_BORDER = 2
_WEIGHTS = 0.3, 5.0
"""Range of the weights of stars, which are their fluxes in units of the median."""
_MAX_REJECTIONS = 3
_CLIP = 3.0
_MAD_TO_SIGMA = 1.4826
_FAINT = 0.02
"""Fraction of the peak below which the outer parts of the model are faded out."""


@dataclass(frozen=True)
class Stars:
    """Stars of a catalogue.

    Attributes
    ----------
    x, y : (N,) float64 arrays
        Finite positions in 0-based pixel centres.
    flux : (N,) float64 array
        Finite, or NaN where unknown.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    flux: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: NDArray | slice) -> Stars:
        return Stars(self.x[rows], self.y[rows], self.flux[rows])


@dataclass(frozen=True)
class _Stamps:
    """Stars on the pixels of the model: (n, L, L) of sum 1, and which of their pixels count."""

    pixels: NDArray[np.float64]
    valid: NDArray[np.bool_]


def fit_polynomial_psf(
    image: NDArray[np.float64],
    mask: NDArray[np.bool_],
    stars: Stars,
    neighbours: Stars,
    *,
    fwhm: float,
    size: int,
    oversampling: int,
    degree: int,
    regularization: float,
    background: Background,
) -> PSFModel:
    """Fit a PSF whose pixels are polynomials in the position.

    Parameters
    ----------
    image : (H, W) float64 array
    mask : (H, W) bool array
        True where a pixel does not count. Other pixels that are not finite disqualify a star.
    stars : Stars
        The stars that the model is made of.
    neighbours : Stars
        Stars whose light is subtracted, as Gaussians; those without a positive flux are ignored.
    fwhm : float
        Of the neighbours, in pixels.
    size : int
        Rows and columns of the cutouts, odd.
    oversampling : int
        Model pixels per image pixel.
    degree : int
        Of the polynomial.
    regularization : float
        Added to the diagonal of the normal equations.
    background : {"none", "median", "plane"}
        What is subtracted from every cutout, as found in its two outermost pixels.

    Returns
    -------
    PSFModel
        The first plane has the sum 1, the others 0.

    Raises
    ------
    ValueError
        If fewer stars are usable than the polynomial has terms.
    """
    length = size * oversampling
    length += 1 - length % 2
    sampling = 1 / oversampling
    offset = (np.arange(length, dtype=np.float64) - (length - 1) / 2) * sampling
    cutouts, masked, stars = _cut_out(image, mask, stars, size)
    _subtract_light(cutouts, stars, neighbours, fwhm / _FWHM_PER_SIGMA)
    cutouts[masked] = 0
    _subtract_background(cutouts, masked, background)
    stamps, usable = _resample(cutouts, masked, stars, offset)
    stars = stars[usable]
    if len(stars) < n_terms(degree):
        raise ValueError(
            f"obj must have at least {n_terms(degree)} usable stars for degree={degree}, got "
            f"{len(stars)}: with the whole stamp of size={size} in the image, at most a tenth of "
            "it masked, its other pixels finite, and a positive flux"
        )
    half_height, half_width = image.shape[0] / 2, image.shape[1] / 2
    dx, dy = (stars.x - half_width) / half_width, (stars.y - half_height) / half_height
    terms = polynomial_terms(dx, dy, degree)
    planes, kept = _fit_planes(stamps, terms, _weights_of(stars), regularization)
    planes = _fade_out(planes, stamps, kept, sampling, fwhm)
    planes.flags.writeable = False
    return PSFModel(
        planes=planes,
        sampling=sampling,
        width=length,
        height=length,
        fwhm=fwhm,
        degree=degree,
        x0=half_width,
        y0=half_height,
        sx=half_width,
        sy=half_height,
    )


def _cut_out(
    image: NDArray[np.float64], mask: NDArray[np.bool_], stars: Stars, size: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_], Stars]:
    """Pixels and masks (n, size, size) of the stars that have them all, most of them unmasked."""
    half = size // 2
    x, y = np.rint(stars.x), np.rint(stars.y)
    inside = (x >= half) & (x < image.shape[1] - half) & (y >= half) & (y < image.shape[0] - half)
    stars = stars[inside]
    row, column = (v[inside].astype(np.intp)[:, None] + np.arange(-half, half + 1) for v in (y, x))
    pixels = row[:, :, None], column[:, None, :]
    masked = mask[pixels]
    clean = masked.sum(axis=(1, 2)) <= _MAX_MASKED * size**2
    return image[pixels][clean], masked[clean], stars[clean]


def _subtract_light(
    cutouts: NDArray[np.float64], stars: Stars, neighbours: Stars, sigma: float
) -> None:
    """Subtract Gaussians at the positions of all neighbours but the star itself, in place."""
    size = cutouts.shape[1]
    pixel = np.arange(size) - size // 2
    reach = size // 2 + _REACH * sigma
    neighbours = neighbours[neighbours.flux > 0]
    peak = neighbours.flux / (2 * np.pi * sigma**2)
    for cutout, x, y in zip(cutouts, stars.x, stars.y, strict=True):
        dx, dy = neighbours.x - np.rint(x), neighbours.y - np.rint(y)
        near = (np.abs(dx) <= reach) & (np.abs(dy) <= reach)
        same = np.abs(neighbours.x - x) < _SAME_STAR
        near &= ~(same & (np.abs(neighbours.y - y) < _SAME_STAR))
        profile_x, profile_y = (
            np.exp(-((pixel - d[near, None]) ** 2) / (2 * sigma**2)) for d in (dx, dy)
        )
        cutout -= (profile_y * peak[near, None]).T @ profile_x


def _subtract_background(
    cutouts: NDArray[np.float64], masked: NDArray[np.bool_], background: Background
) -> None:
    """Subtract what the unmasked pixels at the border of each cutout have, in place."""
    if background == "none":
        return
    size = cutouts.shape[1]
    border = np.ones((size, size), np.bool_)
    width = min(_BORDER, size // 2)
    border[width:-width, width:-width] = False
    position = np.arange(size) - size // 2
    terms = np.stack([np.ones((size, size)), *np.meshgrid(position, position)], axis=-1)
    for cutout, used in zip(cutouts, border & ~masked & np.isfinite(cutouts), strict=True):
        values = cutout[used]
        if background == "plane" and len(values) >= 6:
            cutout -= terms @ _robust_plane(terms[used], values)
        elif len(values):
            cutout -= np.median(values)


def _robust_plane(terms: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients of a plane through values without their outliers."""
    keep = np.ones(len(values), np.bool_)
    for _ in range(2):
        residuals = values - terms @ _least_squares(terms[keep], values[keep])
        distance = np.abs(residuals - np.median(residuals[keep]))
        limit = _CLIP * _MAD_TO_SIGMA * np.median(distance[keep])
        near = distance <= limit
        if not limit > 0 or near.sum() < 3 or np.array_equal(near, keep):
            break
        keep = near
    return _least_squares(terms[keep], values[keep])


def _least_squares(terms: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.lstsq(terms, values, rcond=None)[0], dtype=np.float64)


def _resample(
    cutouts: NDArray[np.float64],
    masked: NDArray[np.bool_],
    stars: Stars,
    offset: NDArray[np.float64],
) -> tuple[_Stamps, NDArray[np.bool_]]:
    """Stamps of sum 1 with the stars in their centres, and which of the stars have one."""
    shape = (len(stars), len(offset), len(offset))
    pixels, valid = np.empty(shape), np.ones(shape, np.bool_)
    for i, (x, y) in enumerate(zip(stars.x, stars.y, strict=True)):
        at_y, at_x = (cutouts.shape[1] // 2 + (v - np.rint(v)) + offset for v in (y, x))
        points = np.meshgrid(at_y, at_x, indexing="ij")
        map_coordinates(cutouts[i], points, pixels[i], order=3, mode="constant")
        if masked[i].any():
            unmasked = (~masked[i]).astype(np.float64)
            weight = map_coordinates(unmasked, points, order=1, mode="constant", cval=1)
            valid[i] = weight > _MIN_VALID
    total = pixels.sum(axis=(1, 2))
    usable = np.isfinite(total) & (total > 0)
    return _Stamps(pixels[usable] / total[usable, None, None], valid[usable]), usable


def _weights_of(stars: Stars) -> NDArray[np.float64]:
    """Brighter stars count more, for they are less noisy; those of unknown flux count as 1."""
    known = stars.flux > 0
    weights = np.ones(len(stars))
    if known.any():
        weights[known] = stars.flux[known] / np.median(stars.flux[known])
    return np.clip(weights, *_WEIGHTS)


def _fit_planes(
    stamps: _Stamps,
    terms: NDArray[np.float64],
    weights: NDArray[np.float64],
    regularization: float,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Planes (B, L, L) that fit the stamps, and the stamps that are no outliers, after clipping."""
    n, *shape = stamps.pixels.shape
    pixels, valid = stamps.pixels.reshape(n, -1), stamps.valid.reshape(n, -1)
    squares = weights[:, None] ** 2 * (np.ones((n, 1)) if valid.all() else valid)
    keep = np.ones(n, np.bool_)
    for rejections in range(_MAX_REJECTIONS + 1):
        planes = _ridge(terms[keep], pixels[keep], squares[keep], regularization)
        if rejections == _MAX_REJECTIONS:
            break
        near = _near_ones((pixels - terms @ planes) * valid, valid, keep)
        if near.sum() == keep.sum() or near.sum() < terms.shape[1]:
            break
        keep = near
    return planes.reshape(-1, *shape), keep


def _near_ones(
    residuals: NDArray[np.float64], valid: NDArray[np.bool_], keep: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which stamps are fitted about as well as most of those that were kept."""
    rms = np.sqrt((residuals**2).sum(axis=1) / np.maximum(valid.sum(axis=1), 1))
    median = np.median(rms[keep])
    spread = _MAD_TO_SIGMA * np.median(np.abs(rms[keep] - median))
    return keep if spread < 1e-15 else rms < median + _CLIP * spread


def _ridge(
    terms: NDArray[np.float64],
    pixels: NDArray[np.float64],
    squares: NDArray[np.float64],
    regularization: float,
) -> NDArray[np.float64]:
    """Coefficients (B, P) of the terms in all pixels.

    Parameters
    ----------
    terms : (n, B) float64 array
    pixels : (n, P) float64 array
    squares : (n, P) or (n, 1) float64 array
        Squared weights.
    regularization : float
    """
    n, n_planes = terms.shape
    products = (terms[:, :, None] * terms[:, None, :]).reshape(n, -1)
    normal = (squares.T @ products).reshape(-1, n_planes, n_planes)
    normal += regularization * np.eye(n_planes)
    moments = ((squares * pixels).T @ terms)[:, :, None]
    try:
        coefficients = np.linalg.solve(normal, moments)
    except np.linalg.LinAlgError:  # Without regularization: too few stars have some pixel
        coefficients = np.linalg.pinv(normal) @ moments
    return np.asarray(coefficients[:, :, 0].T, dtype=np.float64)


def _fade_out(
    planes: NDArray[np.float64],
    stamps: _Stamps,
    kept: NDArray[np.bool_],
    sampling: float,
    fwhm: float,
) -> NDArray[np.float64]:
    """Planes without the noise far from the star, and with the sums 1, 0, 0, ..."""
    typical = _masked_median(stamps.pixels[kept], stamps.valid[kept])
    window = _window(typical, sampling, fwhm)
    template = np.maximum(typical * window, 0)
    template = template if template.sum() > 0 else window
    planes = planes * window
    missing = -planes.sum(axis=(1, 2))
    missing[0] += 1
    return planes + missing[:, None, None] * (template / template.sum())


def _masked_median(pixels: NDArray[np.float64], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Medians over the stamps; 0 where none is valid."""
    pixels = np.where(valid.any(axis=0), np.where(valid, pixels, np.nan), 0)
    return np.asarray(np.nanmedian(pixels, axis=0))


def _window(typical: NDArray[np.float64], sampling: float, fwhm: float) -> NDArray[np.float64]:
    """1 in the middle, falling like a cosine to 0 at the nearest edge, from where it is faint."""
    position = (np.arange(len(typical)) - (len(typical) - 1) / 2) * sampling
    radius = np.sqrt(position**2 + position[:, None] ** 2)
    edge = position[-1]
    lowest = max(1.25 * fwhm, sampling)
    highest = max(1.25 * fwhm, edge - 2 * sampling)
    start = float(np.clip(_faint_radius(typical, radius, sampling, 0.75 * edge), lowest, highest))
    if start >= edge:
        return np.ones_like(typical)
    phase = np.clip((radius - start) / (edge - start), 0, 1)
    return np.where(radius < edge, 0.5 * (1 + np.cos(np.pi * phase)), 0)


def _faint_radius(
    typical: NDArray[np.float64], radius: NDArray[np.float64], sampling: float, default: float
) -> float:
    """Middle of the first ring, as wide as a pixel of the model, whose median is faint."""
    edges = np.arange(0, radius.max() + sampling, sampling)
    ring = np.digitize(radius, edges) - 1
    for k in range(len(edges) - 1):
        values = typical[ring == k]
        if len(values) and np.median(values) <= _FAINT * typical.max():
            return (k + 0.5) * sampling
    return default
