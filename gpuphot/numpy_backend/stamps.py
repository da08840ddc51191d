"""Stamps of a point spread function: what a star of flux 1 puts into the pixels around it.

A stamp of a model made of planes is their combination, resampled on the pixels of the image by a
cubic spline. Both steps are linear, so the spline's prefilter is applied to the planes, once per
model; and the resampling is separable: one set of weights along each axis, which depend on the
phase of the position within its pixel only. Separable is also the light of the whole stamp, which
is therefore known without the pixels that nobody asked for.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from gpuphot.models import psf as models
from gpuphot.models.psf import SPLINE_AFTER, SPLINE_BEFORE, PSFModel, gaussian_size

from .chunks import chunks


def psf_stamps(
    psf: PSFModel,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    half_size: int | None = None,
    fwhm: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Stamps of the PSF at positions, each of sum 1, or their central parts.

    The pixel (rows // 2, columns // 2) of a stamp is the image pixel that the position is
    rounded to, halves to even; the star is off its centre by what was rounded.

    Parameters
    ----------
    psf : PSFModel
    x, y : (N,) float64 arrays
        Positions in 0-based pixel centres.
    half_size : int, optional
        Return only the pixels up to so many rows and columns from the central one, in an array
        of ``2 * half_size + 1`` pixels a side, or less where the whole stamp has less. Their
        values are those that they have in the whole stamp.
    fwhm : (N,) float64 array, optional
        FWHM of each source's own Gaussian, in place of that of a Gaussian `psf`. Needs a
        `half_size`, which then decides the shape alone: pixels beyond a source's own stamp are 0.

    Returns
    -------
    (N, rows, columns) float64 array
        NaN where the position is not finite.
    """
    stamps = np.empty((len(x), *psf.core_shape(half_size, fwhm is not None)))
    valid = np.isfinite(x) & np.isfinite(y)
    x, y = np.where(valid, x, 0), np.where(valid, y, 0)
    if psf.planes is not None:
        for part in chunks(len(x), _workspace(psf, stamps.shape[1:])):
            _resampled_stamps(psf, x[part], y[part], stamps[part])
    else:
        fwhm = np.full(len(x), psf.fwhm) if fwhm is None else fwhm
        for part in chunks(len(x), math.prod(stamps.shape[1:])):
            _gaussian_stamps(fwhm[part], x[part], y[part], stamps[part])
    stamps[~valid] = np.nan
    return stamps


def _gaussian_stamps(fwhm: NDArray, x: NDArray, y: NDArray, out: NDArray) -> None:
    rows, columns = (
        gaussian_profile(fwhm, v - np.rint(v), length // 2).T
        for v, length in zip((y, x), out.shape[1:], strict=True)
    )
    np.multiply(rows[:, :, None], columns[:, None, :], out=out)


def gaussian_profile(
    fwhm: NDArray[np.float64], phase: NDArray[np.float64], half_size: int
) -> NDArray[np.float64]:
    """Light of Gaussians in the pixels of a row, as a part of that in the row of a whole stamp.

    Parameters
    ----------
    fwhm, phase : (n,) float64 arrays
        Widths, and positions within the central pixel.
    half_size : int
        Pixels on either side of the central one.

    Returns
    -------
    (2 * half_size + 1, n) float64 array
    """
    end = gaussian_size(fwhm) / 2
    edges = np.clip(np.arange(-half_size, half_size + 2)[:, None] - 0.5, -end, end)
    light = erf((np.vstack([edges, -end, end]) - phase) * (2 * math.sqrt(math.log(2)) / fwhm))
    return np.diff(light[:-2], axis=0) / (light[-1] - light[-2])


def _workspace(psf: PSFModel, shape: tuple[int, ...]) -> int:
    """Elements of temporary arrays of one stamp: a quarter of its nodes, rows and pixels.

    With so few stamps at once that all of them fit the cache, the calls would take most of the
    time.
    """
    assert psf.planes is not None
    height, width = (n + SPLINE_BEFORE + SPLINE_AFTER for n in psf.planes.shape[1:])
    return (height * width + shape[0] * width + shape[0] * shape[1]) // 4


def _resampled_stamps(psf: PSFModel, x: NDArray, y: NDArray, out: NDArray) -> None:
    n = len(x)
    # Sources lie along the last axis, whose length decides no rounding if it is not 1.
    x, y = (np.resize(v, max(n, 2)) for v in (x, y))
    nodes = np.einsum("bn,bhw->hwn", _plane_weights(psf, x, y), _spline_coefficients(psf))
    rows, columns = (_taps(psf, axis, v - np.rint(v)) for axis, v in enumerate((y, x)))
    # Sums of sums: the light of all pixels, made or not.
    total = np.einsum("hn,hwn->wn", rows.sums(len(nodes)), nodes)
    total = np.einsum("wn,wn->n", total, columns.sums(len(total)))
    rows, columns = rows.central(out.shape[1]), columns.central(out.shape[2])
    # Under one name, so that what is no longer needed makes room.
    nodes = rows.resample(nodes[rows.span, columns.span])
    nodes = columns.resample(nodes.swapaxes(0, 1)).swapaxes(0, 1)
    nodes /= np.where(np.isfinite(total) & (total > 0), total, 1)
    height, width = nodes.shape[:2]
    out[:, :height, :width] = nodes.transpose(2, 0, 1)[:n]
    # Behind the centre of a side of even length there is a pixel less than before it.
    out[:, height:] = 0
    out[:, :, width:] = 0


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

    @functools.cached_property
    def kinds(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Pixels that differ in how they lie on their nodes, and which of these each one is like.

        Those that a phase can move out of the model are like no other.
        """
        ends = np.concatenate([self.points(np.array([phase])) for phase in (0.5, -0.5)], axis=1)
        inside = self.is_inside(ends).all(axis=(1, 2))
        offset = self.points(np.zeros(1))[:, 0, 0] - self.nodes[0]
        key = np.where(inside, offset, -1 - np.arange(self.n_pixels))
        return np.unique(key, return_index=True, return_inverse=True)[1:]

    def is_inside(self, points: NDArray) -> NDArray[np.bool_]:
        return (points >= 0) & (points <= self.n_model - 1)

    def weights(self, phase: NDArray) -> NDArray[np.float64]:
        """Weights of the nodes in every pixel; (n_pixels, n_nodes, n).

        Points outside the model have none: there is no light.
        """
        kind, like = self.kinds
        points = self.points(phase)[kind]
        inside = self.is_inside(points)
        first, count = self.nodes
        node = first[kind, None] + np.arange(count) - SPLINE_BEFORE
        weights = np.zeros((len(kind), count, len(phase)))
        for k in range(self.n_sub):
            point = np.where(inside[:, k], points[:, k], np.inf)
            weights += _cubic_spline(np.abs(point[:, None, :] - node[:, :, None]))
        return weights[like]


def _cubic_spline(distance: NDArray) -> NDArray[np.float64]:
    """The cubic B-spline at distances from its centre."""
    outer, inner = np.maximum(2 - distance, 0), np.maximum(1 - distance, 0)
    return (outer * outer * outer - 4 * (inner * inner * inner)) / 6


@dataclass(frozen=True)
class _Taps:
    """The spline nodes in the pixels along one axis of n stamps.

    Attributes
    ----------
    first : (n_pixels,) integer array
        First node of each pixel.
    weights : (n_pixels, n_nodes, n) float64 array
        Of the nodes from there on.
    """

    first: NDArray[np.intp]
    weights: NDArray[np.float64]

    @property
    def span(self) -> slice:
        """The nodes that are needed."""
        return slice(self.first[0], self.first[-1] + self.weights.shape[1])

    def central(self, length: int) -> _Taps:
        """Those of so many pixels around the centre, as far as there are so many."""
        start = len(self.first) // 2 - length // 2
        return _Taps(self.first[start : start + length], self.weights[start : start + length])

    def sums(self, length: int) -> NDArray[np.float64]:
        """Sums over the pixels of each node's weights; (length, n)."""
        sums = np.zeros((length, self.weights.shape[2]))
        for first, weights in zip(self.first, self.weights, strict=True):
            sums[first : first + len(weights)] += weights
        return sums

    def resample(self, nodes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pixels along the first axis, made of the nodes of the span."""
        pixels = np.empty((len(self.first), *nodes.shape[1:]))
        for first, weights, out in zip(
            self.first - self.first[0], self.weights, pixels, strict=True
        ):
            np.einsum("kn,kwn->wn", weights, nodes[first : first + len(weights)], out=out)
        return pixels


def _taps(psf: PSFModel, axis: int, phase: NDArray[np.float64]) -> _Taps:
    grid = _grid(psf, axis)
    return _Taps(grid.nodes[0], grid.weights(phase))


@functools.lru_cache(maxsize=32)
def _grid(psf: PSFModel, axis: int) -> _Grid:
    assert psf.planes is not None
    return _Grid(psf.stamp_shape[axis], psf.planes.shape[1 + axis], psf.n_sub, psf.sampling)
