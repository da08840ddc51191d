"""Windowed centroids with SEP's conventions; twin of ``numpy_backend.sep_winpos``."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from gpuphot.models.frame import Frame, Positions
from gpuphot.models.psf import PSFModel
from gpuphot.models.sep import MIN_SIGMA

from .launch import as_bytes, blocks, launch, scratch
from .sep_stamps import psf_arguments, scratch_floats

_WARPS = 4


def sep_winpos(frame: Frame, pos: Positions, sigma: float, max_step: float) -> tuple[Any, Any, Any]:
    """Windowed centroids (XWIN, YWIN of SExtractor) with a Gaussian window."""
    n, moved = len(pos), _empty_result(len(pos))
    width = np.float64(max(sigma, MIN_SIGMA))
    arguments = (*_sources(frame, pos), np.int32(n), width, np.float64(max_step), *moved)
    launch("sep_winpos", blocks(n, _WARPS), arguments)
    return moved


def sep_psf_winpos(
    frame: Frame, pos: Positions, psf: PSFModel, max_step: float
) -> tuple[Any, Any, Any]:
    """Windowed centroids whose window is the PSF stamp at the position."""
    n, moved = len(pos), _empty_result(len(pos))
    workspace, n_at_once, shared = scratch("sep_psf_winpos", n, scratch_floats(psf), cupy.float32)
    of_scratch = (workspace, np.int32(scratch_floats(psf)), np.int32(shared > 0))
    of_all = (*psf_arguments(psf), *_sources(frame, pos))
    for begin in range(0, n, n_at_once):
        arguments = (*of_all, np.int32(begin), np.float64(max_step), *of_scratch, *moved)
        launch("sep_psf_winpos", min(n_at_once, n - begin), arguments, shared)
    return moved


def _sources(frame: Frame, pos: Positions) -> tuple[Any, ...]:
    height, width = frame.shape
    return (
        frame.data, frame.bad, np.int32(height), np.int32(width), pos.x, pos.y, pos.frame,
        as_bytes(pos.valid),
    )  # fmt: skip


def _empty_result(n: int) -> tuple[Any, Any, Any]:
    return cupy.empty(n), cupy.empty(n), cupy.empty(n, cupy.int64)
