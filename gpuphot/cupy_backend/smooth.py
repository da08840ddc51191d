"""Smooth fields fitted to values at scattered positions; twin of ``numpy_backend.smooth``."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import cupy
import numpy as np
from numpy.typing import NDArray

from gpuphot.models.smooth import (
    MAX_OFFSET,
    GridOptions,
    LoessOptions,
    cell_centres,
    cell_edges,
    loess_scales,
    smooth_cells,
)

from .launch import blocks, launch, to_device, to_host

_WARPS = 4


def loess_field(x: Any, y: Any, values: Any, used: Any, options: LoessOptions) -> Any:
    """Local linear regression at every position, fitted to the values of some."""
    field = cupy.full(len(x), cupy.nan)
    fitted, asked = cupy.flatnonzero(used), cupy.flatnonzero(cupy.isfinite(x) & cupy.isfinite(y))
    n = len(fitted)
    if n == 0:
        return field
    scales = loess_scales(*_extents(x[fitted], y[fitted]), options)
    x, y = (
        cupy.clip(v / scale, -MAX_OFFSET, MAX_OFFSET)
        for v, scale in zip((x, y), scales, strict=True)
    )
    samples = _sort_samples(x[fitted], y[fitted], values[fitted], min(options.k, n))
    # The ridge belongs to offsets in pixels.
    ridges = (options.ridge / scale / scale for scale in (1.0, *scales))
    equations = tuple(np.float64(v) for v in (options.min_bandwidth, *ridges))

    robust = cupy.ones(n)
    farthest = _farthest(samples, samples.x, samples.y, min(options.k, n - 1), leaving_out=True)
    for _ in range(options.robust_iters):
        predicted = _predict(
            samples, samples.x, samples.y, farthest, robust, equations, leaving_out=True
        )
        robust = _robust_weights(samples.value - predicted, options.robust_c)

    asked = asked[samples.order_of(x[asked], y[asked])]
    x, y = x[asked], y[asked]
    farthest = _farthest(samples, x, y, min(options.k, n), leaving_out=False)
    field[asked] = _predict(samples, x, y, farthest, robust, equations, leaving_out=False)
    return field


def _extents(x: Any, y: Any) -> tuple[tuple[float, float], tuple[float, float]]:
    """Least and largest coordinates."""
    left, right, low, high = to_host(cupy.stack([x.min(), x.max(), y.min(), y.max()])).tolist()
    return (left, right), (low, high)


@dataclass(frozen=True)
class _Samples:
    """What is fitted, in bands of equal numbers by y and sorted by x in each; n samples.

    Attributes
    ----------
    x, y : (n,) float64 arrays
        Scaled coordinates.
    value : (n,) float64 array
    rank : (n,) int32 array
        Number of each in order of y, x and value.
    low, high : (n_bands,) float64 arrays
        Least and largest y of the bands.
    band_size : int
        Samples in each band but the last.
    """

    x: Any
    y: Any
    value: Any
    rank: Any
    low: Any
    high: Any
    band_size: int

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As kernels take them."""
        numbers = (np.int32(v) for v in (len(self.x), len(self.low), self.band_size))
        return self.x, self.y, self.rank, self.low, self.high, *numbers

    def order_of(self, x: Any, y: Any) -> Any:
        """An order in which positions are near the ones before."""
        band = cupy.searchsorted(self.high, y).astype(cupy.float64)
        return cupy.lexsort(cupy.stack([x, band]))


def _sort_samples(x: Any, y: Any, value: Any, k: int) -> _Samples:
    """Samples in bands about half as high as the circles are wide that hold k of them."""
    n = len(x)
    band_size = max(32, int(sqrt(n * k) / 4))
    by_content = cupy.lexsort(cupy.stack([value, x, y]))
    x, y, value = (v[by_content] for v in (x, y, value))
    first = cupy.arange(0, n, band_size)
    low, high = y[first], y[cupy.minimum(first + band_size, n) - 1]
    rank = cupy.arange(n)
    keys = rank.astype(cupy.float64), x, (rank // band_size).astype(cupy.float64)
    order = cupy.lexsort(cupy.stack(keys))
    x, y, value = (v[order] for v in (x, y, value))
    return _Samples(x, y, value, order.astype(cupy.int32), low, high, band_size)


def _farthest(samples: _Samples, x: Any, y: Any, k: int, leaving_out: bool) -> Any:
    """The farthest of the k nearest samples of each query; -1 if there is none."""
    n = len(x)
    farthest = cupy.empty(n, cupy.int32)
    launch(
        "loess_reach",
        blocks(n, _WARPS),
        (
            x, y, np.int32(n), np.int32(leaving_out), *samples.arguments, np.int32(k), farthest,
        ),
    )  # fmt: skip
    return farthest


def _predict(
    samples: _Samples,
    x: Any,
    y: Any,
    farthest: Any,
    robust: Any,
    equations: tuple[Any, ...],
    leaving_out: bool,
) -> Any:
    """Values at queries, from their nearest samples."""
    n = len(x)
    predicted = cupy.empty(n)
    launch(
        "loess_predict",
        blocks(n, _WARPS),
        (
            x, y, np.int32(n), np.int32(leaving_out), *samples.arguments, farthest, samples.value,
            robust, *equations, predicted,
        ),
    )  # fmt: skip
    return predicted


def _robust_weights(residual: Any, robust_c: float) -> Any:
    """Tukey's biweight of residuals in units of their standard deviation; 1 for NaN."""
    finite = cupy.isfinite(residual)
    sigma = 1.4826 * median_and_deviation(residual, finite)[1] + 1e-12
    u = residual / (robust_c * sigma)
    weight = cupy.where(cupy.abs(u) < 1, cupy.square(1 - u * u), 0)
    return cupy.where(finite, weight, 1)


def median_and_deviation(values: Any, used: Any) -> tuple[Any, Any]:
    """Median of some values, and the median of their absolute deviations from it."""
    median = _median(values, used)
    return median, _median(cupy.abs(values - median), used)


def _median(values: Any, used: Any) -> Any:
    if len(values) == 0:
        return cupy.full((), cupy.nan)
    values = cupy.where(used, values, cupy.inf)
    n = cupy.count_nonzero(used)
    middle = cupy.maximum(cupy.stack([n - 1, n]), 0) // 2
    median = 0.5 * values[cupy.argsort(values)[middle]].sum()
    return cupy.where(n > 0, median, cupy.nan)


def grid_field(x: Any, y: Any, values: Any, used: Any, options: GridOptions) -> Any:
    """Medians in the cells of a grid, smoothed, and interpolated at every position."""
    field = cupy.full(len(x), cupy.nan)
    fitted, asked = cupy.flatnonzero(used), cupy.flatnonzero(cupy.isfinite(x) & cupy.isfinite(y))
    edges = cell_edges(*_extents(x[fitted], y[fitted]), options) if len(fitted) else None
    if edges is None:
        return field
    nx, ny = options.grid_shape
    column, row = (_interval(to_device(e), v[fitted]) for e, v in zip(edges, (x, y), strict=True))
    median, count = _cell_medians(row * nx + column, values[fitted], nx * ny)
    centres = cell_centres(edges[0]), cell_centres(edges[1])
    smooth = smooth_cells(median.reshape(ny, nx), count.reshape(ny, nx), *centres, options)
    cells = to_device(smooth)
    (i, along_x), (j, along_y) = (
        _between_centres(to_device(c), v[asked]) for c, v in zip(centres, (x, y), strict=True)
    )
    low, high = (cells[j + k, i] * (1 - along_x) + cells[j + k, i + 1] * along_x for k in (0, 1))
    field[asked] = low * (1 - along_y) + high * along_y
    return field


def _interval(edges: Any, v: Any) -> Any:
    """Which of the intervals between edges each value lies in, or which one is nearest."""
    return cupy.clip(cupy.searchsorted(edges, v, side="right") - 1, 0, len(edges) - 2)


def _between_centres(centres: Any, v: Any) -> tuple[Any, Any]:
    """The centre before each coordinate, and how far it is on the way to the next one."""
    i = _interval(centres, v)
    return i, (v - centres[i]) / (centres[i + 1] - centres[i])


def _cell_medians(
    cell: Any, values: Any, n_cells: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Median and number of the values in each cell, on the host."""
    cell = cell.astype(cupy.float64)
    order = cupy.lexsort(cupy.stack([values, cell]))
    begin, end = (
        cupy.searchsorted(cell[order], cupy.arange(n_cells).astype(cupy.float64), side=side)
        for side in ("left", "right")
    )
    last = cupy.maximum(end - 1, 0)
    low, high = (values[order[cupy.minimum((begin + last + k) // 2, last)]] for k in (0, 1))
    return to_host(0.5 * (low + high)), to_host(end - begin)
