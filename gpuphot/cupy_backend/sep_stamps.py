"""PSF stamps as SEP resamples them; twin of ``numpy_backend.sep_stamps``."""

from __future__ import annotations

import functools
import math
from typing import Any

import cupy
import numpy as np

from gpuphot.models.psf import PSFModel

from .launch import launch, scratch, to_device


def sep_psf_stamps(psf: PSFModel, x: Any, y: Any) -> Any:
    """PSF stamps as SEP resamples them, each of sum 1; (N, rows, columns) float64."""
    n = len(x)
    stamps = cupy.empty((n, *stamp_shape(psf)))
    x, y = (cupy.ascontiguousarray(to_device(v).astype(cupy.float64)) for v in (x, y))
    workspace, step, shared = scratch("sep_psf_stamps", n, scratch_floats(psf), cupy.float32)
    model = psf_arguments(psf)
    for begin in range(0, n, step):
        n_blocks = min(step, n - begin)
        of_scratch = (workspace, np.int32(scratch_floats(psf)), np.int32(shared > 0))
        arguments = (*model, x, y, np.int32(begin), *of_scratch, stamps)
        launch("sep_psf_stamps", n_blocks, arguments, shared)
    return stamps


def psf_arguments(psf: PSFModel) -> tuple[Any, ...]:
    """The fields of the structure ``SepPSF`` of ``sep_stamps.cuh``, in their order."""
    planes = _device_planes(psf, cupy.cuda.runtime.getDevice())
    return (
        planes,
        *(np.int32(value) for value in (*planes.shape, psf.degree)),
        np.float32(psf.sampling),
        *(np.float64(value) for value in (psf.x0, psf.y0, psf.sx, psf.sy)),
        *(np.int32(length) for length in stamp_shape(psf)),
    )


def stamp_shape(psf: PSFModel) -> tuple[int, int]:
    """Rows and columns of a stamp; it is centred on pixel (rows // 2, columns // 2)."""
    assert psf.planes is not None
    step = float(np.float32(psf.sampling))
    rows, columns = (max(1, math.floor(n * step + 0.5)) for n in psf.planes.shape[1:])
    return rows, columns


def scratch_floats(psf: PSFModel) -> int:
    """Floats that ``sep_stamp`` needs for a stamp: combined and resampled planes, and the stamp."""
    assert psf.planes is not None
    height, width = psf.planes.shape[1:]
    rows, columns = stamp_shape(psf)
    return height * width + height * columns + rows * columns


@functools.lru_cache(maxsize=16)
def _device_planes(psf: PSFModel, device: int) -> Any:
    """The planes in single precision, on a device."""
    assert psf.planes is not None
    planes = to_device(np.ascontiguousarray(psf.planes, dtype=np.float32))
    # They are kept for calls on any stream, and must be there before those begin.
    cupy.cuda.get_current_stream().synchronize()
    return planes
