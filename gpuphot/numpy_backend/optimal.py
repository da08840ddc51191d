"""Optimal sums: fluxes of sources from their PSF stamps, one source at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gpuphot.models.frame import Bad, Frame, OptimalSums, Positions
from gpuphot.models.psf import PSFModel, gaussian_size

from .chunks import chunks
from .stamps import psf_stamps
from .sums import row_sums


def optimal_sums(
    frame: Frame,
    pos: Positions,
    psf: PSFModel,
    r: float,
    bg: NDArray[np.float64],
    fwhm: NDArray[np.float64] | None = None,
) -> OptimalSums:
    """Fit the scale of each source's PSF stamp to its pixels, all of which weigh the same.

    With the stamp P, the data D and the variance V, the flux is ``sum(P D) / sum(P P)`` and its
    variance ``sum(P P V) / sum(P P)**2``, over the usable pixels up to `r` from the pixel that
    the source lies on.

    Parameters
    ----------
    frame : Frame
    pos : Positions
    psf : PSFModel
    r : float
        Radius in pixels.
    bg : (N,) float64 array
        Local background of each source; NaN where there is none, which gives no flux.
    fwhm : (N,) float64 array, optional
        FWHM of each source's own Gaussian, in place of that of a Gaussian `psf`.

    Returns
    -------
    OptimalSums
        Without a result where the position is not valid, the whole stamp does not lie in the
        image, or no pixel is usable.

    References
    ----------
    Naylor 1998, MNRAS 296, 339; the weights are those of constant noise, and `r` clips the
    profile.
    """
    n = len(pos)
    flux, fluxerr, chi2, norm = (np.full(n, np.nan) for _ in range(4))
    npix = np.zeros(n, np.int64)
    any_bad = bool(frame.bad.any())
    for shape, rows in by_stamp_shape(psf, fwhm, pos.order[pos.valid[pos.order]]):
        inside = rows[_holds_stamp(frame, pos, rows, shape)]
        disc = _disc(shape, r)
        for part in chunks(len(inside), len(disc[0])):
            i = inside[part]
            flux[i], fluxerr[i], npix[i], chi2[i], norm[i] = _chunk_sums(
                frame, pos, i, psf, disc, bg[i], None if fwhm is None else fwhm[i], any_bad
            )
    return OptimalSums(flux, fluxerr, npix, chi2, norm, np.zeros(n, np.bool_))


def by_stamp_shape(
    psf: PSFModel, fwhm: NDArray[np.float64] | None, rows: NDArray[np.intp]
) -> Iterator[tuple[tuple[int, int], NDArray[np.intp]]]:
    """Rows and columns of stamps, and the sources whose stamps have them, in their order."""
    if fwhm is None:
        yield psf.stamp_shape, rows
        return
    sizes = gaussian_size(fwhm[rows])
    for size in np.unique(sizes):
        yield (int(size), int(size)), rows[sizes == size]


def is_usable(bad: NDArray[np.uint8], err: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether optimal sums can use a pixel: with a value, not masked, and with finite noise."""
    return ((bad & (Bad.UNUSABLE | Bad.NOISE)) == 0) & (err > 0)


def _holds_stamp(
    frame: Frame, pos: Positions, rows: NDArray[np.intp], shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """Whether the image holds the whole stamps of sources."""
    inside = np.ones(len(rows), np.bool_)
    for v, size, length in zip((pos.y, pos.x), shape, frame.shape, strict=True):
        pixel = np.rint(v[rows])
        inside &= (pixel >= size // 2) & (pixel < length - size // 2)
    return inside


def _disc(shape: tuple[int, int], r: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns (T,), from the central pixel of a stamp, up to r away from it."""
    reach = [min(size // 2, math.floor(min(r, size))) for size in shape]
    row, column = np.indices([2 * n + 1 for n in reach]).reshape(2, -1)
    row, column = row - reach[0], column - reach[1]
    inside = np.sqrt(row * row + column * column) <= r
    return row[inside], column[inside]


def _chunk_sums(
    frame: Frame,
    pos: Positions,
    i: NDArray[np.intp],
    psf: PSFModel,
    disc: tuple[NDArray[np.intp], NDArray[np.intp]],
    bg: NDArray[np.float64],
    fwhm: NDArray[np.float64] | None,
    any_bad: bool,
) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray]:
    """Flux, its error, number of pixels, chi-squared and light of the sources i."""
    light = _stamps_on_disc(psf, pos.x[i], pos.y[i], disc, fwhm)
    height, width = frame.shape
    row, column = (np.rint(v[i]).astype(np.intp) for v in (pos.y, pos.x))
    first = (pos.frame[i] * height + row) * width + column
    pixel = first[:, None] + (disc[0] * width + disc[1])
    data, err = frame.data.ravel().take(pixel), frame.err.ravel().take(pixel)
    data -= bg[:, None]
    npix = np.full(len(i), pixel.shape[1])
    if any_bad or not (err > 0).all():
        usable = is_usable(frame.bad.ravel().take(pixel), err)
        npix = np.count_nonzero(usable, axis=1)
        light, data = np.where(usable, light, 0), np.where(usable, data, 0)
        err = np.where(usable, err, 1)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        power = row_sums(light, light)
        power[power <= 0] = np.nan
        flux = row_sums(light, data) / power
        noise = light * err
        fluxerr = np.sqrt(row_sums(noise, noise)) / power
        data -= flux[:, None] * light
        data /= err
        chi2 = row_sums(data, data) / np.where(npix > 1, npix - 1, np.nan)
    failed = np.isnan(power)
    norm = np.where(failed, np.nan, row_sums(light))
    return flux, fluxerr, np.where(failed, 0, npix), chi2, norm


def _stamps_on_disc(
    psf: PSFModel,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    disc: tuple[NDArray[np.intp], NDArray[np.intp]],
    fwhm: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """Stamps (n, T) of sources on the pixels of the disc."""
    row, column = disc
    stamps = psf_stamps(psf, x, y, int(max(row.max(), column.max())), fwhm)
    _, n_rows, n_columns = stamps.shape
    index = (row + n_rows // 2) * n_columns + column + n_columns // 2
    return stamps.reshape(len(x), -1).take(index, axis=1)
