"""Frames for SEP's conventions; twin of ``numpy_backend.sep_frame``."""

from __future__ import annotations

from typing import Any

import cupy

from gpuphot.models.frame import Bad, Frame

from .frame import load_image
from .launch import to_device


def sep_frame(image: Any, mask: Any | None, background: Any, err: Any) -> Frame:
    """Subtract the background, and round data and noise to float32."""
    data, bad = load_image(image, mask)
    level, noise = (
        cupy.broadcast_to(to_device(values), data.shape) for values in (background, err)
    )
    missing = (bad & Bad.IMAGE) != 0
    pixels = cupy.where(missing, 0.0, data - level).astype(cupy.float32)
    bad |= cupy.where(cupy.isfinite(pixels), cupy.uint8(0), Bad.BACKGROUND)
    sigma = cupy.ascontiguousarray(noise.astype(cupy.float32))
    return Frame(data=pixels[None], bad=bad[None], err=sigma[None])
