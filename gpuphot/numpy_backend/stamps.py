"""Stamps of a point spread function: what a star of flux 1 puts into the pixels around it.

A stamp of a model made of planes is their combination, resampled on the pixels of the image by a
cubic spline. Both steps are linear, so the spline's prefilter is applied to the planes, once per
model; and the resampling is separable: one set of weights along each axis, which depend on the
phase of the position within its pixel only.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from gpuphot.models import psf as models
from gpuphot.models.psf import FWHM_PER_SIGMA, SPLINE_AFTER, SPLINE_BEFORE, PSFModel

from .chunks import chunks


def psf_stamps(
    psf: PSFModel, x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Stamps of the PSF at positions, each of sum 1.

    The pixel (rows // 2, columns // 2) of a stamp is the image pixel that the position is
    rounded to, halves to even; the star is off its centre by what was rounded.

    Parameters
    ----------
    psf : PSFModel
    x, y : (N,) float64 arrays
        Positions in 0-based pixel centres.

    Returns
    -------
    (N, rows, columns) float64 array
        NaN where the position is not finite.
    """
    stamps = np.empty((len(x), *psf.stamp_shape))
    valid = np.isfinite(x) & np.isfinite(y)
    x, y = np.where(valid, x, 0), np.where(valid, y, 0)
    make = _gaussian_stamps if psf.planes is None else _resampled_stamps
    for part in chunks(len(x), _workspace(psf)):
        make(psf, x[part], y[part], stamps[part])
    stamps[~valid] = np.nan
    return stamps


def _workspace(psf: PSFModel) -> int:
    """Elements of the largest temporary array of one stamp."""
    return math.prod(psf.stamp_shape if psf.planes is None else psf.planes.shape[1:])


def _gaussian_stamps(psf: PSFModel, x: NDArray, y: NDArray, out: NDArray) -> None:
    profile_y, profile_x = (_gaussian_profile(psf, v - np.rint(v)) for v in (y, x))
    np.multiply(profile_y[:, :, None], profile_x[:, None, :], out=out)


def _gaussian_profile(psf: PSFModel, phase: NDArray) -> NDArray[np.float64]:
    """Integrals over the pixels of a row, of sum 1; (n, width)."""
    sigma = psf.fwhm / FWHM_PER_SIGMA
    edges = np.arange(psf.width + 1) - 0.5 - (psf.width // 2 + phase)[:, None]
    profile = np.diff(0.5 * (1 + erf(edges / (math.sqrt(2) * sigma))), axis=1)
    return profile / np.einsum("np->n", profile)[:, None]


def _resampled_stamps(psf: PSFModel, x: NDArray, y: NDArray, out: NDArray) -> None:
    n = len(x)
    # Sources lie along the last axis, whose length decides no rounding if it is not 1.
    x, y = (np.resize(v, max(n, 2)) for v in (x, y))
    weights = _plane_weights(psf, x, y)
    values = np.einsum("bn,bhw->hwn", weights, _spline_coefficients(psf))
    for axis, v in enumerate((y, x)):
        values = _resample(values, _grid(psf, axis), v - np.rint(v), axis)
    total = np.einsum("hwn->n", values)
    values /= np.where(np.isfinite(total) & (total > 0), total, 1)
    out[...] = values.transpose(2, 0, 1)[:n]


@functools.lru_cache(maxsize=16)
def _spline_coefficients(psf: PSFModel) -> NDArray[np.float64]:
    assert psf.planes is not None
    return models.spline_coefficients(psf.planes)


def _plane_weights(psf: PSFModel, x: NDArray, y: NDArray) -> NDArray[np.float64]:
    """Weights of the planes, of shape (B, n), so that the light of the model is 1."""
    assert psf.planes is not None
    weights = np.ascontiguousarray(psf.weights(x, y).T)
    light = (weights * psf.planes.sum(axis=(1, 2))[:, None]).sum(axis=0)
    weights /= np.where(np.isfinite(light) & (light > 0), light, 1)
    return weights if psf.n_sub > 1 else weights / psf.sampling**2


@dataclass(frozen=True)
class _Grid:
    """How the pixels of a stamp lie on those of the model, along one axis.

    Attributes
    ----------
    n_pixels, n_model : int
        Lengths of the stamp and of the model.
    n_sub : int
        Points of the model that are summed in a pixel.
    sampling : float
        Pixels of the stamp per pixel of the model.
    """

    n_pixels: int
    n_model: int
    n_sub: int
    sampling: float

    def points(self, phase: NDArray) -> NDArray[np.float64]:
        """Coordinates in the model of the points of every pixel; (n_pixels, n_sub, n)."""
        if self.n_sub > 1:
            first = np.arange(self.n_pixels * self.n_sub, dtype=np.float64)
            return first.reshape(-1, self.n_sub, 1) - phase / self.sampling
        offset = np.arange(self.n_pixels)[:, None, None] - (self.n_pixels // 2 + phase)
        return (self.n_model - 1) / 2 + offset / self.sampling

    @functools.cached_property
    def nodes(self) -> tuple[NDArray[np.intp], int]:
        """First spline node that a pixel needs, whatever the phase, and how many it needs."""
        lowest, highest = (self.points(np.array([phase]))[..., 0] for phase in (0.5, -0.5))
        n_nodes = SPLINE_BEFORE + self.n_model + SPLINE_AFTER
        first = np.floor(lowest[:, 0]).astype(np.intp) - 1 + SPLINE_BEFORE
        last = np.floor(highest[:, -1]).astype(np.intp) + 2 + SPLINE_BEFORE
        count = min(int((last - first).max()) + 1, n_nodes)
        return np.clip(first, 0, n_nodes - count), count

    def weights(self, phase: NDArray) -> NDArray[np.float64]:
        """Weights of the nodes in every pixel; (n_pixels, n_nodes, n).

        Points outside the model have none: there is no light.
        """
        points = self.points(phase)
        inside = (points >= 0) & (points <= self.n_model - 1)
        first, count = self.nodes
        node = first[:, None] + np.arange(count) - SPLINE_BEFORE
        weights = np.zeros((self.n_pixels, count, len(phase)))
        for k in range(self.n_sub):
            point = np.where(inside[:, k], points[:, k], np.inf)
            weights += _cubic_spline(np.abs(point[:, None, :] - node[:, :, None]))
        return weights


def _cubic_spline(distance: NDArray) -> NDArray[np.float64]:
    """The cubic B-spline at distances from its centre."""
    outer, inner = np.maximum(2 - distance, 0), np.maximum(1 - distance, 0)
    return (outer * outer * outer - 4 * (inner * inner * inner)) / 6


@functools.lru_cache(maxsize=32)
def _grid(psf: PSFModel, axis: int) -> _Grid:
    assert psf.planes is not None
    return _Grid(psf.stamp_shape[axis], psf.planes.shape[1 + axis], psf.n_sub, psf.sampling)


def _resample(values: NDArray, grid: _Grid, phase: NDArray, axis: int) -> NDArray[np.float64]:
    """Stamp pixels along one axis, made of the spline nodes there."""
    values = values.swapaxes(0, axis)
    weights = grid.weights(phase)
    first, count = grid.nodes
    pixels = np.empty((grid.n_pixels, *values.shape[1:]))
    for j in range(grid.n_pixels):
        nodes = values[first[j] : first[j] + count]
        np.einsum("kn,kwn->wn", weights[j], nodes, out=pixels[j])
    return pixels.swapaxes(0, axis)
