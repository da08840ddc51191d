"""Windowed centroids with SEP's conventions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuphot.models.frame import Frame, Positions
from gpuphot.models.sep import MIN_SIGMA

from .sep_frame import mask_of, rows_of, scattered
from .sep_stamps import sep_psf


def sep_winpos(
    frame: Frame, pos: Positions, sigma: float, max_step: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Windowed centroids (XWIN, YWIN of SExtractor) with a Gaussian window.

    Steps to the centroid of the pixels within 4 sigma are repeated until one is below 1e-4 pixels,
    16 times at most. Masked pixels get the mean of the others.

    Parameters
    ----------
    frame : Frame
        Of one plane.
    pos : Positions
    sigma : float
        Of the window in pixels; at least `MIN_SIGMA` is used.
    max_step : float
        Longest step in pixels; 0 for no limit.

    Returns
    -------
    x, y : (N,) float64 arrays
        NaN for rows that are not valid.
    flag : (N,) int64 array
        `SepFlag` bits; 0 for rows that are not valid.
    """
    return _winpos(frame, pos, max_step, sig=sigma, minsig=MIN_SIGMA)


def sep_psf_winpos(
    frame: Frame, pos: Positions, psf: Any, max_step: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Windowed centroids whose window is the PSF stamp at the position.

    Parameters
    ----------
    frame : Frame
        Of one plane.
    pos : Positions
    psf : PSFModel or sep_x.PSF
        As `sep_psf` takes it.
    max_step : float
        Longest step in pixels; 0 for no limit.

    Returns
    -------
    x, y : (N,) float64 arrays
        NaN for rows that are not valid.
    flag : (N,) int64 array
        `SepFlag` bits; 0 for rows that are not valid.
    """
    return _winpos(frame, pos, max_step, psf=sep_psf(psf))


def _winpos(
    frame: Frame, pos: Positions, max_step: float, **window: Any
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    import sep_x

    rows = rows_of(pos, pos.valid)
    found = sep_x.winpos(
        frame.data[0],
        pos.x[rows],
        pos.y[rows],
        mask=mask_of(frame),
        maxstep=max_step,
        **window,
    )
    x, y, flag = (scattered(len(pos), rows, values) for values in found)
    return x, y, flag
