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
    row, column = np.rint(y) - n_rows // 2, np.rint(x) - n_columns // 2
    order = np.lexsort((flux, x, y))
    inside = (row > -n_rows) & (row < shape[0]) & (column > -n_columns) & (column < shape[1])
    order = order[(inside & np.isfinite(flux) & (flux != 0))[order]]
    # With margins around the image no stamp needs clipping.
    width = shape[1] + 2 * n_columns
    image = np.zeros((shape[0] + 2 * n_rows) * width)
    first = np.zeros(len(x), np.intp)
    first[order] = (row[order] + n_rows) * width + column[order] + n_columns
    pixel = (np.arange(n_rows)[:, None] * width + np.arange(n_columns)).ravel()
    for part in chunks(len(order), math.prod(psf.stamp_shape)):
        i = order[part]
        light = psf_stamps(psf, x[i], y[i]) * flux[i, None, None]
        np.add.at(image, (first[i, None] + pixel).ravel(), light.ravel())
    return image.reshape(-1, width)[n_rows:-n_rows, n_columns:-n_columns].copy()
