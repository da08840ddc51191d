"""Centroids: positions moved to where the light is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gpuphot.models.frame import Bad, Frame, Positions
from gpuphot.models.psf import PSFModel

from .chunks import chunks, windows
from .stamps import gaussian_profile, psf_stamps
from .sums import row_sums

MAX_SHIFT = 0.01
"""A position has converged when a step moves it by less, in pixels."""

PSF_STEPS = 16
"""A step with a PSF is itself a series of at most so many small ones. Weighting with the PSF halves
the distance to the star, it does not jump to it."""

PSF_MAX_SHIFT = 1e-4
"""A small step that is shorter ends the series."""

MIN_PIXELS = 3
"""Usable pixels that a step with a PSF needs."""

_Step = Callable[[NDArray, NDArray, NDArray], tuple[NDArray, NDArray]]
"""New positions for planes, x and y; NaN for those that do not move any more."""


def com_centroid(
    frame: Frame, pos: Positions, half_size: int, n_iter: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre of mass in a square box, recentred on its own result.

    Pixels that are masked, not finite or negative are left out. A source keeps its last
    position when its box would leave the image or holds no light.

    Parameters
    ----------
    frame : Frame
    pos : Positions
    half_size : int
        The box has ``2 * half_size + 1`` pixels a side.
    n_iter : int
        At most this many steps; a step shorter than 0.01 pixels is the last.

    Returns
    -------
    x, y : (N,) float64 arrays
        Equal to the input where nothing was moved.
    """

    def step(plane: NDArray, x: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
        return _centre_of_mass(frame, plane, x, y, half_size)

    return _iterate(frame, pos, step, half_size, n_iter, (2 * half_size + 1) ** 2)


def psf_centroid(
    frame: Frame, pos: Positions, psf: PSFModel, half_size: int, n_iter: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre of mass of the pixels times the PSF, which is recentred on the result.

    Pixels that are masked or not finite are left out, negative ones are not. One of the `n_iter`
    steps consists of up to 16 smaller ones, the last of which is shorter than 1e-4 pixels. When
    one of them finds its box beyond the edge of the image, less than 3 usable pixels in it, or
    no light, the source keeps the position from before the whole step.

    Parameters
    ----------
    frame : Frame
    pos : Positions
    psf : PSFModel
    half_size : int
        The box has ``2 * half_size + 1`` pixels a side, or as many as a stamp if that has more.
        Pixels beyond the stamp have no weight.
    n_iter : int
        At most this many steps; a step shorter than 0.01 pixels is the last.

    Returns
    -------
    x, y : (N,) float64 arrays
        Equal to the input where nothing was moved.
    """
    half_stamp = max(psf.stamp_shape) // 2

    def step(plane: NDArray, x: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
        # Hardly any light moves a position very far.
        with np.errstate(over="ignore", invalid="ignore"):
            return _converge(frame, plane, x, y, psf, max(half_size, half_stamp))

    # Many short calls make a step: they are worth it for chunks larger than the cache.
    return _iterate(frame, pos, step, half_size, n_iter, (2 * half_stamp + 1) ** 2 // 4)


def _iterate(
    frame: Frame, pos: Positions, step: _Step, half_size: int, n_iter: int, n_elements: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions after so many steps, for chunks of sources with so many elements each."""
    x, y = pos.x.copy(), pos.y.copy()
    for part in chunks(len(pos), n_elements):
        i = pos.order[part]
        i = i[pos.valid[i] & _inside(frame, x[i], y[i], half_size)]
        for _ in range(n_iter):
            if not len(i):
                break
            new_x, new_y = step(pos.frame[i], x[i], y[i])
            moved = np.isfinite(new_x) & np.isfinite(new_y)
            i, new_x, new_y = i[moved], new_x[moved], new_y[moved]
            shift = np.hypot(new_x - x[i], new_y - y[i])
            x[i], y[i] = new_x, new_y
            i = i[shift >= MAX_SHIFT]
    return x, y


def _inside(frame: Frame, x: NDArray, y: NDArray, half_size: int) -> NDArray[np.bool_]:
    """Whether a position keeps the half size from the edges, as centroiding asks at its start."""
    height, width = frame.shape
    near = (x < half_size) | (x >= width - half_size) | (y < half_size) | (y >= height - half_size)
    return ~near


def _centre_of_mass(
    frame: Frame, plane: NDArray, x: NDArray, y: NDArray, half_size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre of the light in a box; NaN where there is none, or no room for the box."""
    new_x, new_y = np.full((2, len(x)), np.nan)
    column, row = np.rint(x), np.rint(y)
    i = np.flatnonzero(_inside(frame, column, row, half_size))
    if not len(i):
        return new_x, new_y
    size = 2 * half_size + 1
    column, row = column[i].astype(np.intp) - half_size, row[i].astype(np.intp) - half_size
    light = windows(frame.data, plane[i], row, column, size, size)
    bad = windows(frame.bad, plane[i], row, column, size, size)
    light = np.where((light >= 0) & ((bad & Bad.UNUSABLE) == 0), light, 0)
    offset_y, offset_x = np.indices((size, size), dtype=np.float64).reshape(2, -1)
    total = row_sums(light)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = np.where(total < 1e-30, np.nan, total)
        new_x[i] = column + row_sums(light, offset_x) / total
        new_y[i] = row + row_sums(light, offset_y) / total
    return new_x, new_y


def _converge(
    frame: Frame, plane: NDArray, x: NDArray, y: NDArray, psf: PSFModel, half_box: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One step with a PSF, which is a series of small ones; NaN where one of them fails."""
    new_x, new_y = np.empty((2, len(x)))
    marginals = _gaussian_marginals if psf.planes is None else _resampled_marginals
    i = _at_least_two(np.arange(len(x)))
    plane, x, y = plane[i], x[i], y[i]
    column, row = np.full((2, len(i)), np.nan)
    light = np.empty((*(2 * (length // 2) + 1 for length in psf.stamp_shape), len(i)))
    for _ in range(PSF_STEPS):
        stale = np.flatnonzero((column != np.rint(x)) | (row != np.rint(y)))
        if len(stale):
            column[stale], row[stale] = np.rint(x[stale]), np.rint(y[stale])
            _read_light(light, stale, frame, plane, column, row, half_box)
        dx, dy = _offset(marginals(psf, light, x, y), x - column, y - row)
        x, y = x + dx, y + dy
        new_x[i], new_y[i] = x, y
        moving = np.flatnonzero(dx * dx + dy * dy >= PSF_MAX_SHIFT**2)
        if not len(moving):
            break
        if len(moving) < len(i):
            moving = _at_least_two(moving)
            i, plane, light = i[moving], plane[moving], light[..., moving]
            x, y, column, row = (v[moving] for v in (x, y, column, row))
    return new_x, new_y


def _at_least_two(rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """Rows, a single one twice: sums over the pixels of a source alone would round differently."""
    return np.resize(rows, max(len(rows), 2))


def _read_light(
    light: NDArray,
    i: NDArray[np.intp],
    frame: Frame,
    plane: NDArray,
    column: NDArray,
    row: NDArray,
    half_box: int,
) -> None:
    """Read the pixels around the central ones of the sources i; 0 if they are not usable.

    NaN where the box leaves the image or has too few usable pixels.
    """
    light[..., i] = np.nan
    i = i[_inside(frame, column[i], row[i], half_box)]
    if not len(i):
        return
    plane, column, row = plane[i], column[i], row[i]
    bad = (_boxes(frame.bad, plane, column, row, half_box, half_box) & Bad.UNUSABLE) != 0
    half_y, half_x = light.shape[0] // 2, light.shape[1] // 2
    pixels = _boxes(frame.data, plane, column, row, half_y, half_x)
    top, left = half_box - half_y, half_box - half_x
    of_stamp = np.s_[:, top : top + light.shape[0], left : left + light.shape[1]]
    np.copyto(pixels, 0, where=bad[of_stamp])
    n_usable = bad[0].size - np.count_nonzero(bad, axis=(1, 2))
    pixels[n_usable < MIN_PIXELS] = np.nan
    light[..., i] = pixels.transpose(1, 2, 0)


def _boxes(
    planes: NDArray, frame: NDArray, column: NDArray, row: NDArray, half_y: int, half_x: int
) -> NDArray:
    """Windows around central pixels, of shape (n, rows, columns)."""
    height, width = 2 * half_y + 1, 2 * half_x + 1
    first_row, first_column = row.astype(np.intp) - half_y, column.astype(np.intp) - half_x
    pixels = windows(planes, frame, first_row, first_column, height, width)
    return pixels.reshape(-1, height, width)


def _gaussian_marginals(
    psf: PSFModel, light: NDArray, x: NDArray, y: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums of the light times the stamp over its rows and its columns, each of shape (length, n).

    No stamp is made: what it is in a row is a factor of the sum.
    """
    position = np.concatenate([y, x])
    fwhm = np.full(len(position), psf.fwhm)
    profiles = gaussian_profile(fwhm, position - np.rint(position), len(light) // 2)
    rows, columns = np.hsplit(profiles, 2)
    of_rows = np.einsum("jin,in->jn", light, columns)
    of_columns = np.einsum("jin,jn->in", light, rows)
    of_rows *= rows
    of_columns *= columns
    return of_rows, of_columns


def _resampled_marginals(
    psf: PSFModel, light: NDArray, x: NDArray, y: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same for a model made of planes."""
    stamps = psf_stamps(psf, x, y, max(light.shape[:2]) // 2)
    weighted = np.multiply(light, stamps.transpose(1, 2, 0), order="C")
    return np.einsum("jin->jn", weighted), np.einsum("jin->in", weighted)


def _offset(
    marginals: tuple[NDArray, NDArray], phase_x: NDArray, phase_y: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre of the weighted light, as seen from the position; NaN where there is no light."""
    total = np.einsum("jn->n", marginals[0])
    total[~(total > 0)] = np.nan
    dx, dy = (
        np.einsum("in,in->n", light, _coordinates(len(light)) - phase) / total
        for light, phase in zip(reversed(marginals), (phase_x, phase_y), strict=True)
    )
    return dx, dy


def _coordinates(length: int) -> NDArray[np.float64]:
    """Of pixels along a side, as seen from the central one; (length, 1)."""
    return np.arange(length, dtype=np.float64)[:, None] - length // 2
