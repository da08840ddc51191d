"""PSF fits with SEP's conventions, each source on its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuphot.models.frame import Bad, Frame, Positions
from gpuphot.models.psf import PSFModel
from gpuphot.models.sep import FitOptions, PSFFits, SepFlag

from .sep_frame import mask_of, rows_of, scattered
from .sep_stamps import sep_psf


def sep_psf_fit(
    frame: Frame, pos: Positions, psf: PSFModel | Any, gain: float | None, options: FitOptions
) -> PSFFits:
    """Least-squares fits of the PSF, each source on its own.

    Positions are fitted to the pixels of the stamp around the pixel that a source lies on at the
    start. One that moves further than half the width of the stamp goes back to where it was.

    Parameters
    ----------
    frame : Frame
        One plane, from `sep_frame`.
    pos : Positions
    psf : PSFModel with planes and a polynomial, or sep_x.PSF
    gain : float or None
        Electrons per unit of the data; None for data without photon noise of the sources.
    options : FitOptions

    Returns
    -------
    PSFFits
    """
    rows = rows_of(pos, pos.valid)
    return collect(len(pos), rows, fit_rows(frame, pos, rows, psf, gain, options))


def find_groupable(
    frame: Frame, pos: Positions, psf: PSFModel | Any, options: FitOptions
) -> NDArray[np.bool_]:
    """Whether sources may be fitted along with others.

    Those that no pixel tells anything of may not: they would make the normal matrix of their
    group singular, and spoil the fits of the others.

    Parameters
    ----------
    frame, pos, psf, options : as for `sep_psf_fit`

    Returns
    -------
    (N,) bool array
        False for rows that are not valid.
    """
    groupable = pos.valid.copy()
    rows = np.flatnonzero(groupable & ~_have_centre(frame, pos, options.fit_radius))
    fluxes_only = replace(options, fit_positions=False)
    flag = fit_rows(frame, pos, rows, psf, None, fluxes_only)[4]
    groupable[rows[flag & SepFlag.ALL_MASKED != 0]] = False
    return groupable


def _have_centre(frame: Frame, pos: Positions, fit_radius: float) -> NDArray[np.bool_]:
    """Whether the pixel that a source lies on is used."""
    height, width = frame.shape
    with np.errstate(invalid="ignore"):
        column, row = np.trunc(pos.x + 0.5), np.trunc(pos.y + 0.5)
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        if fit_radius > 0:
            inside &= np.hypot(column - pos.x, row - pos.y) < fit_radius
    i, j = (np.where(inside, values, 0).astype(np.int64) for values in (column, row))
    err, masked = frame.err[0, j, i], (frame.bad[0, j, i] & Bad.MASKED) != 0
    return inside & (err > 0) & (err < np.inf) & ~masked


def fit_rows(
    frame: Frame,
    pos: Positions,
    rows: NDArray[np.int64],
    psf: PSFModel | Any,
    gain: float | None,
    options: FitOptions,
    grouped: bool = False,
) -> tuple[NDArray, ...]:
    """What SEP finds for some of the rows, in the order of the fields of `PSFFits`."""
    import sep_x

    results: tuple[NDArray, ...] = sep_x.psf_fit(
        frame.data[0],
        pos.x[rows],
        pos.y[rows],
        sep_psf(psf),
        err=frame.err[0],
        gain=gain,
        mask=mask_of(frame),
        grouped=grouped,
        group_factor=options.group_factor,
        maxiter=options.maxiter,
        fit_positions=options.fit_positions,
        fit_radius=options.fit_radius,
        damp_snthresh=options.damp_snthresh,
    )
    return results


def collect(n: int, rows: NDArray[np.int64], results: tuple[NDArray, ...]) -> PSFFits:
    """The results of some of n rows; NaN and 0 for the others."""
    return PSFFits(*(scattered(n, rows, values) for values in results))
