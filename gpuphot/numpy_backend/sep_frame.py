"""Frames for SEP's conventions, whose pixels are single precision."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpuphot.models.frame import Bad, Frame

from .chunks import bands


def sep_frame(
    data: NDArray[np.float64], bad: NDArray[np.uint8], background: ArrayLike, err: ArrayLike
) -> Frame:
    """Subtract the background, and round data and noise to float32.

    Parameters
    ----------
    data, bad : (H, W) arrays of `load_image`
        `bad` is overwritten, and part of the frame that is returned.
    background : array that broadcasts to (H, W)
    err : array that broadcasts to (H, W)
        Standard deviation of the pixels, used as it is.

    Returns
    -------
    Frame
        Of float32 planes. Where only the background is not finite, `data` is not, and `bad` has
        the bit `Bad.BACKGROUND`: such a pixel is not masked.
    """
    shape = data.shape
    level, noise = (np.broadcast_to(np.asarray(values), shape) for values in (background, err))
    pixels, sigma = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for rows in bands(shape):
        flags = bad[rows]
        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(data[rows], level[rows], out=pixels[rows], casting="same_kind")
            sigma[rows] = noise[rows]
        missing = (flags & Bad.IMAGE) != 0
        if missing.any():
            pixels[rows][missing] = 0
        finite = np.isfinite(pixels[rows])
        if not finite.all():
            flags[~finite] |= Bad.BACKGROUND
    return Frame(data=pixels[None], bad=bad[None], err=sigma[None])


def mask_of(frame: Frame) -> NDArray[np.uint8]:
    """The masked pixels of the first plane, as SEP takes them: not 0."""
    (bad,) = frame.bad
    return bad & Bad.MASKED if bad.max() > Bad.MASKED else bad


def scattered(valid: NDArray[np.bool_], values: Any, fill: float = np.nan) -> NDArray:
    """Results for the valid rows among all rows, (N,); `fill` for the others."""
    result = np.full(valid.shape, fill, np.asarray(values).dtype)
    result[valid] = values
    return result
