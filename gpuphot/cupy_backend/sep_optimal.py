"""Optimal sums in SEP's way; twin of ``numpy_backend.sep_optimal``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cupy
import numpy as np

from gpuphot.models.frame import Frame, Positions
from gpuphot.models.sep import AnnulusMeans, SepSums

from .launch import as_bytes, blocks, launch

_WARPS = 4
_LINE_BYTES = 3 * 8
_MAX_LINES = 128
"""Columns, or rows, that a warp tabulates; the pixels of wider circles do without."""


def sep_optimal_sums(
    frame: Frame,
    pos: Positions,
    r: Any,
    fwhm: Any,
    gain: float | None,
    annulus: AnnulusMeans | None = None,
) -> SepSums:
    """Optimal sums of Gaussians, each source on its own."""
    measured = pos.valid & has_profile(r, fwhm)
    sums = circle_sums(frame, pos, measured, r, fwhm)
    flux, variance = sums.flux, with_gain(sums.variance, sums.flux, gain)
    if annulus is not None:
        flux = flux - annulus.level * sums.response
        of_level = cupy.where(cupy.isnan(annulus.level), cupy.nan, annulus.error * sums.response)
        variance = variance + of_level * of_level
    return SepSums(flux, cupy.sqrt(variance), sums.flag)


def has_profile(r: Any, fwhm: Any) -> Any:
    """Whether there are a radius and a width."""
    return (r >= 0) & (fwhm > 0)


@dataclass(frozen=True)
class CircleSums:
    """Sums over the circles of N sources; NaN, and 0 for integers, for those not measured.

    P is the Gaussian, D the data and V the variance of the pixels.

    Attributes
    ----------
    product, power, light : (N,) float64 arrays
        Sums of P D / V, P P / V and P / V over the usable pixels.
    n_pixels : (N,) int64 array
        Pixels of the box around the circle.
    undefined : (N,) bool array
        Whether V is NaN in a pixel that is not masked.
    flag : (N,) int64 array
    """

    product: Any
    power: Any
    light: Any
    n_pixels: Any
    undefined: Any
    flag: Any

    def take(self, i: Any) -> CircleSums:
        """Those of some sources."""
        return CircleSums(**{name: values[i] for name, values in vars(self).items()})

    def _over_power(self, values: Any) -> Any:
        return values / cupy.where(self.power == 0, cupy.inf, self.power)

    @property
    def flux(self) -> Any:
        """Flux of each source on its own; 0 where no pixel is usable."""
        return self._over_power(self.product)

    @property
    def variance(self) -> Any:
        """Variance of `flux` from the pixel noise."""
        return self._over_power(cupy.ones(len(self.power)))

    @property
    def response(self) -> Any:
        """Flux that a background of 1 makes."""
        return self._over_power(self.light)


def circle_sums(frame: Frame, pos: Positions, measured: Any, r: Any, fwhm: Any) -> CircleSums:
    """Sums over the circles of the sources that are to be measured."""
    n = len(pos)
    sums = CircleSums(
        product=cupy.empty(n),
        power=cupy.empty(n),
        light=cupy.empty(n),
        n_pixels=cupy.empty(n, cupy.int64),
        undefined=cupy.empty(n, cupy.bool_),
        flag=cupy.empty(n, cupy.int64),
    )
    height, width = frame.shape
    n_lines = max_lines(frame, cupy.where(measured, r, 0))
    launch(
        "sep_optimal_sums",
        blocks(n, _WARPS),
        (
            frame.data, frame.err, frame.bad, np.int32(height), np.int32(width), pos.x, pos.y,
            pos.frame, r, fwhm, as_bytes(measured), np.int32(n), np.int32(n_lines), sums.product,
            sums.power, sums.light, sums.n_pixels, as_bytes(sums.undefined), sums.flag,
        ),
        lines_bytes(n_lines),
    )  # fmt: skip
    return sums


def max_lines(frame: Frame, r: Any) -> int:
    """Columns, or rows, of the widest circle, or of the widest one that is tabulated."""
    widest = min(float(r.max()) if len(r) else 0.0, _MAX_LINES)
    return min(2 * math.ceil(widest) + 3, max(frame.shape), _MAX_LINES)


def lines_bytes(n_lines: int) -> int:
    """Shared memory of a block that tabulates so many columns and rows."""
    return 2 * n_lines * _LINE_BYTES * _WARPS


def with_gain(variance: Any, flux: Any, gain: float | None) -> Any:
    """Variance with the Poisson noise of the sources themselves."""
    if gain is None:
        return variance
    return variance + cupy.where(flux > 0, flux / gain, 0)
