"""Sums over circular apertures with the exact overlap of circle and pixel as weight."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpuphot.models.frame import ApertureSums, Bad, Frame, Positions

from .chunks import chunks, windows
from .sums import row_sums


def aperture_sums(frame: Frame, pos: Positions, r: NDArray[np.float64]) -> ApertureSums:
    """Flux, variance and area of circular apertures, in one pass over the pixels.

    A pixel weighs as much of its area as lies inside the circle. Pixels outside the image and
    pixels whose image value is not finite contribute nothing; those that only the user masked
    do contribute.

    Parameters
    ----------
    frame : Frame
    pos : Positions
    r : (K,) or (N, K) float64 array
        Radii in pixels, positive.

    Returns
    -------
    ApertureSums
        Arrays of shape (N, K). NaN where the circle does not overlap the image or the position
        is not valid.
    """
    radii = np.broadcast_to(r, (len(pos), r.shape[-1]))
    has_rms = frame.bkg_rms is not None
    flux, var, area, bkg_var = (np.full(radii.shape, np.nan) for _ in range(4))
    masked = np.zeros(radii.shape, np.bool_)
    any_bad = bool(frame.bad.any())
    for k in range(radii.shape[1]):
        rows = pos.order[overlaps_image(frame, pos, radii[:, k])[pos.order]]
        sizes = np.ceil(2 * np.minimum(radii[rows, k], max(frame.shape))).astype(np.intp) + 1
        for size in np.unique(sizes):
            members = rows[sizes == size]
            height, width = np.minimum(size, frame.shape)
            for part in chunks(len(members), height * width):
                i = members[part]
                flux[i, k], var[i, k], area[i, k], bkg_var[i, k], masked[i, k] = _chunk_sums(
                    frame, pos, i, radii[i, k], (height, width), any_bad
                )
    return ApertureSums(flux, var, area, bkg_var if has_rms else None, masked)


def overlaps_image(frame: Frame, pos: Positions, r: float | NDArray) -> NDArray[np.bool_]:
    """Whether the circle of radius r around each valid position reaches the image."""
    height, width = frame.shape
    with np.errstate(invalid="ignore"):
        dx = pos.x - np.clip(pos.x, -0.5, width - 0.5)
        dy = pos.y - np.clip(pos.y, -0.5, height - 0.5)
        return pos.valid & (np.hypot(dx, dy) < r)


def _chunk_sums(
    frame: Frame,
    pos: Positions,
    i: NDArray[np.intp],
    r: NDArray[np.float64],
    window: tuple[int, int],
    any_bad: bool,
) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray]:
    """Flux, variance, area, background variance and mask flag of the sources `i`.

    Their circles of radius `r` must fit windows of the size `window`, or the window must be as
    wide or high as the image. Windows are shifted into the image: whatever the circle does not
    reach weighs 0.
    """
    x, y, plane = pos.x[i], pos.y[i], pos.frame[i]
    row, column = (
        np.clip(np.floor(v - r + 0.5), 0, length - size).astype(np.intp)
        for v, length, size in zip((y, x), frame.shape, window, strict=True)
    )
    edge_y = (row - 0.5 - y)[:, None] + np.arange(window[0] + 1)
    edge_x = (column - 0.5 - x)[:, None] + np.arange(window[1] + 1)
    weight = _exact_overlap(edge_x, edge_y, r)

    def pixels(planes: NDArray) -> NDArray:
        return windows(planes, plane, row, column, *window)

    values, err = pixels(frame.data), pixels(frame.err)
    masked = np.zeros(len(i), np.bool_)
    with np.errstate(invalid="ignore", over="ignore"):
        flux, var = row_sums(weight, values), row_sums(weight, err * err)
        area = row_sums(weight)
        off_image = area == 0
        if frame.bkg_rms is None or frame.bkg_rms is frame.err:
            bkg_var = var.copy()
        else:
            bkg_var = row_sums(weight, pixels(frame.bkg_rms) ** 2)
        if any_bad:
            bad = pixels(frame.bad)
            touched = np.flatnonzero(bad.any(axis=1))
            bad, weight = bad[touched], weight[touched]
            masked[touched] = _masked_centre(bad, edge_x[touched], edge_y[touched], r[touched])
            weight[(bad & Bad.IMAGE) != 0] = 0
            # A pixel that the circle does not reach must not count even if it is NaN.
            reached = weight > 0
            err = np.where(reached, err[touched], 0)
            flux[touched] = row_sums(weight, np.where(reached, values[touched], 0))
            var[touched] = row_sums(weight, err * err)
            area[touched] = row_sums(weight)
    for sums in (flux, var, area, bkg_var):
        sums[off_image] = np.nan
    return flux, var, area, bkg_var, masked


def _masked_centre(bad: NDArray, edge_x: NDArray, edge_y: NDArray, r: NDArray) -> NDArray:
    """Whether a masked pixel has its centre inside the circle."""
    x2, y2 = ((edge[:, :-1] + 0.5) ** 2 for edge in (edge_x, edge_y))
    inside = y2[:, :, None] + x2[:, None, :] < (r * r)[:, None, None]
    return (inside.reshape(bad.shape) & ((bad & Bad.MASKED) != 0)).any(axis=1)


def _exact_overlap(edge_x: NDArray, edge_y: NDArray, r: NDArray) -> NDArray:
    """Area of each pixel inside a circle around the origin.

    The area of the circle between the axes and a pixel corner (a, b) is ``a b`` if the corner
    lies inside the circle, else ``G(a) + G(b) - pi r^2 / 4`` with
    ``G(u) = (u s + r^2 atan2(u, s)) / 2`` and ``s = sqrt(r^2 - u^2)``, for a, b clipped to r. It
    is odd in a and in b, and its second difference over the corners is the overlap. G depends
    on one coordinate only and is tabulated for the pixel edges of a row and of a column.

    Parameters
    ----------
    edge_x, edge_y : (n, width + 1) and (n, height + 1) arrays
        Pixel edges relative to the centre.
    r : (n,) array

    Returns
    -------
    (n, height * width) array
        Exactly 0 where the nearest point of the pixel is r or farther away.
    """
    r = r[:, None]
    ax, _, gx, sign_x = _edge_table(edge_x, r)
    ay, sy, gy, sign_y = _edge_table(edge_y, r)
    gy -= sign_y * (0.25 * np.pi) * r * r
    corner = np.where(
        (np.abs(ax)[:, None, :] <= sy[:, :, None]),
        ax[:, None, :] * ay[:, :, None],
        gx[:, None, :] * sign_y[:, :, None] + sign_x[:, None, :] * gy[:, :, None],
    )
    strip = corner[:, :, 1:] - corner[:, :, :-1]
    weight = strip[:, 1:] - strip[:, :-1]
    near_x, near_y = (
        np.maximum(np.maximum(edge[:, :-1], -edge[:, 1:]), 0) for edge in (edge_x, edge_y)
    )
    near = (near_y * near_y)[:, :, None] + (near_x * near_x)[:, None, :]
    weight *= near < (r * r)[:, :, None]
    return weight.reshape(len(r), -1)


def _edge_table(edge: NDArray, r: NDArray) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Clipped coordinate u, half chord sqrt(r^2 - u^2), antiderivative G(u) and sign of u."""
    u = np.clip(edge, -r, r)
    # A product, not a difference of squares: exact near the rim, never negative.
    s = np.sqrt((r - u) * (r + u))
    return u, s, 0.5 * (u * s + r * r * np.arctan2(u, s)), np.sign(u)
