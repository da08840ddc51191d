"""Model images: stars of known flux, put where they are."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gpuphot.models.psf import PSFModel

from .chunks import chunks
from .stamps import psf_stamps


def render_psf_image(
    shape: tuple[int, int],
    psf: PSFModel,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    flux: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Image of stars: the sum of their stamps, each times its flux.

    Every pixel sums its stars in the order of y, x and flux, so that no bit depends on the order
    of the rows.

    Parameters
    ----------
    shape : (int, int)
        Height and width of the image.
    psf : PSFModel
    x, y, flux : (N,) float64 arrays
        Positions in 0-based pixel centres, and fluxes. Stars with a flux of 0 or with a position
        or flux that is not finite are left out.

    Returns
    -------
    (H, W) float64 array
    """
    n_rows, n_columns = psf.stamp_shape
    height, width = shape
    row, column = np.rint(y) - n_rows // 2, np.rint(x) - n_columns // 2
    inside = (row > -n_rows) & (row < height) & (column > -n_columns) & (column < width)
    order = np.lexsort((flux, x, y))
    order = order[(inside & np.isfinite(flux) & (flux != 0))[order]]
    # With margins before and after the image no rows of stamps need clipping.
    margin = n_rows * width + n_columns
    image = np.zeros(margin + height * width + margin)
    pixel = (np.arange(n_rows)[:, None] * width + np.arange(n_columns)).ravel()
    for part in chunks(len(order), math.prod(psf.stamp_shape)):
        i = order[part]
        light = psf_stamps(psf, x[i], y[i])
        light *= flux[i, None, None]
        columns = column[i, None] + np.arange(n_columns)
        # Beyond the end of a row the next one begins, which gets nothing.
        light.swapaxes(1, 2)[(columns < 0) | (columns >= width)] = 0
        first = (margin + row[i] * width + column[i]).astype(np.intp)
        np.add.at(image, (first[:, None] + pixel).ravel(), light.ravel())
    return image[margin:-margin].reshape(shape)
