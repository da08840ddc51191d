"""PSF stamps as SEP resamples them."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuphot.models.psf import PSFModel

MAX_COORDINATE = 2**31 - 1
"""From here on, no pixel has a number for SEP."""


def sep_psf(psf: Any) -> Any:
    """A model as `sep_x` takes it.

    Parameters
    ----------
    psf : PSFModel of planes with a polynomial and a known FWHM, or sep_x.PSF

    Returns
    -------
    sep_x.PSF
    """
    return _kept(psf) if isinstance(psf, PSFModel) else psf


def sep_psf_stamps(
    psf: PSFModel, x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """PSF stamps as SEP resamples them, each of sum 1.

    SEP draws them one at a time, nothing here is fast.

    Parameters
    ----------
    psf : PSFModel
        As `sep_psf` takes it.
    x, y : (N,) float64 arrays

    Returns
    -------
    (N, rows, columns) float64 array
        What a source of flux 1 adds to an image. Pixel (rows // 2, columns // 2) is that of column
        ``trunc(x + 0.5)`` and row ``trunc(y + 0.5)``. Pixels at negative coordinates, which no
        image has, are 0, and so are stamps of no positive sum; NaN where a position is not finite.
    """
    stamps = np.full((len(x), *_stamp_shape(psf)), np.nan)
    for k in np.flatnonzero(np.isfinite(x) & np.isfinite(y)):
        stamps[k] = _stamp(psf, float(x[k]), float(y[k]))
    return stamps


def _stamp(psf: PSFModel, x: float, y: float) -> NDArray[np.float64]:
    """One stamp, drawn onto an image just as large, whose origin is not that of the coordinates."""
    import sep_x

    rows, columns = _stamp_shape(psf)
    stamp = np.zeros((rows, columns))
    if max(abs(x), abs(y)) >= MAX_COORDINATE:
        return stamp
    low, left = int(y + 0.5) - rows // 2, int(x + 0.5) - columns // 2
    y0, x0 = max(low, 0), max(left, 0)
    image = np.zeros((rows, columns))
    moved = replace(psf, x0=psf.x0 - x0, y0=psf.y0 - y0)
    sep_x.model_psf(image, np.array([x - x0]), np.array([y - y0]), 1.0, _to_sep(moved))
    visible = image[: max(0, rows - y0 + low), : max(0, columns - x0 + left)]
    stamp[y0 - low :, x0 - left :] = visible
    return stamp


def _stamp_shape(psf: PSFModel) -> tuple[int, int]:
    model = sep_psf(psf)
    return model.stamp_height, model.stamp_width


@functools.lru_cache(maxsize=16)
def _kept(psf: PSFModel) -> Any:
    return _to_sep(psf)


def _to_sep(psf: PSFModel) -> Any:
    import sep_x

    assert psf.planes is not None
    return sep_x.PSF(
        psf.planes.astype(np.float32),
        sampling=psf.sampling,
        degree=psf.degree,
        x0=psf.x0,
        y0=psf.y0,
        sx=psf.sx,
        sy=psf.sy,
        fwhm=psf.fwhm,
    )
