"""How much light of the stars falls into each other's apertures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuphot.models.frame import Overlaps, Positions
from gpuphot.models.overlap import box_half_size, reach, search_keys
from gpuphot.models.psf import PSFModel

from .chunks import chunks, ranges, runs, windows
from .stamps import psf_stamps
from .sums import row_sums


@np.errstate(over="ignore", invalid="ignore")  # light and stamps of absurd stars
def aperture_overlaps(
    psf: PSFModel,
    pos: Positions,
    target: NDArray[np.intp],
    r: float,
    subpix: int,
    flux: NDArray[np.float64],
    fluxerr: NDArray[np.float64],
    neighbours: bool,
) -> Overlaps:
    """Light of the models of stars in the apertures of some of them.

    A star lights an aperture with its flux times the sum of its stamp, each pixel weighing as much
    as the share of its sub-pixels that have their centre in the circle, rim included. Neighbours
    are the stars up to half a stamp and the radius away from the target.

    Parameters
    ----------
    psf : PSFModel
    pos : Positions
        Of the N stars.
    target : (M,) integer array
        Rows whose apertures are looked at.
    r : float
        Radius of the apertures in pixels.
    subpix : int
        Sub-pixels along the side of a pixel.
    flux, fluxerr : (N,) float64 arrays
        Light of each star, and its standard deviation. Stars without position or without a
        positive, finite flux have no stamp; an error that is not finite counts as 0.
    neighbours : bool
        If False, only the target's own light is summed.

    Returns
    -------
    Overlaps
    """
    distance = reach(psf, r)
    key, low, high = search_keys(pos, distance, neighbours, np)
    by_key = np.argsort(key[target], kind="stable")
    rows = target[by_key]
    valid = pos.valid[rows]
    x, y = (np.where(valid, v[rows], 0) for v in (pos.x, pos.y))
    # Of a target's own stamp, its aperture sees the core.
    core = None if neighbours else box_half_size(r, subpix)
    apertures = _make_apertures(x, y, r, subpix, psf.core_shape(core, own_widths=False))
    enclosed = np.full(len(rows), np.nan)
    light, variance = (np.where(valid, 0.0, np.nan) for _ in range(2))

    stars = np.flatnonzero(pos.valid & np.isfinite(flux) & (flux > 0))
    error = np.where(np.isfinite(fluxerr), fluxerr, 0)
    # The order in which they are summed.
    stars = stars[np.lexsort([v[stars] for v in (error, flux, pos.y, pos.x, key)])]
    begin = np.searchsorted(key[rows], low[:, stars].T)
    end = np.searchsorted(key[rows], high[:, stars].T, side="right")
    n_near = (end - begin).sum(axis=1)
    stars, begin, end, n_near = (v[n_near > 0] for v in (stars, begin, end, n_near))
    for run in runs(n_near):
        star, i = _pairs(pos, stars[run], apertures, begin[run], end[run], distance)
        share = _shares(psf, core, pos.x[stars[run]], pos.y[stars[run]], apertures, star, i)
        j = stars[run][star]
        own = rows[i] == j
        enclosed[i[own]] = share[own]
        np.add.at(light, i, flux[j] * share)
        np.add.at(variance, i, np.where(own, 0, np.square(error[j] * share)))
    restored = np.empty_like(by_key)
    restored[by_key] = np.arange(len(by_key))
    return Overlaps(enclosed[restored], light[restored], variance[restored])


def _pairs(
    pos: Positions,
    stars: NDArray[np.intp],
    apertures: _Apertures,
    begin: NDArray[np.intp],
    end: NDArray[np.intp],
    distance: float,
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Numbers of stars and apertures that are near each other, in the order of the stars.

    begin, end: (n, 3), ranges of the apertures that may be.
    """
    n = end - begin
    star, i = np.repeat(np.arange(len(stars)), n.sum(axis=1)), ranges(begin.ravel(), n.ravel())
    dx, dy = pos.x[stars][star] - apertures.x[i], pos.y[stars][star] - apertures.y[i]
    near = dx * dx + dy * dy <= distance * distance
    return star[near], i[near]


@dataclass(frozen=True)
class _Apertures:
    """M circles on pixels that have some sub-pixels along a side.

    Attributes
    ----------
    x, y : (M,) float64 arrays
    r : float
    subpix : int
    half_size : int
        Pixels that a circle may touch on either side of the central one.
    counts : (M, 2 * half_size + 1, 2 * half_size + 1) integer array or None
        Sub-pixels in the circle, for every pixel of the box around it; None if a stamp is smaller.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    r: float
    subpix: int
    half_size: int
    counts: NDArray[np.integer] | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of counts."""
        return np.min_scalar_type(self.subpix**2)

    def padded_size(self, stamp_shape: tuple[int, int]) -> int:
        """Pixels of a stamp with those around it that the box of a circle may reach."""
        margin = 0 if self.counts is None else 2 * self.half_size
        return (stamp_shape[0] + 2 * margin) * (stamp_shape[1] + 2 * margin)

    def counts_from(
        self,
        i: NDArray[np.intp] | slice,
        row: NDArray[np.intp],
        n_rows: int,
        column: NDArray[np.intp],
        n_columns: int,
    ) -> NDArray[np.integer]:
        """Sub-pixels in each circle i, for every pixel of a window.

        row, column: first pixel of the windows, counted from the central one.
        """
        above, aside = (
            _squared_distances(first, length, v[i] - np.rint(v[i]), self.subpix)
            for v, first, length in ((self.y, row, n_rows), (self.x, column, n_columns))
        )
        # Sources lie along the last axis, which is the longest.
        counts = np.zeros((n_rows, *aside.shape[1:]), self.dtype)
        for dy2 in above[:, :, None]:
            for dx2 in aside:
                counts += (dy2 + dx2 <= self.r * self.r).view(np.uint8)
        return np.ascontiguousarray(counts.transpose(2, 0, 1))


def _make_apertures(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    r: float,
    subpix: int,
    stamp_shape: tuple[int, int],
) -> _Apertures:
    apertures = _Apertures(x, y, r, subpix, box_half_size(r, subpix))
    side = 2 * apertures.half_size + 1
    if side > min(stamp_shape):
        return apertures
    counts = np.empty((len(x), side, side), apertures.dtype)
    first = np.array([-apertures.half_size])
    for part in chunks(len(x), side * side):
        counts[part] = apertures.counts_from(part, first, side, first, side)
    return replace(apertures, counts=counts)


def _squared_distances(
    first: NDArray[np.intp], n_pixels: int, phase: NDArray[np.float64], subpix: int
) -> NDArray[np.float64]:
    """Along one axis, from n positions to the sub-pixels; (subpix, n_pixels, n).

    first: first pixel, counted from the one of the position; phase: of the position in that.
    """
    centre = (np.arange(subpix) + 0.5) / subpix - 0.5
    pixel = first + np.arange(n_pixels)[:, None]
    distance = (pixel + centre[:, None, None]) - phase
    return distance * distance


def _shares(
    psf: PSFModel,
    core: int | None,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    apertures: _Apertures,
    star: NDArray[np.intp],
    i: NDArray[np.intp],
) -> NDArray[np.float64]:
    """Share of the stamp of a star that lies in aperture i, for pairs of them.

    core: half size of the part of the stamps that is needed; x, y: of the n stars; star: rising
    numbers of them.
    """
    n_rows, n_columns = shape = psf.core_shape(core, own_widths=False)
    # First pixel of the stamp, counted from the one that the circle is around.
    row, column = (
        (np.rint(v)[star] - np.rint(centre[i])).astype(np.intp) - length // 2
        for v, centre, length in ((y, apertures.y, n_rows), (x, apertures.x, n_columns))
    )
    sums_of = _sums_of_stamps if apertures.counts is None else _sums_of_boxes
    sums = np.empty(len(star))
    for part in chunks(len(x), apertures.padded_size(shape)):
        pair = slice(*np.searchsorted(star, (part.start, part.stop)))
        stamps = psf_stamps(psf, x[part], y[part], core)
        sums[pair] = sums_of(
            stamps, row[pair], column[pair], apertures, star[pair] - part.start, i[pair]
        )
    return sums / apertures.subpix**2


def _sums_of_boxes(
    stamps: NDArray[np.float64],
    row: NDArray[np.intp],
    column: NDArray[np.intp],
    apertures: _Apertures,
    star: NDArray[np.intp],
    i: NDArray[np.intp],
) -> NDArray[np.float64]:
    """For circles whose boxes are tabulated; those that miss a stamp have none of its light."""
    assert apertures.counts is not None
    margin, side = 2 * apertures.half_size, apertures.counts.shape[1]
    n, n_rows, n_columns = stamps.shape
    padded = np.zeros((n, n_rows + 2 * margin, n_columns + 2 * margin))
    padded[:, margin : margin + n_rows, margin : margin + n_columns] = stamps
    row, column = apertures.half_size - row, apertures.half_size - column
    touching = (row >= 0) & (row < n_rows + margin) & (column >= 0) & (column < n_columns + margin)
    pairs = np.flatnonzero(touching)
    sums = np.zeros(len(star))
    for part in chunks(len(pairs), side * side):
        k = pairs[part]
        counts = apertures.counts[i[k]].reshape(len(k), -1).astype(np.float64)
        sums[k] = row_sums(windows(padded, star[k], row[k], column[k], side, side), counts)
    return sums


def _sums_of_stamps(
    stamps: NDArray[np.float64],
    row: NDArray[np.intp],
    column: NDArray[np.intp],
    apertures: _Apertures,
    star: NDArray[np.intp],
    i: NDArray[np.intp],
) -> NDArray[np.float64]:
    """For circles larger than a stamp."""
    n_rows, n_columns = stamps.shape[1:]
    sums = np.empty(len(star))
    for part in chunks(len(star), n_rows * n_columns):
        counts = apertures.counts_from(i[part], row[part], n_rows, column[part], n_columns)
        sums[part] = row_sums(
            stamps[star[part]].reshape(len(counts), -1),
            counts.reshape(len(counts), -1).astype(np.float64),
        )
    return sums
