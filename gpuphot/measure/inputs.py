"""Whatever the caller hands over, checked and converted. Every input error is raised here.

The caller's objects are read, never modified.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from astropy import units as u
from astropy.table import Table
from astropy.units.function import FunctionUnitBase
from numpy.typing import NDArray

from gpuphot.models.frame import Array, Positions
from gpuphot.models.fwhm import FWHM, typical_fwhm
from gpuphot.models.groups import MIN_RADIUS
from gpuphot.models.psf import PSFModel, as_psf_model
from gpuphot.models.sep import sampled_gaussian
from gpuphot.models.smooth import GridOptions, LoessOptions

from . import containers
from .containers import ImageLike, Parts, TableLike

Log = Callable[[str], Any]

MAX_RADIUS = 1e9
"""In pixels. Far more than any image has, and small enough for its square to be a number."""


@dataclass(frozen=True)
class Pixels:
    """An image and what belongs to its pixels, each on the host or on the caller's device.

    Attributes
    ----------
    image : (H, W) array of a real dtype
    mask : (H, W) bool array or None
        The user's mask and that of a masked image.
    bg, err : arrays that broadcast to (H, W), or None
        In the unit of the image.
    unit : unit of astropy, or None
    """

    image: Array
    mask: Array | None
    bg: Array | None = None
    err: Array | None = None
    unit: Any = None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.image.shape


def read_table(obj: TableLike) -> Table:
    """The caller's catalogue of positions as a table; flags that it has are flags."""
    table = read_catalogue("obj", obj)
    read_flags(table)
    return table


def read_catalogue(
    name: str, catalogue: TableLike, required: tuple[str, ...] = ("x", "y")
) -> Table:
    """The caller's catalogue as a table that has some columns."""
    columns = " and ".join(map(repr, required))
    try:
        table = containers.as_table(catalogue)
    except ValueError as error:
        raise ValueError(f"{name} must have {error}") from error
    if table is None:
        raise TypeError(
            f"{name} must be an astropy Table, a structured array or a pandas DataFrame with "
            f"columns {columns}, got {_kind(catalogue)}"
        )
    if not set(required) <= set(table.colnames):
        raise ValueError(f"{name} must have columns {columns}, got only {table.colnames}")
    return table


def read_flags(table: Table) -> NDArray[np.int64]:
    """Flags that the rows already have, widened to int64; 0 where there are none."""
    if "flags" not in table.colnames:
        return np.zeros(len(table), np.int64)
    parts = containers.unpack(table["flags"])
    values = np.asarray(parts.values)
    for mask in parts.masks:
        values = np.where(mask, 0, values)
    if values.dtype.kind not in "biuf" or values.shape != (len(table),):
        raise TypeError(
            "the column 'flags' of obj must hold one integer a row, "
            f"got {values.dtype} of shape {values.shape}"
        )
    with np.errstate(invalid="ignore"):
        flags = values.astype(np.int64)
    if not np.array_equal(flags, values):
        raise ValueError("the column 'flags' of obj must hold integers, got other values")
    return flags


def read_positions(table: Table, ops: Any) -> Positions:
    """Positions of the table's rows on the backend's device.

    Masked and non-finite coordinates give rows that are not valid.
    """
    x, y = (read_column("obj", table, name, in_pixels=True) for name in ("x", "y"))
    valid = np.isfinite(x) & np.isfinite(y)
    return make_positions(ops.to_device(x), ops.to_device(y), ops.to_device(valid), ops.xp)


def make_positions(x: Array, y: Array, valid: Array, xp: Any) -> Positions:
    """Positions on the first plane of a frame, with their canonical order."""
    return Positions(
        x=x, y=y, valid=valid, frame=xp.zeros(len(x), xp.int32), order=xp.lexsort(xp.stack([x, y]))
    )


def read_column(
    name: str, table: Table, column: str, in_pixels: bool = False
) -> NDArray[np.float64]:
    """A column of numbers as float64, NaN where it is masked."""
    label = f"the column '{column}' of {name}"
    values = table[column]
    parts = _in_pixels(label, values) if in_pixels else containers.unpack(values)
    values = np.asarray(parts.values)
    if values.dtype.kind not in "iuf":
        raise TypeError(f"{label} must hold numbers, got {values.dtype}")
    if values.ndim != 1:
        raise ValueError(f"{label} must hold one number a row, got shape {values.shape}")
    values = values.astype(np.float64)
    for mask in parts.masks:
        values[mask] = np.nan
    return values


def _in_pixels(name: str, values: Any) -> Parts:
    """Lengths whose unit is the pixel, none, or not known."""
    parts = containers.unpack(values)
    if not (parts.unit in (None, u.pix) or isinstance(parts.unit, u.UnrecognizedUnit)):
        raise ValueError(f"{name} must be in pixels, got the unit '{parts.unit}'")
    return replace(parts, unit=None)


def read_points(x: Any, y: Any, ops: Any) -> tuple[Array, Array]:
    """Coordinates of as many sources in x as in y, float64 on the device; NaN where masked."""
    x = _vector("x", _in_pixels("x", x), None, None, ops)
    return x, _vector("y", _in_pixels("y", y), len(x), None, ops)


def read_vector(name: str, values: Any, n: int, unit: Any, ops: Any) -> Array:
    """One float64 number for each of n sources, in a unit, on the device; NaN where masked."""
    return _vector(name, containers.unpack(values), n, unit, ops)


def read_fluxes(flux: Any, n: int, unit: Any, ops: Any) -> Array:
    """Fluxes of n sources in a unit, from one for each or from one for all."""
    parts = containers.unpack(flux)
    if not (np.isscalar(parts.values) or getattr(parts.values, "ndim", 1) == 0):
        return _vector("flux", parts, n, unit, ops)
    number = flux if parts.unit is None or parts.masks else parts.values
    number = real_number("flux", number, "a number, or one for each star")
    return ops.xp.full(n, _in_unit("flux", number, parts.unit, unit))


def unit_of(name: str, values: Any) -> Any:
    """The unit that light comes with, or None; it adds up in units that are not logarithmic."""
    return _linear(name, containers.unpack(values).unit)


def _linear(name: str, unit: Any) -> Any:
    if unit is not None and (isinstance(unit, FunctionUnitBase) or unit.is_equivalent(u.mag)):
        raise ValueError(f"{name} must be in a linear unit, got '{unit}'")
    return unit


def _vector(name: str, parts: Parts, n: int | None, unit: Any, ops: Any) -> Array:
    vector = _numbers(name, parts, unit, ops)
    if vector.ndim != 1 or (n is not None and len(vector) != n):
        expected = "a 1-D array" if n is None else f"a 1-D array of {n} numbers, as many as x"
        raise ValueError(f"{name} must be {expected}, got shape {vector.shape}")
    return ops.to_device(vector).astype(ops.xp.float64, copy=False)


def read_rng(rng: Any) -> np.random.Generator:
    """A generator of random numbers, perhaps from its seed."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"rng must be a numpy.random.Generator, a seed or None, got {rng!r}: {error}"
        ) from error


def read_shape(name: str, value: Any) -> tuple[int, int]:
    """Rows and columns of an image with at least one pixel."""
    if not isinstance(value, (tuple, list, np.ndarray)) or len(value) != 2:
        raise ValueError(f"{name} must be (rows, columns), got {value!r}")
    rows, columns = (integer(name, length, 1) for length in value)
    return rows, columns


def read_target(target: Any, n: int, ops: Any) -> NDArray[np.int64]:
    """Rows of the targets among n sources; all of them by default."""
    if target is None:
        return np.arange(n)
    if hasattr(target, "__cuda_array_interface__"):
        target = ops.to_host(ops.to_device(target))
    parts = containers.unpack(target)
    rows = np.asarray(parts.values)
    if any(np.any(mask) for mask in parts.masks):
        raise ValueError("target must say of every row whether it is one, got masked entries")
    if rows.size == 0 and rows.ndim == 1:
        rows = rows.astype(rows.dtype if rows.dtype == bool else np.int64)
    if rows.ndim != 1 or rows.dtype.kind not in "biu":
        raise TypeError(
            f"target must be a 1-D array of booleans or of row numbers, got {_kind(target)}"
        )
    if rows.dtype == bool:
        if len(rows) != n:
            raise ValueError(f"target must have {n} booleans, as many as x, got {len(rows)}")
        return np.flatnonzero(rows)
    outside = (rows < -n) | (rows >= n)
    if outside.any():
        raise ValueError(f"target must hold rows of the {n} sources, got {rows[outside][0]}")
    return np.where(rows < 0, rows + n, rows).astype(np.int64)


def read_image(image: ImageLike, mask: ImageLike | None, ops: Any) -> Pixels:
    """Check an image and its mask."""
    parts = containers.unpack(image)
    pixels = _real_array("image", parts.values, ops)
    if pixels.ndim != 2 or pixels.size == 0:
        raise ValueError(
            f"image must be a 2-D array with at least one pixel, got shape {pixels.shape}"
        )
    masks = [_mask("the mask of image", each, pixels.shape, ops) for each in parts.masks]
    if mask is not None:
        given = containers.unpack(mask)
        if given.unit is not None:
            raise TypeError(f"mask must be without unit, got {_kind(mask)} in '{given.unit}'")
        masks += [_mask("mask", each, pixels.shape, ops) for each in (given.values, *given.masks)]
    return Pixels(
        image=pixels,
        mask=functools.reduce(operator.or_, masks) if masks else None,
        unit=_linear("image", parts.unit),
    )


def read_pixels(
    image: ImageLike, mask: ImageLike | None, bg: ImageLike | None, err: ImageLike | None, ops: Any
) -> Pixels:
    """Check an image, its mask, its background and its noise against each other."""
    pixels = read_image(image, mask, ops)
    noise = noise_of(image, err)
    name = "the uncertainty of image" if err is None else "err"
    return replace(
        pixels,
        bg=None if bg is None else _companion("bg", bg, pixels, ops),
        err=None if noise is None else _companion(name, noise, pixels, ops),
    )


def noise_of(image: ImageLike, err: ImageLike | None) -> Any:
    """The noise to use: `err`, or else what an NDData knows of its own."""
    return containers.uncertainty_of(image) if err is None else err


def _mask(name: str, values: Any, shape: tuple[int, int], ops: Any) -> Array:
    """Where a mask is not zero, on the backend's device."""
    return ops.to_device(_plane(name, _real_array(name, values, ops), shape, ops.xp) != 0)


def _companion(name: str, values: Any, pixels: Pixels, ops: Any) -> Array:
    """What broadcasts to an image, in its unit."""
    try:
        parts = containers.unpack(values)
    except TypeError:
        raise TypeError(
            f"{name} must be a StdDevUncertainty, VarianceUncertainty or InverseVariance, or err "
            f"an array, got {_kind(values)}"
        ) from None
    return _plane(name, _numbers(name, parts, pixels.unit, ops), pixels.shape, ops.xp)


def check_mesh(cells: NDArray[np.float64], bg_size: int) -> None:
    """Refuse an image whose background mesh has no good cell."""
    if np.isnan(cells).all():
        raise ValueError(
            "image must have unmasked, finite pixels to estimate its background from, but in none "
            f"of the {cells.size} mesh cells of bg_size={bg_size} pixels a tenth of them is left"
        )


def _numbers(name: str, parts: Parts, unit: Any, ops: Any) -> Array:
    """Values in a unit, NaN where masked."""
    array = _in_unit(name, _real_array(name, parts.values, ops), parts.unit, unit)
    for mask in parts.masks:
        mask = _plane(f"the mask of {name}", np.asarray(mask), array.shape, np)
        array = np.where(mask, np.nan, array)
    return array


def _in_unit(name: str, values: Any, unit: Any, target: Any) -> Any:
    """Values in the unit of the image; those without unit are in it."""
    if unit is None or unit == target:
        return values
    try:
        return unit.to(u.dimensionless_unscaled if target is None else target, values)
    except (u.UnitConversionError, ValueError):  # the latter from units that are not known
        expected = "without unit, as image is" if target is None else f"in units of '{target}'"
        raise ValueError(f"{name} must be {expected}, got the unit '{unit}'") from None


def _real_array(name: str, values: Any, ops: Any) -> Array:
    """Values of a real dtype; those on a device stay there."""
    if hasattr(values, "__cuda_array_interface__"):
        array = ops.to_device(values)
    else:
        try:
            array = np.asarray(values)
        except (TypeError, ValueError):  # ragged lists, lists of quantities
            raise TypeError(f"{name} must be an array, got no array: {_kind(values)}") from None
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be an array of real numbers, got {_kind(values)}")
    return array


def _plane(name: str, values: Array, shape: tuple[int, ...], xp: Any) -> Array:
    try:
        return (np if isinstance(values, np.ndarray) else xp).broadcast_to(values, shape)
    except ValueError:
        raise ValueError(
            f"{name} must be a scalar or match the image's shape {shape}, got shape {values.shape}"
        ) from None


def real_number(name: str, value: Any, expected: str = "a number") -> float:
    """A real scalar as float; arrays, strings and booleans are none."""
    none = (str, bytes, bool, np.bool_, list, tuple, np.ma.core.MaskedConstant)
    if isinstance(value, none) or np.ndim(value) > 0:
        raise TypeError(f"{name} must be {expected}, got {_kind(value)}")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name} must be {expected}, got {_kind(value)}") from None


def positive_number(name: str, value: Any) -> float:
    """A positive, finite scalar."""
    number = real_number(name, value, "a positive number")
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return number


def not_negative(name: str, value: Any) -> float:
    """A finite scalar of at least 0."""
    number = real_number(name, value, "a number of at least 0")
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
    return number


def radius(name: str, value: Any, scale: float) -> float:
    """A radius in pixels."""
    r = positive_number(name, value) * scale
    if not 0 < r < MAX_RADIUS:
        raise ValueError(
            f"{name} must be a radius that pixels can have, got {value!r} ({r} pixels)"
        )
    return r


def flag(name: str, value: Any) -> bool:
    """A scalar that is true or false."""
    if np.ndim(value) > 0:
        raise TypeError(f"{name} must be True or False, got {_kind(value)}")
    return bool(value)


def n_iterations(name: str, value: Any) -> int:
    """How many times to do something; None and False mean not at all."""
    return 0 if value is None or value is False else integer(name, value, 0)


def integer(name: str, value: Any, minimum: int) -> int:
    """An integer not below `minimum`."""
    expected = f"an integer of at least {minimum}"
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be {expected}, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be {expected}, got {_kind(value)}") from None
    if number < minimum:
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    return number


def choice(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """The one of `choices` that equals `value`."""
    for option in choices:
        if isinstance(value, (int, float, str, np.generic)) and value == option:
            return option
    listed = ", ".join(map(repr, choices))
    raise ValueError(f"{name} must be one of {listed}, got {value!r}")


def _at_least(minimum: int) -> Callable[[str, Any], int]:
    return lambda name, value: integer(name, value, minimum)


def read_gain(gain: Any) -> float | None:
    """Gain in electrons per count; 0 means none, as None does."""
    if gain is None:
        return None
    number = real_number("gain", gain, "a positive number or None")
    if math.isnan(number) or number < 0:
        raise ValueError(f"gain must be a positive number or None, got {gain!r}")
    return number or None


def read_signal_to_noise(sn: Any) -> float | None:
    """Minimal signal-to-noise ratio; None and numbers that are not positive switch it off."""
    if sn is None:
        return None
    number = real_number("sn", sn, "a number or None")
    if math.isnan(number):
        raise ValueError(f"sn must be a number or None, got {sn!r}")
    return number if number > 0 else None


def read_scale(fwhm: Any, shape: tuple[int, int]) -> float:
    """Pixels per unit of the radii: the FWHM if there is one, else 1."""
    if fwhm is None:
        return 1.0
    if not callable(fwhm):
        return positive_number("fwhm", fwhm)
    try:
        typical = typical_fwhm(fwhm, shape)
    except Exception as error:
        raise TypeError(
            f"fwhm must be a positive number or a callable fwhm(x, y) of pixel positions, "
            f"but calling it failed: {type(error).__name__}: {error}"
        ) from error
    if not (math.isfinite(typical) and typical > 0):
        raise ValueError(f"fwhm must be positive, but the callable's typical value is {typical}")
    return typical


def read_annulus(
    bkgann: Any, scale: float, may_be_disc: bool = False
) -> tuple[float, float] | None:
    """Inner and outer radius of the background annulus in pixels; of a disc, the inner one is 0."""
    if bkgann is None:
        return None
    if not isinstance(bkgann, (tuple, list, np.ndarray)) or len(bkgann) != 2:
        raise ValueError(f"bkgann must be two radii (inner, outer), got {bkgann!r}")
    inner, outer = bkgann
    is_disc = may_be_disc and real_number("bkgann", inner, "two radii") == 0
    r_in = 0.0 if is_disc else radius("bkgann", inner, scale)
    r_out = radius("bkgann", outer, scale)
    if r_out <= r_in:
        raise ValueError(f"bkgann must have an outer radius above the inner one, got {bkgann!r}")
    return r_in, r_out


def read_field_options(kwargs: Any) -> LoessOptions | GridOptions:
    """How the field of a correction is fitted; see `measure_aperture_deblended`."""
    name = "correction_field_kwargs"
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(f"{name} must be a dictionary or None, got {_kind(kwargs)}")
    given = dict(kwargs or {})
    method = choice(f"{name}['backend']", given.pop("backend", "loess"), ("loess", "grid"))
    if method == "loess":
        choice(f"{name}['kernel']", given.pop("kernel", "gaussian"), ("gaussian",))
    readers = _FIELD_READERS[method]
    options = {}
    for key, value in given.items():
        label = f"{name}['{key}']"
        if key in readers:
            if value is not None:
                options[key] = readers[key](label, value)
        elif key not in _IGNORED[method]:
            raise ValueError(f"{name} must have keys of the method '{method}', got {key!r}")
    return LoessOptions(**options) if method == "loess" else GridOptions(**options)


def _pair(read: Callable[[str, Any], Any]) -> Callable[[str, Any], tuple[Any, Any]]:
    """A reader of two values that one each is read with `read`."""

    def read_pair(name: str, value: Any) -> tuple[Any, Any]:
        if not isinstance(value, (tuple, list, np.ndarray)) or len(value) != 2:
            raise ValueError(f"{name} must be two numbers, got {value!r}")
        first, second = value
        return read(name, first), read(name, second)

    return read_pair


_FIELD_READERS: dict[str, dict[str, Callable[[str, Any], Any]]] = {
    "loess": {
        "scales": _pair(positive_number),
        "k": _at_least(1),
        "robust_iters": _at_least(0),
        "robust_c": positive_number,
        "min_bandwidth": positive_number,
        "ridge": not_negative,
    },
    "grid": {
        "image_shape": read_shape,
        "grid_shape": _pair(_at_least(2)),
        "min_per_cell": _at_least(1),
        "smooth_sigma": not_negative,
    },
}
_IGNORED = {
    "loess": ("leaf_size", "n_jobs", *_FIELD_READERS["grid"]),
    "grid": ("k", "scales"),
}
"""Keys that stdpipe takes for a method, too, and that have no effect."""


def read_range(name: str, value: Any) -> tuple[float, float]:
    """A lower and an upper limit, not negative."""
    low, high = _pair(lambda name, number: real_number(name, number, "two numbers"))(name, value)
    if not 0 <= low <= high:
        raise ValueError(f"{name} must be (low, high) with 0 <= low <= high, got {value!r}")
    return low, high


def read_psf(psf: Any) -> PSFModel | None:
    """The caller's PSF model, with stamps that have a central pixel; None for None."""
    return None if psf is None else read_stamps(psf)


def read_stamps(psf: Any) -> PSFModel:
    """The caller's PSF model, with stamps that have a central pixel."""
    model = as_psf_model(psf)
    if not model.has_central_pixel:
        rows, columns = model.stamp_shape
        raise ValueError(
            "psf must make stamps of an odd number of rows and columns, so that the star lies on "
            f"their central pixel, got a model with stamps of {rows} x {columns} pixels"
        )
    return model


def read_sep_psf(name: str, psf: Any, backend: str) -> Any:
    """The caller's PSF for SEP's routines: a model with planes and a FWHM, or a `sep_x.PSF`."""
    if psf is None:
        return None
    if hasattr(psf, "stamp_width"):  # sep_x.PSF, without importing it
        if backend != "numpy":
            raise ValueError(
                f"{name} must be a model whose data can be read on the {backend} backend, such as "
                "a PSFModel or the dictionary; a sep_x.PSF keeps its data to itself"
            )
        return psf
    try:
        model = as_psf_model(psf)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("psf", name, 1)) from error
    if model.grid_x is not None:
        raise ValueError(f"{name} must be one model or a polynomial in the position, got a grid")
    if not math.isfinite(model.fwhm):
        raise ValueError(f"{name} must have an entry 'fwhm', the FWHM in pixels, got none")
    return sampled_gaussian(model.fwhm) if model.planes is None else model


def check_flux_errors(propagate: bool, flux_psf_err: Any) -> None:
    """Refuse to propagate errors that are not there."""
    if propagate and flux_psf_err is None:
        raise ValueError(
            "flux_psf_err must be given with propagate_neighbour_errors=True, got None"
        )


def check_extraction(optimal: bool, psf: Any, fwhm: Any) -> None:
    """Refuse optimal extraction in SEP's way together with a PSF, or without a FWHM."""
    if optimal and psf is not None:
        raise ValueError("psf and optimal=True exclude each other: either fit or sum, got both")
    if optimal and fwhm is None:
        raise ValueError("fwhm must be given for optimal extraction, got None")


def read_profile(psf: PSFModel | None, fwhm: FWHM | None, scale: float) -> PSFModel:
    """The model of a star: `psf`, or else a Gaussian with the typical FWHM."""
    if psf is not None:
        return psf
    if fwhm is None:
        raise ValueError(
            "psf or fwhm must be given for optimal extraction and for centroid_method='psf', "
            "got neither"
        )
    return PSFModel.gaussian(scale)


def read_widths(
    fwhm: FWHM, x: NDArray[np.float64], y: NDArray[np.float64], valid: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """FWHM at the valid positions; NaN where it is not a positive, finite number."""
    assert callable(fwhm)
    expected = "fwhm must return a number, or an array with one for each of the positions"
    try:
        returned = fwhm(x[valid], y[valid])
        answer = np.asarray(returned)
    except Exception as error:
        raise TypeError(
            f"{expected}, but calling it failed: {type(error).__name__}: {error}"
        ) from error
    if answer.dtype.kind not in "iuf":
        raise TypeError(f"{expected}, got {_kind(returned)}")
    n = np.count_nonzero(valid)
    if answer.shape not in ((), (n,)):
        raise ValueError(f"{expected}, got shape {answer.shape} for {n} positions")
    widths = np.full(len(x), np.nan)
    widths[valid] = np.where(np.isfinite(answer) & (answer > 0), answer, np.nan)
    return widths


def read_grouper_radius(grouper_radius: Any, r_aper: float) -> float:
    """Distance in pixels up to which sources are grouped; 0 if none are."""
    if grouper_radius is None:
        return 2 * r_aper
    number = real_number("grouper_radius", grouper_radius, "a number of pixels or None")
    if not number < MAX_RADIUS:
        raise ValueError(
            f"grouper_radius must be a number of pixels or None, got {grouper_radius!r}"
        )
    return max(number, MIN_RADIUS) if number > 0 else 0.0


def read_log(verbose: bool | Log) -> Log | None:
    """The function that takes messages, or None for silence."""
    if callable(verbose):
        return verbose
    return print if verbose else None


def _kind(value: Any) -> str:
    """How to name a value in an error: scalars by value, arrays by dtype and shape."""
    if isinstance(value, np.ndarray) and value.ndim:
        return f"{type(value).__name__} of dtype {value.dtype} and shape {value.shape}"
    if isinstance(value, (int, float, complex, str, bytes, np.generic)):
        return repr(value)
    return type(value).__name__
