"""What a star looks like: planes that are combined for every position, or a Gaussian.

A `PSFModel` says what is to be computed; the stamps are made by the backends (`psf_stamps`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import spline_filter

FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))

SPLINE_BEFORE, SPLINE_AFTER = 1, 2
"""Nodes that a cubic spline needs before the first and after the last pixel of a plane."""

_SAMPLING_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class PSFModel:
    """A point spread function that may vary over the image. It equals only itself.

    Attributes
    ----------
    planes : (B, h, w) float64 array or None
        Basis planes on the pixels of the model, read-only; None for a Gaussian.
    degree : int
        Of the polynomial in the position that combines the planes; 0 for a constant model.
    x0, y0, sx, sy : float
        The arguments of the polynomial are ``(x - x0) / sx`` and ``(y - y0) / sy``.
    sampling : float
        Image pixels per model pixel; below 1 if the model is finer than the image.
    width, height : int
        Nominal size in model pixels, which decides the size of interpolated stamps.
    fwhm : float
        In image pixels; NaN if unknown.
    """

    planes: NDArray[np.float64] | None
    degree: int
    x0: float
    y0: float
    sx: float
    sy: float
    sampling: float
    width: int
    height: int
    fwhm: float

    @classmethod
    def gaussian(cls, fwhm: float) -> PSFModel:
        """A circular Gaussian, integrated over the pixels.

        Parameters
        ----------
        fwhm : float
            In pixels.
        """
        if not (math.isfinite(fwhm) and fwhm > 0):
            raise ValueError(f"the FWHM of a PSF must be a positive number, got {fwhm!r}")
        size = int(gaussian_size(fwhm))
        return cls(None, 0, 0.0, 0.0, 1.0, 1.0, 1.0, size, size, float(fwhm))

    @classmethod
    def from_psfex_dict(cls, psf: Mapping[str, Any]) -> PSFModel:
        """Model from a dictionary like that of ``stdpipe.psf.load_psf``.

        Parameters
        ----------
        psf : mapping
            Must have ``data``, the planes (or a single one), and ``sampling``; for a ``degree``
            above 0 also ``x0``, ``y0``, ``sx`` and ``sy``. May have ``width``, ``height``,
            ``ncoeffs`` and ``fwhm``.

        Raises
        ------
        ValueError
            If an entry is missing or not what it should be.
        """
        degree = _integer(psf, "degree", 0, at_least=0)
        planes = _planes(psf, degree)
        x0, y0, sx, sy = 0.0, 0.0, 1.0, 1.0
        if degree:
            x0, y0 = _number(psf, "x0"), _number(psf, "y0")
            sx, sy = _scale(psf, "sx"), _scale(psf, "sy")
        sampling = _number(psf, "sampling")
        if sampling <= 0:
            raise ValueError(f"psf['sampling'] must be positive, got {sampling!r}")
        return cls(
            planes=planes,
            degree=degree,
            x0=x0,
            y0=y0,
            sx=sx,
            sy=sy,
            sampling=sampling,
            width=_integer(psf, "width", planes.shape[2], at_least=1),
            height=_integer(psf, "height", planes.shape[1], at_least=1),
            fwhm=math.nan if psf.get("fwhm") is None else _number(psf, "fwhm"),
        )

    @property
    def n_sub(self) -> int:
        """Model pixels along the side of an image pixel, if stamps are block sums of them; else 1.

        Stamps of a model with 1 are interpolated at the centres of the image pixels.
        """
        n_sub = round(1 / self.sampling)
        if self.planes is None or n_sub < 2:
            return 1
        fits = all(length % n_sub == 0 for length in self.planes.shape[1:])
        return n_sub if fits and abs(n_sub * self.sampling - 1) <= _SAMPLING_TOLERANCE else 1

    @property
    def stamp_shape(self) -> tuple[int, int]:
        """Rows and columns of a stamp; its centre lies on pixel (rows // 2, columns // 2)."""
        if self.planes is not None and self.n_sub > 1:
            return self.planes.shape[1] // self.n_sub, self.planes.shape[2] // self.n_sub
        return (
            2 * math.floor(self.height * self.sampling / 2) + 1,
            2 * math.floor(self.width * self.sampling / 2) + 1,
        )

    def weights(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weights of the planes at positions.

        Parameters
        ----------
        x, y : (N,) float64 arrays
            Positions in the image.

        Returns
        -------
        (N, B) float64 array
            Terms of the polynomial, the power of x rising first: 1, x, x^2, ..., y, x y, ...
        """
        dx, dy = (x - self.x0) / self.sx, (y - self.y0) / self.sy
        weights = np.ones((len(x), n_terms(self.degree)))
        first = 0
        power_y = np.ones(len(x))
        for q in range(self.degree + 1):
            term = power_y
            for p in range(self.degree + 1 - q):
                weights[:, first + p] = term
                term = term * dx
            first += self.degree + 1 - q
            power_y = power_y * dy
        return weights


def gaussian_size(fwhm: Any) -> Any:
    """Pixels along the side of the stamp of a Gaussian: up to 3 FWHM from its centre."""
    return 2 * np.ceil(3 * np.asarray(fwhm)).astype(np.int64) + 1


def n_terms(degree: int) -> int:
    """Number of terms of a polynomial of two variables."""
    return (degree + 1) * (degree + 2) // 2


def spline_coefficients(planes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cubic B-spline coefficients of basis planes, mirrored at the edges.

    Parameters
    ----------
    planes : (B, h, w) float64 array

    Returns
    -------
    (B, h + 3, w + 3) float64 array
        With `SPLINE_BEFORE` nodes more at the beginning and `SPLINE_AFTER` at the end of an axis.
    """
    coefficients = [spline_filter(plane, 3, np.float64, mode="mirror") for plane in planes]
    margin = (SPLINE_BEFORE, SPLINE_AFTER)
    return np.pad(np.stack(coefficients), ((0, 0), margin, margin), mode="reflect")


def _planes(psf: Mapping[str, Any], degree: int) -> NDArray[np.float64]:
    """The entry ``data`` as a read-only copy."""
    data = np.asarray(_entry(psf, "data"))
    if data.dtype.kind not in "iuf":
        raise ValueError(f"psf['data'] must hold numbers, got {data.dtype}")
    if data.ndim == 2:
        data = data[None]
    expected = n_terms(degree)
    if data.ndim != 3 or len(data) != expected or data.size == 0:
        raise ValueError(
            f"psf['data'] must be planes of shape ({expected}, h, w) for degree {degree}, "
            f"got shape {data.shape}"
        )
    if _integer(psf, "ncoeffs", expected, at_least=1) != expected:
        raise ValueError(
            f"psf['ncoeffs'] must be {expected} for degree {degree}, got {psf['ncoeffs']!r}"
        )
    if not np.isfinite(data).all():
        raise ValueError("psf['data'] must hold finite numbers, got others")
    planes = data.astype(np.float64)
    planes.flags.writeable = False
    return planes


def _entry(psf: Mapping[str, Any], key: str) -> Any:
    if psf.get(key) is None:
        raise ValueError(f"psf must have an entry '{key}', got {sorted(map(str, psf))}")
    return psf[key]


def _number(psf: Mapping[str, Any], key: str) -> float:
    entry = _entry(psf, key)
    try:
        value = float(entry)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"psf['{key}'] must be a finite number, got {entry!r}")
    return value


def _scale(psf: Mapping[str, Any], key: str) -> float:
    value = _number(psf, key)
    if value == 0:
        raise ValueError(f"psf['{key}'] must not be 0: positions are divided by it")
    return value


def _integer(psf: Mapping[str, Any], key: str, default: int, *, at_least: int) -> int:
    entry = default if psf.get(key) is None else psf[key]
    try:
        value = operator.index(entry)
    except TypeError:
        value = at_least - 1
    if value < at_least:
        raise ValueError(f"psf['{key}'] must be an integer of at least {at_least}, got {entry!r}")
    return value
