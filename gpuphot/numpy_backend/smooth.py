"""Smooth fields fitted to values at scattered positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from gpuphot.models.smooth import (
    MAX_OFFSET,
    Extent,
    GridOptions,
    LoessOptions,
    cell_centres,
    cell_edges,
    loess_scales,
    smooth_cells,
)

from .chunks import chunks, ranges

TILE = 16
"""Positions, at most, that share a list of the samples among which each finds its nearest ones."""

STEP = 32
"""Lists are filled up to multiples of this length, so that few lengths occur."""

LISTS = 4096
"""Tiles whose lists are made at once."""

ARRAYS = 2
"""Arrays of a chunk that are as large as its tiles with their lists."""

ROUNDING = 1e-6
"""Relative excess of the radii that samples are listed in, against all rounding errors."""

MAX_SHIFT = 1e3
"""Squared extent of a tile with its neighbours, in squared distances of the farthest neighbour,
that sums about the middle of the tile are moved to its positions from without loss."""

FAR = 1e160
"""Scaled coordinate of a sample that is far from everything; its square is infinite."""


def loess_field(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    values: NDArray[np.float64],
    used: NDArray[np.bool_],
    options: LoessOptions,
) -> NDArray[np.float64]:
    """Local linear regression at every position, fitted to the values of some.

    The `k` nearest samples weigh by a Gaussian as wide as the distance of the farthest of them, and
    by how well the samples around them predict their values without them. Of equally distant ones,
    those count as nearer that come first by y, x and value. Positions near each other
    share a list of the samples that may be near them.

    Parameters
    ----------
    x, y, values : (N,) float64 arrays
    used : (N,) bool array
        The rows that are fitted; their positions and values must be finite.
    options : LoessOptions

    Returns
    -------
    (N,) float64 array
        NaN where the position is not finite, everywhere if no row is used.
    """
    field = np.full(len(x), np.nan)
    fitted, others = np.flatnonzero(used), np.flatnonzero(~used & np.isfinite(x) & np.isfinite(y))
    if not len(fitted):
        return field
    fitted = fitted[np.lexsort((values[fitted], x[fitted], y[fitted]))]
    others = others[np.lexsort((x[others], y[others]))]
    scales = loess_scales(_extent(x[fitted]), _extent(y[fitted]), options)
    with np.errstate(all="ignore"):
        u, t = (
            np.clip(v / scale, -MAX_OFFSET, MAX_OFFSET)
            for v, scale in zip((x, y), scales, strict=True)
        )
        at = u[fitted], t[fitted]
        samples = _Samples(
            np.append(at[0], FAR), np.append(at[1], FAR), np.append(values[fitted], 0.0)
        )
        n = len(fitted)
        regression = _Regression(samples, options, scales)
        near = _find_neighbours(samples, *at, (min(options.k, n), min(options.k, n - 1)))
        for _ in range(options.robust_iters):
            residual = values[fitted] - regression.predict(near, without_self=True)
            regression.robust[:-1] = _robust_weights(residual, options.robust_c)
        field[fitted] = regression.predict(near)
        if len(others):
            near = _find_neighbours(samples, u[others], t[others], (min(options.k, n),))
            field[others] = regression.predict(near)
    return field


def _extent(v: NDArray[np.float64]) -> Extent:
    return float(v.min()), float(v.max())


@dataclass(frozen=True)
class _Samples:
    """What is fitted, in canonical order, and at the end a sample that is far from everything."""

    u: NDArray[np.float64]
    t: NDArray[np.float64]
    values: NDArray[np.float64]

    @property
    def last(self) -> int:
        """The one far away, which is as many as the others."""
        return len(self.u) - 1


@dataclass(frozen=True)
class _Tiles:
    """Tiles whose lists of samples are equally long.

    Attributes
    ----------
    query : (n, q) integer array
        Positions of each tile.
    listed : (n, L) int32 array
        Samples in canonical order; the one far away fills the list up.
    own : (n, q) integer array
        Place in the list of the sample that the position itself is; -1 if it is not there.
    reach : (n, q, m) float64 array
        Squared distance of the farthest neighbour: with the sample itself, without it.
    last : (n, q, m) integer array
        Place in the list of the last neighbour that is so far.
    """

    query: NDArray[np.intp]
    listed: NDArray[np.int32]
    own: NDArray[np.int32]
    reach: NDArray[np.float64]
    last: NDArray[np.int32]

    def chunks(self) -> Iterator[_Tiles]:
        """The tiles, as many at once as fit the cache."""
        for part in chunks(len(self.query), ARRAYS * self.query.shape[1] * self.listed.shape[1]):
            yield self[part]

    def __getitem__(self, part: slice | NDArray[np.bool_]) -> _Tiles:
        query, listed, own = self.query[part], self.listed[part], self.own[part]
        return _Tiles(query, listed, own, self.reach[part], self.last[part])

    def cut(self) -> _Tiles:
        """Every position as a tile of its own."""
        q, m = self.reach.shape[1:]
        query, own = self.query.reshape(-1, 1), self.own.reshape(-1, 1)
        reach, last = self.reach.reshape(-1, 1, m), self.last.reshape(-1, 1, m)
        return _Tiles(query, np.repeat(self.listed, q, axis=0), own, reach, last)


@dataclass(frozen=True)
class _Queries:
    """Positions at which the field is predicted, in canonical order, and their neighbours.

    Attributes
    ----------
    u, t : (n,) float64 arrays
    tiles : list of _Tiles
    """

    u: NDArray[np.float64]
    t: NDArray[np.float64]
    tiles: list[_Tiles]


def _find_neighbours(
    samples: _Samples,
    u: NDArray[np.float64],
    t: NDArray[np.float64],
    n_near: tuple[int, ...],
) -> _Queries:
    """So many nearest samples of positions, which are in canonical order.

    If two numbers are given, the positions are the samples; the second number is without itself.
    """
    are_samples = len(n_near) == 2
    query = _cut(u, t)
    tiles = []
    for tile, listed in _equally_long(
        *_list_samples(samples, u, t, query, n_near[-1] + are_samples), samples.last
    ):
        shape = len(tile), query.shape[1]
        reach, last = (np.empty((*shape, len(n_near)), kind) for kind in (np.float64, np.int32))
        group = _Tiles(query[tile], listed, np.full(shape, -1, np.int32), reach, last)
        for part in group.chunks():
            d2 = _squared_distances(samples, u, t, part.query, part.listed)
            # Distances are not negative: integers of the same bits have the same order.
            kth = [n_near[0] - 1, *n_near[1:]]
            part.reach[...] = np.partition(d2.view(np.int64), kth)[..., kth].view(np.float64)
            part.last[..., 0] = _last_neighbour(d2, part.reach[..., 0], n_near[0])
            if are_samples:
                part.own[...] = _place_of(part.query, part.listed)
                _leave_out(d2, part.own)
                part.last[..., 1] = _last_neighbour(d2, part.reach[..., 1], n_near[1])
        wide = _are_wide(group, u, t)
        tiles += [part for part in (group[~wide], group[wide].cut()) if len(part.query)]
    return _Queries(u, t, tiles)


def _cut(u: NDArray[np.float64], t: NDArray[np.float64]) -> NDArray[np.intp]:
    """Cut positions into tiles of equally many; the last one is repeated where some are missing."""
    n_cuts = max(0, int(np.ceil(np.log2(len(u) / TILE))))
    size = -(-len(u) >> n_cuts) << n_cuts
    tiles = np.minimum(np.arange(size), len(u) - 1)[np.newaxis]
    for _ in range(n_cuts):
        at = u[tiles], t[tiles]
        wide = np.ptp(at[0], axis=1) >= np.ptp(at[1], axis=1)
        half = tiles.shape[1] // 2
        split = np.argpartition(np.where(wide[:, np.newaxis], *at), half, axis=1)
        tiles = np.take_along_axis(tiles, split, axis=1).reshape(-1, half)
    return np.sort(tiles, axis=1)


def _boxes(
    u: NDArray[np.float64], t: NDArray[np.float64], query: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Middle and diagonal of the box around the positions of each tile."""
    at = np.stack([u[query], t[query]], axis=-1)
    low, high = at.min(axis=1), at.max(axis=1)
    return 0.5 * low + 0.5 * high, np.hypot(*(high - low).T)


def _list_samples(
    samples: _Samples,
    u: NDArray[np.float64],
    t: NDArray[np.float64],
    query: NDArray[np.intp],
    k: int,
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32]]:
    """Samples among which the positions of each tile find their k nearest ones.

    Of the samples at one position, only the first k can be neighbours of any.

    Returns
    -------
    tile, count, listed : tiles, how many samples each has, and these, tile by tile
    """
    n = samples.last
    rank = np.arange(n) - _first_of_equals(samples.u[:n], samples.t[:n])
    kept = np.flatnonzero(rank < k).astype(np.int32)
    tree = cKDTree(np.stack([samples.u[kept], samples.t[kept]], axis=1))
    found: list[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32]]] = []
    for part in chunks(len(query), 1, LISTS):
        middle, diagonal = _boxes(u, t, query[part])
        # A position finds k samples within half a diagonal more than the middle does, and these
        # lie within another half of one around the middle.
        near = np.asarray(tree.query(middle, [k], workers=-1)[0])[:, 0]
        radius = (near + diagonal) * (1 + ROUNDING)
        lists = tree.query_ball_point(middle, radius, workers=-1)
        count = np.fromiter(map(len, lists), np.intp, len(lists))
        listed = kept[np.fromiter(chain.from_iterable(lists), np.intp, int(count.sum()))]
        tile = np.arange(part.start, part.stop)
        for some, equally_long in _equally_long(tile, count, listed, n):
            equally_long.sort(axis=1)
            found += _shorten(samples, u, t, query, some, equally_long, k)
    tile, count, listed = (np.concatenate(column) for column in zip(*found, strict=True))
    return tile, count, listed


def _shorten(
    samples: _Samples,
    u: NDArray[np.float64],
    t: NDArray[np.float64],
    query: NDArray[np.intp],
    tile: NDArray[np.intp],
    listed: NDArray[np.int32],
    k: int,
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32]]]:
    """Leave out of the lists what is farther from all positions than their k nearest ones."""
    for part in chunks(len(tile), ARRAYS * query.shape[1] * listed.shape[1]):
        d2 = _squared_distances(samples, u, t, query[tile[part]], listed[part])
        d2 = d2.astype(np.float32)  # rounding keeps the order, and these are sorted faster
        near = (d2 <= np.sort(d2)[..., k - 1 : k]).any(axis=1) & (listed[part] < samples.last)
        yield tile[part], np.count_nonzero(near, axis=1), listed[part][near]


def _equally_long(
    tile: NDArray[np.intp], count: NDArray[np.intp], listed: NDArray[np.int32], fill: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.int32]]]:
    """Lists of about one length as an array, filled up, and the tiles that they belong to."""
    start = np.cumsum(count) - count
    step = np.maximum(STEP, 1 << (np.log2(count).astype(np.intp) - 3).clip(0))
    length = -(-count // step) * step
    for n in np.unique(length):
        here = np.flatnonzero(length == n)
        filled = np.full((len(here), n), fill, np.int32)
        filled[np.arange(n) < count[here, np.newaxis]] = listed[ranges(start[here], count[here])]
        yield tile[here], filled


def _squared_distances(
    samples: _Samples,
    u: NDArray[np.float64],
    t: NDArray[np.float64],
    query: NDArray[np.intp],
    listed: NDArray[np.int32],
) -> NDArray[np.float64]:
    """Squared distances (n, q, L) of the samples listed from the positions of their tiles."""
    d2 = samples.u[listed][:, np.newaxis] - u[query][..., np.newaxis]
    dt = samples.t[listed][:, np.newaxis] - t[query][..., np.newaxis]
    d2 *= d2
    dt *= dt
    d2 += dt
    return d2


def _place_of(query: NDArray[np.intp], listed: NDArray[np.int32]) -> NDArray[np.intp]:
    """Place of each query in the list of its tile; -1 where it is not there."""
    same = listed[:, np.newaxis] == query[..., np.newaxis]
    return np.where(same.any(axis=2), same.argmax(axis=2), -1)


def _leave_out(d2: NDArray[np.float64], own: NDArray[np.int32]) -> None:
    """Put the samples that the positions themselves are far away."""
    tile, place = np.nonzero(own >= 0)
    d2[tile, place, own[tile, place]] = np.inf


def _last_neighbour(
    d2: NDArray[np.float64], reach: NDArray[np.float64], k: int
) -> NDArray[np.intp]:
    """Place of the last one of the k neighbours that is as far as any; the end without ties."""
    last = np.full(reach.shape, d2.shape[2])
    tied = np.count_nonzero(d2 <= reach[..., np.newaxis], axis=2) > k
    if tied.any():
        d2, reach = d2[tied], reach[tied][:, np.newaxis]
        n_tied = k - np.count_nonzero(d2 < reach, axis=1)
        rank = np.cumsum(d2 == reach, axis=1)
        last[tied] = np.where(n_tied > 0, np.argmax(rank == n_tied[:, np.newaxis], axis=1), -1)
    return last


def _are_wide(tiles: _Tiles, u: NDArray[np.float64], t: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether positions have their neighbours so close that rounding errors would matter."""
    reach = tiles.reach
    extent = _boxes(u, t, tiles.query)[1] + np.sqrt(reach.max(axis=(1, 2)))
    return extent * extent > MAX_SHIFT * reach.min(axis=(1, 2))


class _Regression:
    """Weighted local linear regression.

    Attributes
    ----------
    robust : (n + 1,) float64 array
        Weights of the samples, apart from those by distance.
    """

    def __init__(
        self, samples: _Samples, options: LoessOptions, scales: tuple[float, float]
    ) -> None:
        self.samples = samples
        self.robust = np.ones(len(samples.u))
        self.min_reach = options.min_bandwidth**2
        # It belongs to offsets in pixels.
        self.ridge = tuple(options.ridge / scale / scale for scale in (1.0, *scales))

    def predict(self, queries: _Queries, without_self: bool = False) -> NDArray[np.float64]:
        """Values at the positions, from their neighbours; equal where the positions are equal."""
        n = len(queries.u)
        sums, middle = np.empty((n, 9)), np.empty((n, 2))
        for tiles in queries.tiles:
            for part in tiles.chunks():
                centre = _boxes(queries.u, queries.t, part.query)[0][:, np.newaxis]
                sums[part.query] = self._sums(queries, part, centre, without_self)
                middle[part.query] = centre
        values = self._solve(queries.u - middle[:, 0], queries.t - middle[:, 1], *sums.T)
        return values if without_self else values[_first_of_equals(queries.u, queries.t)]

    def _sums(
        self, queries: _Queries, tiles: _Tiles, centre: NDArray[np.float64], without_self: bool
    ) -> NDArray[np.float64]:
        """Sums (n, q, 9) of weights times terms."""
        weight = _squared_distances(self.samples, queries.u, queries.t, tiles.query, tiles.listed)
        if without_self:
            _leave_out(weight, tiles.own)
        self._weigh(weight, tiles.reach[..., int(without_self)], tiles.last[..., int(without_self)])
        terms = self._terms(tiles.listed, centre)
        robust = terms * self.robust[tiles.listed][:, np.newaxis]
        sums = weight @ robust.swapaxes(1, 2)
        rejected = ~(sums[..., :1] > 0)
        if rejected.any():
            sums = np.where(rejected, weight @ terms.swapaxes(1, 2), sums)
        return sums

    def _weigh(
        self, d2: NDArray[np.float64], reach: NDArray[np.float64], last: NDArray[np.int32]
    ) -> None:
        """Turn squared distances into weights, in place."""
        near = d2 <= reach[..., np.newaxis]
        if (last < d2.shape[2]).any():
            place = np.arange(d2.shape[2], dtype=np.int32)
            near &= (d2 < reach[..., np.newaxis]) | (place <= last[..., np.newaxis])
        d2 *= (-0.5 / np.maximum(reach, self.min_reach))[..., np.newaxis]
        np.exp(d2, out=d2)
        d2 *= near

    def _terms(self, listed: NDArray[np.int32], centre: NDArray[np.float64]) -> NDArray[np.float64]:
        """Products (n, 9, L) of offsets from the centre, and of these and the values."""
        samples = self.samples
        terms = np.empty((len(listed), 9, listed.shape[1]))
        one, u, t, uu, ut, tt, v, uv, tv = terms.swapaxes(0, 1)
        one[...] = 1.0
        v[...] = samples.values[listed]
        np.subtract(samples.u[listed], centre[..., 0], out=u)
        np.subtract(samples.t[listed], centre[..., 1], out=t)
        fill = listed == samples.last
        u[fill], t[fill] = 0.0, 0.0
        for product, a, b in ((uu, u, u), (ut, u, t), (tt, t, t), (uv, u, v), (tv, t, v)):
            np.multiply(a, b, out=product)
        return terms

    def _solve(
        self, u: NDArray[np.float64], t: NDArray[np.float64], *sums: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Values at (u, t) by the Cholesky decomposition of the normal equations there."""
        s, sx, sy, sxx, sxy, syy, sv, sxv, syv = sums
        weighted = s > 0
        sxx = sxx - u * (2 * sx - u * s)
        sxy = sxy - u * sy - t * sx + u * t * s
        syy = syy - t * (2 * sy - t * s)
        sxv, syv = sxv - u * sv, syv - t * sv
        sx, sy = sx - u * s, sy - t * s
        r, rx, ry = self.ridge
        s = s + r
        lx, ly = sx / s, sy / s
        # No pivot is less than the ridge, but for rounding errors.
        dx = np.maximum(sxx + rx - lx * sx, rx)
        lxy = sxy - lx * sy
        dy = np.maximum(syy + ry - ly * sy - lxy * lxy / dx, ry)
        bx = sxv - lx * sv
        by = (syv - ly * sv - lxy / dx * bx) / dy
        bx = (bx - lxy * by) / dx
        return np.where(weighted, (sv - sx * bx - sy * by) / s, np.nan)


def _robust_weights(residual: NDArray[np.float64], c: float) -> NDArray[np.float64]:
    """Weights of samples by their residuals: Tukey's, 1 where there is no residual."""
    finite = np.isfinite(residual)
    sigma = 1.4826 * median_and_deviation(residual, finite)[1] + 1e-12
    inlying = np.maximum(1 - np.square(residual / (c * sigma)), 0)
    return np.where(finite, inlying * inlying, 1.0)


def median_and_deviation(
    values: NDArray[np.float64], used: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Median of some values, and the median of their absolute deviations from it.

    Parameters
    ----------
    values : (N,) float64 array
    used : (N,) bool array
        Where they count.

    Returns
    -------
    median, deviation : float64 arrays of no dimensions
        NaN if no value counts.
    """
    counted = values[used]
    if not len(counted):
        return np.array(np.nan), np.array(np.nan)
    median = np.median(counted)
    return np.asarray(median), np.asarray(np.median(np.abs(counted - median)))


def _first_of_equals(u: NDArray[np.float64], t: NDArray[np.float64]) -> NDArray[np.intp]:
    """The first of the positions that equal each; they are sorted."""
    place = np.arange(len(u))
    new = (np.diff(u, prepend=np.nan) != 0) | (np.diff(t, prepend=np.nan) != 0)
    return np.maximum.accumulate(np.where(new, place, 0))


def grid_field(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    values: NDArray[np.float64],
    used: NDArray[np.bool_],
    options: GridOptions,
) -> NDArray[np.float64]:
    """Medians in the cells of a grid, smoothed, and interpolated at every position.

    Parameters
    ----------
    x, y, values : (N,) float64 arrays
    used : (N,) bool array
        The rows that are fitted; their positions and values must be finite.
    options : GridOptions

    Returns
    -------
    (N,) float64 array
        NaN where the position is not finite, everywhere if no row is used or if the grid has no
        extent.
    """
    field = np.full(len(x), np.nan)
    fitted, asked = np.flatnonzero(used), np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    edges = cell_edges(_extent(x[fitted]), _extent(y[fitted]), options) if len(fitted) else None
    if edges is None:
        return field
    nx, ny = options.grid_shape
    column, row = (_interval(e, v[fitted]) for e, v in zip(edges, (x, y), strict=True))
    median, count = _cell_medians(row * nx + column, values[fitted], nx * ny)
    centres = cell_centres(edges[0]), cell_centres(edges[1])
    cells = smooth_cells(median.reshape(ny, nx), count.reshape(ny, nx), *centres, options)
    i, j = (_interval(c, v[asked]) for c, v in zip(centres, (x, y), strict=True))
    along_x, along_y = (
        (v[asked] - c[k]) / (c[k + 1] - c[k])
        for c, v, k in zip(centres, (x, y), (i, j), strict=True)
    )
    with np.errstate(over="ignore", invalid="ignore"):  # far beyond the image
        low = cells[j, i] * (1 - along_x) + cells[j, i + 1] * along_x
        high = cells[j + 1, i] * (1 - along_x) + cells[j + 1, i + 1] * along_x
        field[asked] = low * (1 - along_y) + high * along_y
    return field


def _interval(edges: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.intp]:
    """Which of the intervals between edges each value lies in, or which one is nearest."""
    return np.clip(np.searchsorted(edges, v, side="right") - 1, 0, len(edges) - 2)


def _cell_medians(
    cell: NDArray[np.intp], values: NDArray[np.float64], n_cells: int
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Median and number of the values in every cell; 0 if there are none."""
    ordered = values[np.lexsort((values, cell))]
    count = np.bincount(cell, minlength=n_cells)
    start = np.cumsum(count) - count
    low, high = (ordered[np.minimum(start + k // 2, len(values) - 1)] for k in (count - 1, count))
    return np.where(count > 0, 0.5 * (low + high), 0.0), count
