"""SEP's background, by the library itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpuphot.models.background import cell_shape


def sep_background(
    data: NDArray[np.float64], bad: NDArray[np.uint8], bg_size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Background and its standard deviation on every pixel, as SEP estimates them.

    Each cell of a mesh has SExtractor's estimate of the mode of its pixels. A cell of which less
    than half is unmasked takes the mean of the nearest others. A median of 3 x 3 cells removes
    outliers, and cubic splines go through the rest; the standard deviations go the same way.

    Parameters
    ----------
    data : (H, W) float64 array
        Rounded to single precision, like all that SEP reads.
    bad : (H, W) uint8 array
        Masked where not 0.
    bg_size : int
        Side of the mesh cells in pixels, at least 2; those of the last row and column hold the
        remainder.

    Returns
    -------
    background, rms : (H, W) float32 arrays
        0 and 1 if no cell is good.
    """
    import sep_x

    # SEP's sizes are C integers; cells larger than the image give the same.
    cell_height, cell_width = cell_shape(data.shape, bg_size)
    mesh = sep_x.Background(data, mask=bad, bw=cell_width, bh=cell_height)
    return mesh.back(dtype=np.float32), mesh.rms(dtype=np.float32)
