"""From an image and its companions to a `Frame`; twin of ``numpy_backend.frame``."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from gpuphot.models.background import SplineSurface
from gpuphot.models.frame import Frame

from .launch import as_bytes, blocks, launch, plane, to_device
from .mesh import surface_arguments

_THREADS = 256


def load_image(image: Any, mask: Any | None) -> tuple[Any, Any]:
    """Pixels as float64, and what is wrong with each of them."""
    data = cupy.array(to_device(image), dtype=cupy.float64, order="C")
    bad = cupy.empty(data.shape, cupy.uint8)
    has_mask = mask is not None
    bits = as_bytes(cupy.ascontiguousarray(to_device(mask))) if has_mask else bad
    launch(
        "mark_bad_pixels",
        blocks(data.size, _THREADS),
        (data, bits, np.int32(has_mask), np.int64(data.size), bad),
    )
    return data, bad


def subtract_background(
    data: Any,
    bad: Any,
    background: Any,
    err: Any | None,
    rms: SplineSurface | None,
    gain: float | None,
) -> Frame:
    """Subtract the background and attach the noise, in place."""
    shape = data.shape
    is_surface = isinstance(background, SplineSurface)
    level = data if is_surface else plane(background, shape)
    bkg_rms = None if rms is None else cupy.empty(shape)
    if err is not None:
        noise = plane(err, shape)
    else:
        noise = cupy.empty(shape) if bkg_rms is None or gain else bkg_rms
    unused = data
    cell = background.cell if is_surface else (1, 1) if rms is None else rms.cell
    launch(
        "subtract_background",
        blocks(data.size, _THREADS),
        (
            data, bad, np.int32(shape[0]), np.int32(shape[1]), level, np.int32(is_surface),
            *surface_arguments(background if is_surface else None), np.int32(rms is not None),
            *surface_arguments(rms), np.int32(cell[0]), np.int32(cell[1]), np.float64(gain or 0),
            np.int32(err is not None), noise, unused if err is not None else noise,
            unused if bkg_rms is None else bkg_rms,
        ),
    )  # fmt: skip
    return Frame(
        data=data[None],
        bad=bad[None],
        err=noise[None],
        bkg_rms=None if bkg_rms is None else bkg_rms[None],
    )
