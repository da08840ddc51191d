"""Between the pixels of an image and the sky, through an astropy WCS with its distortion.

Pixels count from 0; the sky is in degrees of ICRS, whatever frame the image has.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from astropy.coordinates import ICRS, SkyCoord, angular_separation
from astropy.table import Column, Table
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales, wcs_to_celestial_frame
from numpy.typing import ArrayLike, NDArray

_TOLERANCE = 1e-8
_CONVERGED = 1e-4
"""Pixels: where the iteration stops, and how far off the way back to the sky may be."""

_Floats = NDArray[np.float64]


def pixel_to_sky(wcs: WCS, x: ArrayLike, y: ArrayLike) -> tuple[_Floats, _Floats]:
    """Sky positions of pixels.

    Parameters
    ----------
    wcs : WCS
        Two celestial axes in any frame; distortion is included.
    x, y : (N,) array_like of float
        Positions in pixels, counted from 0.

    Returns
    -------
    ra, dec : (N,) float64 arrays
        ICRS in degrees; NaN where the position is not finite or the projection has no answer.
    """
    x, y = np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float))
    lon, lat = _to_native(wcs, x, y)
    return _change_frame(lon, lat, wcs_to_celestial_frame(wcs), ICRS())


def sky_to_pixel(wcs: WCS, ra: ArrayLike, dec: ArrayLike) -> tuple[_Floats, _Floats]:
    """Pixels of sky positions.

    Parameters
    ----------
    wcs : WCS
        Two celestial axes in any frame; its distortion is inverted.
    ra, dec : (N,) array_like of float
        ICRS in degrees.

    Returns
    -------
    x, y : (N,) float64 arrays
        Positions in pixels, counted from 0; NaN where the position is not finite, where the
        projection has no answer, and where the inverse of the distortion does not converge: every
        answer is checked by the way back to the sky.
    """
    ra, dec = np.broadcast_arrays(np.asarray(ra, float), np.asarray(dec, float))
    dec = np.where(np.abs(dec) <= 90, dec, np.nan)
    lon, lat = _change_frame(ra, dec, ICRS(), wcs_to_celestial_frame(wcs))
    x, y = _from_native(wcs, lon, lat)
    lon_back, lat_back = _to_native(wcs, x, y)
    error = np.degrees(
        angular_separation(*(np.radians(angle) for angle in (lon, lat, lon_back, lat_back)))
    )
    good = error < _CONVERGED * np.min(proj_plane_pixel_scales(wcs))
    return np.where(good, x, np.nan), np.where(good, y, np.nan)


def add_sky_positions(table: Table, wcs: WCS, suffix: str = "") -> None:
    """Append ``ra`` and ``dec`` of the positions ``x`` and ``y``, all with a suffix, to a table."""
    x, y = (np.asarray(table[f"{axis}{suffix}"]) for axis in "xy")
    for name, values in zip(("ra", "dec"), pixel_to_sky(wcs, x, y), strict=True):
        table[f"{name}{suffix}"] = Column(values, unit="deg", description=f"{name}, ICRS")


def _to_native(wcs: WCS, x: _Floats, y: _Floats) -> tuple[_Floats, _Floats]:
    """Longitude and latitude in the frame of the WCS."""
    world = _of_finite(lambda x, y: wcs.all_pix2world(x, y, 0), x, y)
    return world[wcs.wcs.lng], world[wcs.wcs.lat]


def _from_native(wcs: WCS, lon: _Floats, lat: _Floats) -> tuple[_Floats, _Floats]:
    def invert(*world: _Floats) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # All NaN, if no position has an answer
            return wcs.all_world2pix(*world, 0, tolerance=_TOLERANCE, maxiter=50, quiet=True)

    lon_is_first = wcs.wcs.lng < wcs.wcs.lat
    return _of_finite(invert, *((lon, lat) if lon_is_first else (lat, lon)))


def _change_frame(lon: _Floats, lat: _Floats, old: Any, new: Any) -> tuple[_Floats, _Floats]:
    if old.is_equivalent_frame(new):
        return lon, lat

    def change(lon: _Floats, lat: _Floats) -> tuple[_Floats, _Floats]:
        there = SkyCoord(lon, lat, unit="deg", frame=old).transform_to(new).spherical
        return there.lon.deg, there.lat.deg

    return _of_finite(change, lon, lat)


def _of_finite(function: Any, a: _Floats, b: _Floats) -> tuple[_Floats, _Floats]:
    """Apply a function of two arrays where both are finite; NaN elsewhere."""
    results = np.full((2, *a.shape), np.nan)
    finite = np.isfinite(a) & np.isfinite(b)
    if np.any(finite):
        results[:, finite] = function(a[finite], b[finite])
    return results[0], results[1]
