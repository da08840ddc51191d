"""Centroids; twin of ``numpy_backend.centroid``."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuphot.models.frame import Frame, Positions
from gpuphot.models.psf import PSFModel

from .kernels.registry import KERNELS
from .launch import as_bytes, blocks, launch
from .stamps import model_arguments

MAX_SHIFT = 0.01
"""A position has converged when a step moves it by less, in pixels."""

_WARPS = 4


def com_centroid(frame: Frame, pos: Positions, half_size: int, n_iter: int) -> tuple[Any, Any]:
    """Centre of mass in a square box, recentred on its own result."""
    x, y = pos.x.copy(), pos.y.copy()
    height, width = frame.shape
    if 2 * half_size + 1 > min(height, width):
        return x, y
    launch(
        "com_centroid",
        blocks(len(pos), _WARPS),
        (
            frame.data, frame.bad, np.int32(height), np.int32(width), pos.frame,
            as_bytes(pos.valid), np.int32(len(pos)), np.int32(half_size), np.int32(n_iter),
            np.float64(MAX_SHIFT), x, y,
        ),
    )  # fmt: skip
    return x, y


def psf_centroid(
    frame: Frame, pos: Positions, psf: PSFModel, half_size: int, n_iter: int
) -> tuple[Any, Any]:
    """Centre of mass of the pixels times the PSF, which is recentred on the result."""
    x, y = pos.x.copy(), pos.y.copy()
    half_stamp = max(psf.stamp_shape) // 2
    of_frame = (
        frame.data, frame.bad, *(np.int32(length) for length in frame.shape), pos.frame,
        as_bytes(pos.valid),
    )  # fmt: skip
    of_loop = (
        np.int32(half_size), np.int32(max(half_size, half_stamp)), np.int32(n_iter),
        np.float64(MAX_SHIFT),
    )  # fmt: skip
    if psf.planes is not None:
        model, shared = model_arguments(psf, "psf_centroid")
        launch("psf_centroid", len(pos), (*of_frame, *of_loop, *model, x, y), shared)
        return x, y
    shared = _WARPS * 2 * (2 * half_stamp + 1) * 8
    if shared > KERNELS["gaussian_centroid"].max_shared:
        raise ValueError(f"a Gaussian with a FWHM of {psf.fwhm} pixels is too wide for a GPU")
    launch(
        "gaussian_centroid",
        blocks(len(pos), _WARPS),
        (
            *of_frame, np.int32(len(pos)), *of_loop, np.float64(psf.fwhm), np.int32(half_stamp),
            x, y,
        ),
        shared,
    )  # fmt: skip
    return x, y
