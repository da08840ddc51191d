"""Frames for SEP's conventions, whose pixels are single precision."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpuphot.models.frame import Bad, Frame, Positions

from .chunks import bands
from .frame import load_image


def sep_frame(
    image: NDArray, mask: NDArray[np.bool_] | None, background: ArrayLike, err: ArrayLike
) -> Frame:
    """Subtract the background, and round data and noise to float32.

    Parameters
    ----------
    image : (H, W) array
        Any real dtype and byte order.
    mask : (H, W) bool array or None
        True where masked.
    background : array that broadcasts to (H, W)
    err : array that broadcasts to (H, W)
        Standard deviation of the pixels, used as it is.

    Returns
    -------
    Frame
        Of float32 planes. Where only the background is not finite, `data` is not, and `bad` has
        the bit `Bad.BACKGROUND`: such a pixel is not masked.
    """
    shape = image.shape
    level, noise = (np.broadcast_to(np.asarray(values), shape) for values in (background, err))
    data, sigma = np.empty(shape, np.float32), np.empty(shape, np.float32)
    bad = np.empty(shape, np.uint8)
    for rows in bands(shape):
        values, flags = load_image(image[rows], None if mask is None else mask[rows])
        with np.errstate(over="ignore", invalid="ignore"):
            values -= level[rows]
            data[rows] = values
            sigma[rows] = noise[rows]
        if flags.any():
            data[rows][(flags & Bad.IMAGE) != 0] = 0
        finite = np.isfinite(data[rows])
        if not finite.all():
            flags[~finite] |= Bad.BACKGROUND
        bad[rows] = flags
    return Frame(data=data[None], bad=bad[None], err=sigma[None])


def mask_of(frame: Frame) -> NDArray[np.uint8]:
    """The masked pixels of the first plane, as SEP takes them: not 0."""
    (bad,) = frame.bad
    return bad & Bad.MASKED if bad.max() > Bad.MASKED else bad


def rows_of(pos: Positions, wanted: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The wanted rows in canonical order: what is near in the image comes one after the other."""
    return pos.order[wanted[pos.order]]


def scattered(n: int, rows: NDArray[np.intp], values: NDArray) -> NDArray:
    """Results of some of n rows as float64 or int64; NaN or 0 for the others."""
    is_float = values.dtype.kind == "f"
    result: NDArray = np.full(n, np.nan) if is_float else np.zeros(n, np.int64)
    result[rows] = values
    return result
