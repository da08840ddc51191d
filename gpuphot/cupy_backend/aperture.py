"""Sums over circular apertures; twin of ``numpy_backend.aperture``."""

from __future__ import annotations

import math
from typing import Any

import cupy
import numpy as np

from gpuphot.models.frame import ApertureSums, Frame, Positions

from .kernels.registry import KERNELS
from .launch import as_bytes, blocks, launch, to_device

_WARPS = 4
_EDGE_BYTES = 3 * 8


def aperture_sums(frame: Frame, pos: Positions, r: Any) -> ApertureSums:
    """Flux, variance and area of circular apertures, in one pass over the pixels."""
    shape = len(pos), r.shape[-1]
    radii = cupy.ascontiguousarray(cupy.broadcast_to(to_device(r), shape))
    flux, var, area, bkg_var = (cupy.empty(shape) for _ in range(4))
    masked = cupy.empty(shape, cupy.bool_)
    height, width = frame.shape
    has_rms = frame.bkg_rms is not None
    max_edges = _table_size(float(r.max()) if r.size else 0.0, max(height, width))
    launch(
        "aperture_sums",
        blocks(flux.size, _WARPS),
        (
            frame.data, frame.err, frame.bkg_rms if has_rms else frame.err, np.int32(has_rms),
            frame.bad, np.int32(height), np.int32(width), pos.x, pos.y, pos.frame,
            as_bytes(pos.valid), radii, np.int32(shape[0]), np.int32(shape[1]),
            np.int32(max_edges), flux, var, area, bkg_var, as_bytes(masked),
        ),
        2 * max_edges * _EDGE_BYTES * _WARPS,
    )  # fmt: skip
    return ApertureSums(flux, var, area, bkg_var if has_rms else None, masked)


def _table_size(r: float, side: int) -> int:
    """Edges of the widest window along one axis, or 0 if shared memory does not hold them."""
    n_edges = min(math.ceil(2 * min(r, side)) + 1, side) + 1
    fits = 2 * n_edges * _EDGE_BYTES * _WARPS <= KERNELS["aperture_sums"].max_shared
    return n_edges if fits else 0
