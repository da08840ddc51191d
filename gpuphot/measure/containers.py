"""What other packages call an image or a catalogue, taken apart into plain arrays and tables.

Only `inputs` calls this: it knows the names of the arguments, and checks what comes out. What is
no container, and any array on a GPU, passes untouched.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from astropy.io.fits import FITS_rec
from astropy.nddata import InverseVariance, NDData, NDUncertainty, StdDevUncertainty
from astropy.table import Column, MaskedColumn, Table
from astropy.units import Quantity, Unit, dimensionless_unscaled
from astropy.utils.masked import Masked
from numpy.typing import NDArray

ImageLike = Any
"""An array of NumPy, CuPy or numpy.ma, a Quantity, perhaps Masked, or an NDData."""

TableLike = Any
"""A Table or QTable, a structured array of NumPy or of FITS, or a DataFrame of pandas."""


@dataclass(frozen=True)
class Parts:
    """What a container holds.

    Attributes
    ----------
    values : array, or whatever was no container
    masks : arrays that broadcast to the values, not zero where these do not count
    unit : unit of astropy, or None; also None for numbers
    """

    values: Any
    masks: tuple[Any, ...] = ()
    unit: Any = None


def unpack(values: Any) -> Parts:
    """Take a container of numbers apart; an uncertainty of NDData becomes standard deviations.

    Raises
    ------
    TypeError
        If an uncertainty is of a kind without standard deviations.
    """
    if isinstance(values, NDData):
        masks = values.mask, _has_no_weight(values.uncertainty)
        present = tuple(mask for mask in masks if mask is not None)
        return Parts(values.data, present, _without_one(values.unit))
    if isinstance(values, NDUncertainty):
        return _unpack_uncertainty(values)
    if isinstance(values, np.ma.MaskedArray):
        return _masked(unpack(np.ma.getdata(values)), np.ma.getmaskarray(values))
    if isinstance(values, Masked):
        return _masked(unpack(values.unmasked), values.mask)
    if isinstance(values, Quantity):
        return Parts(values.value, unit=_without_one(values.unit))
    if isinstance(values, Column):
        return Parts(np.asarray(values), unit=_without_one(values.unit))
    if _is_of_pandas(values, "Series") or _is_of_pandas(values, "Index"):
        return unpack(Table.from_pandas(values.to_frame(name="values"))["values"])
    return Parts(values)


def uncertainty_of(image: Any) -> NDUncertainty | None:
    """What an NDData knows of its noise."""
    return image.uncertainty if isinstance(image, NDData) else None


def as_table(obj: Any) -> Table | None:
    """A catalogue as a table, which shares its memory where it can; None if it is none.

    Raises
    ------
    ValueError
        If columns have the same name.
    """
    if isinstance(obj, Table):
        return obj
    if _is_of_pandas(obj, "DataFrame"):
        return _from_pandas(obj)
    if isinstance(obj, FITS_rec):
        return _from_fits(obj)
    if isinstance(obj, np.ndarray) and obj.dtype.names and obj.ndim:
        return Table(obj, copy=False)
    return None


def _masked(parts: Parts, mask: Any) -> Parts:
    return replace(parts, masks=(*parts.masks, mask))


def _without_one(unit: Any) -> Any:
    return None if unit == dimensionless_unscaled else unit


def _has_no_weight(uncertainty: Any) -> NDArray[np.bool_] | None:
    """Where an inverse variance says that a pixel must not be used."""
    if not isinstance(uncertainty, InverseVariance) or uncertainty.array is None:
        return None
    weight = np.asarray(uncertainty.array)
    return ~(np.isfinite(weight) & (weight > 0))


def _unpack_uncertainty(uncertainty: NDUncertainty) -> Parts:
    unusable = _has_no_weight(uncertainty)
    # A round trip through the variance would cost the last bit.
    if not isinstance(uncertainty, StdDevUncertainty):
        with np.errstate(all="ignore"):
            uncertainty = uncertainty.represent_as(StdDevUncertainty)
    parts = replace(unpack(uncertainty.array), unit=_without_one(uncertainty.unit))
    return parts if unusable is None else _masked(parts, unusable)


def _is_of_pandas(values: Any, kind: str) -> bool:
    """Whether this is an instance of a class of pandas, which need not be installed."""
    return isinstance(values, getattr(sys.modules.get("pandas"), kind, ()))


def _from_pandas(frame: Any) -> Table:
    """The columns of a data frame; entries that are missing become masked."""
    names = [str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        raise ValueError(f"columns of different names, got {names}")
    return Table.from_pandas(frame.set_axis(names, axis=1))


def _from_fits(records: FITS_rec) -> Table:
    """The columns of a FITS table, with their units; integers that stand for nothing masked."""
    table = Table(records, copy=False)
    for column in records.columns:
        name, values = column.name, table[column.name]
        if isinstance(column.null, int) and values.dtype.kind in "iu":
            null = column.null * (column.bscale or 1) + (column.bzero or 0)
            table[name] = MaskedColumn(values, mask=values == null)
        if column.unit:
            table[name].unit = Unit(column.unit, parse_strict="silent")
    return table
