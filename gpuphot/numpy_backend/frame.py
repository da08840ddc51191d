"""From an image and its companions to a `Frame`: conversion, subtraction, noise.

Works in bands of rows that stay in the cache, so that each plane is read and written once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpuphot.models.background import SplineSurface
from gpuphot.models.frame import Bad, Frame

from .chunks import bands
from .mesh import surface_rows


def load_image(
    image: NDArray, mask: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Pixels as float64, and what is wrong with each of them.

    Parameters
    ----------
    image : (H, W) array
        Any real dtype and byte order.
    mask : (H, W) bool array or None
        True where masked.

    Returns
    -------
    data : (H, W) float64 array
        A copy of the image; 0 where it is not finite.
    bad : (H, W) uint8 array
        `Bad.IMAGE` and `Bad.MASK` bits.
    """
    data = np.empty(image.shape)
    bad = np.empty(image.shape, np.uint8)
    for rows in bands(data.shape):
        pixels, flags = data[rows], bad[rows]
        with np.errstate(over="ignore"):
            pixels[...] = image[rows]
        finite = np.isfinite(pixels)
        np.logical_not(finite, out=flags.view(np.bool_))
        if not finite.all():
            pixels[~finite] = 0
        if mask is not None:
            flags |= mask[rows].view(np.uint8) * Bad.MASK
    return data, bad


def subtract_background(
    data: NDArray[np.float64],
    bad: NDArray[np.uint8],
    background: SplineSurface | NDArray,
    err: NDArray | None,
    rms: SplineSurface | None,
    gain: float | None,
) -> Frame:
    """Subtract the background and attach the noise, in place.

    Parameters
    ----------
    data, bad : (H, W) arrays of `load_image`
        Overwritten, and part of the frame that is returned.
    background : SplineSurface or array that broadcasts to (H, W)
    err : array that broadcasts to (H, W), or None
        Standard deviation of the pixels; None to take it from `rms` and `gain`.
    rms : SplineSurface or None
        Standard deviation of the estimated background; needed if `err` is None.
    gain : float or None
        Electrons per count: adds the sources' Poisson noise, ``max(data / gain, 0)``, to the
        variance if `err` is None.

    Returns
    -------
    Frame
    """
    shape = data.shape
    level = background if isinstance(background, SplineSurface) else _plane(background, shape)
    bkg_rms = None if rms is None else np.empty(shape)
    if err is not None:
        noise = np.ascontiguousarray(_plane(err, shape))
    elif gain is None:
        assert bkg_rms is not None
        noise = bkg_rms
    else:
        noise = np.empty(shape)
    for rows in bands(shape):
        pixels, flags = data[rows], bad[rows]
        _subtract(pixels, flags, level, rows)
        if bkg_rms is not None and rms is not None:
            surface_rows(rms, rows, out=bkg_rms[rows])
            if err is None and gain is not None:
                with np.errstate(over="ignore"):
                    noise[rows] = np.sqrt(bkg_rms[rows] ** 2 + np.maximum(pixels / gain, 0))
        if err is not None:
            _mark_not_finite(noise[rows], flags, Bad.NOISE)
    rms_planes = None if bkg_rms is None else bkg_rms[None]
    err_planes = rms_planes if noise is bkg_rms else noise[None]
    return Frame(data=data[None], bad=bad[None], err=err_planes, bkg_rms=rms_planes)


def _subtract(pixels: NDArray, flags: NDArray, level: SplineSurface | NDArray, rows: slice) -> None:
    if isinstance(level, SplineSurface):
        pixels -= surface_rows(level, rows, out=np.empty(pixels.shape))
    else:
        pixels -= level[rows]
        _mark_not_finite(pixels, flags, Bad.BACKGROUND)
    if flags.any():
        missing = (flags & Bad.IMAGE) != 0
        pixels[missing] = 0
        flags[missing] &= ~Bad.BACKGROUND


def _mark_not_finite(values: NDArray, flags: NDArray[np.uint8], bit: np.uint8) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        flags[~finite] |= bit


def _plane(values: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.broadcast_to(np.asarray(values, dtype=np.float64), shape)
