"""The width of stars: one number for the image, or a map that is called with positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, SupportsFloat

import numpy as np

FWHM = SupportsFloat | Callable[[Any, Any], Any]
"""A FWHM in pixels, or a callable ``fwhm(x, y)`` that returns it at positions; such a callable
may also convert to `float`, which then is its summary for the whole image."""


def typical_fwhm(fwhm: FWHM, shape: tuple[int, int]) -> float:
    """One FWHM for the image: ``float(fwhm)``, or else a callable's value at the image centre.

    Parameters
    ----------
    fwhm : float or callable
    shape : (int, int)
        Height and width of the image.

    Returns
    -------
    float
        In pixels; not checked.
    """
    if callable(fwhm):
        summary = _summary(fwhm)
        if np.isfinite(summary) and summary > 0:
            return summary
        height, width = shape
        return float(np.median(np.atleast_1d(fwhm(width / 2, height / 2))))
    return float(fwhm)


def _summary(fwhm: Any) -> float:
    """``float(fwhm)``, or NaN where that fails."""
    try:
        return float(fwhm)
    except (TypeError, ValueError):
        return np.nan
