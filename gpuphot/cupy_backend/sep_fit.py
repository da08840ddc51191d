"""PSF fits with SEP's conventions, each source on its own; twin of ``numpy_backend.sep_fit``."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import cupy
import numpy as np

from gpuphot.models.frame import Frame, Positions
from gpuphot.models.psf import PSFModel
from gpuphot.models.sep import FitOptions, PSFFits, SepFlag

from .launch import as_bytes, launch, scratch
from .sep_stamps import psf_arguments, scratch_floats, stamp_shape


def sep_psf_fit(
    frame: Frame, pos: Positions, psf: PSFModel, gain: float | None, options: FitOptions
) -> PSFFits:
    """Least-squares fits of the PSF, each source on its own."""
    n = len(pos)
    flux, fluxerr, x, y, chi2 = (cupy.empty(n) for _ in range(5))
    flag, n_iter = (cupy.empty(n, cupy.int64) for _ in range(2))
    of_image = (
        frame.data, frame.err, frame.bad, *(np.int32(length) for length in frame.shape),
        np.float64(gain or 0),
    )  # fmt: skip
    of_sources = pos.x, pos.y, pos.frame, as_bytes(pos.valid)
    of_fit = *psf_arguments(psf), *rule_arguments(psf, options)
    mode = np.int32(options.fit_positions)
    n_work = _scratch_doubles(psf)
    workspace, step, shared = scratch("sep_fit_sources", n, n_work, cupy.float64)
    for begin in range(0, n, step):
        of_scratch = np.int32(begin), workspace, np.int32(n_work), np.int32(shared > 0)
        launch(
            "sep_fit_sources",
            min(step, n - begin),
            (
                *of_image, *of_sources, *of_fit, *of_scratch, mode, flux, fluxerr, x, y, chi2, flag,
                n_iter,
            ),
            shared,
        )  # fmt: skip
    return PSFFits(flux, fluxerr, x, y, flag, chi2, n_iter)


def find_groupable(frame: Frame, pos: Positions, psf: PSFModel, options: FitOptions) -> Any:
    """Whether sources may be fitted along with others, (N,) bool."""
    alone = sep_psf_fit(frame, pos, psf, None, replace(options, fit_positions=False))
    return pos.valid & (alone.flag & SepFlag.ALL_MASKED == 0)


def rule_arguments(psf: PSFModel, options: FitOptions) -> tuple[Any, ...]:
    """The fields of the structure ``SepRules`` of ``sep_fit.cuh``, in their order."""
    tolerance, damping = 1e-2, 0.0
    if psf.fwhm > 0:
        tolerance = min(max(1e-3, 0.005 * psf.fwhm), tolerance)
        damping = (max(options.damp_snthresh, 0.0) / (psf.fwhm / 2.3548)) ** 2
    max_drift = stamp_shape(psf)[1] // 2
    lengths = options.fit_radius, tolerance, max_drift, damping
    return np.int32(options.maxiter), *(np.float64(length) for length in lengths)


def _scratch_doubles(psf: PSFModel) -> int:
    """Scratch of a block: weights of the pixels of a stamp, then floats for everything else."""
    size = math.prod(stamp_shape(psf))
    return size + (size + scratch_floats(psf) + 1) // 2
