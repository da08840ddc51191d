"""PSF models that others made, read and checked: PSFEx's dictionaries and files, photutils' models.

What comes out are the fields of a `PSFModel`.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from .polynomial import n_terms

_SAMPLING_TOLERANCE = 1e-3

# Keywords of a .psf file, and the entries of a dictionary that they become.
_MODEL_KEYWORDS = {
    "PSFAXIS1": "width",
    "PSFAXIS2": "height",
    "PSFAXIS3": "ncoeffs",
    "PSF_SAMP": "sampling",
    "PSF_FWHM": "fwhm",
}
_POLYNOMIAL_KEYWORDS = {
    "POLDEG1": "degree",
    "POLZERO1": "x0",
    "POLZERO2": "y0",
    "POLSCAL1": "sx",
    "POLSCAL2": "sy",
}


def fields_of_psfex_dict(psf: Mapping[str, Any]) -> dict[str, Any]:
    """Read a dictionary like that of ``stdpipe.psf.load_psf``; see `PSFModel.from_psfex_dict`."""
    degree = _integer(psf, "degree", 0, at_least=0)
    planes = _polynomial_planes(psf, degree)
    sampling = _positive(psf, "sampling")
    zero, one = (None, None) if degree else (0.0, 1.0)
    return {
        "planes": planes,
        "sampling": sampling,
        "width": _integer(psf, "width", planes.shape[2], at_least=1),
        "height": _integer(psf, "height", planes.shape[1], at_least=1),
        "fwhm": math.nan if psf.get("fwhm") is None else _positive(psf, "fwhm"),
        "degree": degree,
        "x0": _number(psf, "x0", zero),
        "y0": _number(psf, "y0", zero),
        "sx": _scale(psf, "sx", one),
        "sy": _scale(psf, "sy", one),
        "n_sub": _block_side(planes, sampling),
    }


def fields_of_photutils(model: Any) -> dict[str, Any]:
    """Read an image model or a gridded one; see `PSFModel.from_photutils`."""
    planes = _read_planes("psf.data", model.data)
    oversampling = _oversampling(model)
    grid: dict[str, Any] = {}
    if hasattr(model, "grid_xypos"):
        grid_x, grid_y, planes = _sort_grid(model.grid_xypos, planes)
        grid = {"grid_x": grid_x, "grid_y": grid_y}
    else:
        _check_image(model, planes, oversampling)
    _, height, width = planes.shape
    sampling = 1 / oversampling
    return {"planes": planes, "sampling": sampling, "width": width, "height": height} | grid


def read_psfex_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a ``.psf`` file into a dictionary like stdpipe's; see `load_psf`."""
    with fits.open(path, memmap=False) as hdus:
        if len(hdus) < 2 or not isinstance(hdus[1], fits.BinTableHDU) or not len(hdus[1].data):
            raise ValueError("it has no table with a PSF model in its first extension")
        header, planes = hdus[1].header, np.asarray(hdus[1].data[0][0])
    keywords = _MODEL_KEYWORDS | _POLYNOMIAL_KEYWORDS
    varies = header.get("POLDEG1", 0) != 0
    missing = [key for key in (keywords if varies else _MODEL_KEYWORDS) if key not in header]
    if missing:
        raise ValueError(f"its header lacks {', '.join(missing)}")
    shape = tuple(header[f"PSFAXIS{axis}"] for axis in (3, 2, 1))
    if shape != planes.shape:
        raise ValueError(
            f"PSFAXIS3, PSFAXIS2 and PSFAXIS1 are {shape}, but its planes have shape {planes.shape}"
        )
    for key, axis in (("POLNAME1", "X"), ("POLNAME2", "Y")):
        if varies and not str(header.get(key, axis)).startswith(axis):
            raise ValueError(f"its planes must vary with {axis}, but {key} is {header[key]!r}")
    return {entry: header.get(key) for key, entry in keywords.items()} | {"data": planes}


# Entries of dictionaries


def _polynomial_planes(psf: Mapping[str, Any], degree: int) -> NDArray[np.float64]:
    planes = _read_planes("psf['data']", _entry(psf, "data"))
    expected = n_terms(degree)
    if len(planes) != expected:
        raise ValueError(
            f"psf['data'] must be planes of shape ({expected}, h, w) for degree {degree}, "
            f"got shape {planes.shape}"
        )
    if _integer(psf, "ncoeffs", expected, at_least=1) != expected:
        raise ValueError(
            f"psf['ncoeffs'] must be {expected} for degree {degree}, got {psf['ncoeffs']!r}"
        )
    return planes


def _block_side(planes: NDArray[np.float64], sampling: float) -> int:
    """Model pixels along the side of an image pixel if such blocks fill the planes, else 1."""
    n_sub = round(1 / sampling)
    if n_sub < 2 or abs(n_sub * sampling - 1) > _SAMPLING_TOLERANCE:
        return 1
    return n_sub if all(length % n_sub == 0 for length in planes.shape[1:]) else 1


def _read_planes(name: str, data: Any) -> NDArray[np.float64]:
    """A read-only copy of one or several planes; (B, h, w)."""
    data = np.asarray(data)
    if data.dtype.kind not in "iuf":
        raise ValueError(f"{name} must hold numbers, got {data.dtype}")
    if data.ndim not in (2, 3) or data.size == 0:
        raise ValueError(f"{name} must be planes of shape (B, h, w), got shape {data.shape}")
    if not np.isfinite(data).all():
        raise ValueError(f"{name} must hold finite numbers, got others")
    return _read_only(data.astype(np.float64).reshape(-1, *data.shape[-2:]))


def _read_only(array: NDArray[np.float64]) -> NDArray[np.float64]:
    array.flags.writeable = False
    return array


def _entry(psf: Mapping[str, Any], key: str, default: Any = None) -> Any:
    entry = default if psf.get(key) is None else psf[key]
    if entry is None:
        raise ValueError(f"psf must have an entry '{key}', got {sorted(map(str, psf))}")
    return entry


def _number(psf: Mapping[str, Any], key: str, default: float | None = None) -> float:
    entry = _entry(psf, key, default)
    try:
        value = float(entry)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"psf['{key}'] must be a finite number, got {entry!r}")
    return value


def _positive(psf: Mapping[str, Any], key: str) -> float:
    value = _number(psf, key)
    if value <= 0:
        raise ValueError(f"psf['{key}'] must be positive, got {value!r}")
    return value


def _scale(psf: Mapping[str, Any], key: str, default: float | None) -> float:
    value = _number(psf, key, default)
    if value == 0:
        raise ValueError(f"psf['{key}'] must not be 0: positions are divided by it")
    return value


def _integer(psf: Mapping[str, Any], key: str, default: int, *, at_least: int) -> int:
    entry = _entry(psf, key, default)
    try:
        value = operator.index(entry)
    except TypeError:
        value = at_least - 1
    if value < at_least:
        raise ValueError(f"psf['{key}'] must be an integer of at least {at_least}, got {entry!r}")
    return value


# Attributes of photutils' models


def _oversampling(model: Any) -> float:
    """Samples per image pixel, the same along both axes."""
    factors = np.asarray(model.oversampling)
    if factors.dtype.kind in "iuf" and factors.shape in ((), (2,)):
        factor = float(factors.min())
        if 0 < factor == factors.max() < math.inf:
            return factor
    raise ValueError(
        "psf.oversampling must be a positive number, the same in x and y, "
        f"got {model.oversampling!r}"
    )


def _check_image(model: Any, planes: NDArray[np.float64], oversampling: float) -> None:
    """Refuse what is no single image with the star in its centre."""
    if len(planes) != 1:
        raise ValueError(f"psf.data must be one plane, got shape {np.shape(model.data)}")
    centre = (np.array(planes.shape[:0:-1]) - 1) / 2
    if hasattr(model, "norm_radius"):  # EPSFModel, which gives its origin in image pixels
        centre = centre / oversampling
    origin = getattr(model, "origin", None)
    if origin is not None and not (
        np.shape(origin) == (2,) and np.allclose(origin, centre, rtol=0, atol=1e-9)
    ):
        raise ValueError(
            f"psf.origin must be the centre of psf.data, {tuple(centre.tolist())}, got {origin!r}"
        )


def _sort_grid(
    positions: Any, planes: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Nodes of a rectangular grid along x and y, and the planes in the order of the rows."""
    positions = np.asarray(positions, np.float64)
    if positions.shape != (len(planes), 2) or not np.isfinite(positions).all():
        raise ValueError(
            f"psf.grid_xypos must be {len(planes)} finite positions (x, y), one for each plane, "
            f"got shape {positions.shape}"
        )
    grid_x, grid_y = (np.unique(v) for v in positions.T)
    order = np.lexsort(positions.T)
    nodes = np.stack(np.meshgrid(grid_x, grid_y), axis=-1).reshape(-1, 2)
    if not np.array_equal(positions[order], nodes):
        raise ValueError(
            "psf.grid_xypos must fill a rectangle, every x with every y once, but it is "
            f"{len(planes)} positions with {len(grid_x)} different x and {len(grid_y)} different y"
        )
    return _read_only(grid_x), _read_only(grid_y), _read_only(planes[order])
