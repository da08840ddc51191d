"""Sums over circular apertures in SEP's way."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpuphot.models.frame import Frame, Positions
from gpuphot.models.sep import SUBPIX, SepSums

from .sep_frame import mask_of, rows_of, scattered


def sep_aperture_sums(
    frame: Frame,
    pos: Positions,
    r: NDArray[np.float64],
    gain: float | None,
    subpix: int = SUBPIX,
) -> SepSums:
    """Sums over circular apertures of sub-pixels, ``sep_x.sum_circle``.

    A pixel weighs as many of its sub-pixels as have their centre in the circle. Masked pixels
    get the mean value of the others.

    Parameters
    ----------
    frame : Frame
    pos : Positions
    r : (N,) float64 array
        Radii in pixels, not negative. One that is NaN gives NaN and `SepFlag.TRUNCATED`.
    gain : float or None
        Electrons per count, for the sources' Poisson noise; None for none.
    subpix : int, default 5
        Sub-pixels along the side of a pixel; 0 for the exact overlap.

    Returns
    -------
    SepSums
        NaN where the circle does not overlap the image or the position is not valid.
    """
    import sep_x

    rows = rows_of(pos, pos.valid)
    sums = sep_x.sum_circle(
        frame.data[0],
        pos.x[rows],
        pos.y[rows],
        r[rows],
        err=frame.err[0],
        gain=gain,
        mask=mask_of(frame),
        subpix=subpix,
    )
    return SepSums(*(scattered(len(pos), rows, values) for values in sums))
