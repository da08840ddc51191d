"""PSF fits with SEP's conventions, sources whose light overlaps at the same time."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuphot.models.frame import Frame, Positions
from gpuphot.models.psf import PSFModel
from gpuphot.models.sep import FitOptions, PSFFits

from .sep_fit import collect, find_groupable, fit_rows


def sep_grouped_psf_fit(
    frame: Frame, pos: Positions, psf: PSFModel | Any, gain: float | None, options: FitOptions
) -> PSFFits:
    """Least-squares fits of the PSF, sources with overlapping stamps at the same time.

    Parameters
    ----------
    frame, pos, psf, gain, options : as for `sep_psf_fit`

    Returns
    -------
    PSFFits
        Sources that no pixel tells anything of are fitted on their own.
    """
    groupable = find_groupable(frame, pos, psf, options)
    # What SEP finds depends on the order of sources: this one does not depend on that of the rows.
    order = np.lexsort((pos.y, pos.x))
    together, alone = order[groupable[order]], np.flatnonzero(pos.valid & ~groupable)
    parts = [
        fit_rows(frame, pos, together, psf, gain, options, grouped=True),
        fit_rows(frame, pos, alone, psf, gain, options),
    ]
    results = tuple(np.concatenate(pair) for pair in zip(*parts, strict=True))
    return collect(len(pos), np.concatenate([together, alone]), results)
