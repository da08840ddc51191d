"""From a measurement to the caller's table: magnitudes, filters, columns, provenance."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
from astropy.table import Column, Table
from numpy.typing import NDArray

from gpuphot._version import __version__
from gpuphot.backend import Backend
from gpuphot.models.frame import Array, Measurement

from .inputs import read_flags

META_KEY = "gpuphot"


def add_magnitudes(measurement: Measurement, xp: Any, usable: Array | bool = True) -> None:
    """Append instrumental magnitudes of positive fluxes that are usable, and their errors."""
    flux, fluxerr = measurement["flux"], measurement["fluxerr"]
    good = (flux > 0) & usable
    positive = xp.where(good, flux, 1.0)
    mag = xp.where(good, -2.5 * xp.log10(positive), xp.nan)
    magerr = xp.where(good, 2.5 / math.log(10) * fluxerr / positive, xp.nan)
    measurement.add("mag", mag, "Instrumental magnitude, -2.5 log10(flux)")
    measurement.add("magerr", magerr, "Standard deviation of mag")


def select(
    measurement: Measurement, sn: float | None, keep_negative: bool, xp: Any
) -> Array | None:
    """Rows that pass the filters, or None if all do because there is no filter."""
    keep = None
    if sn is not None:
        keep = measurement["magerr"] < 1 / sn
    if not keep_negative:
        positive = measurement["flux"] > 0
        keep = positive if keep is None else keep & positive
    return keep


def to_table(table: Table, measurement: Measurement, keep: Array | None, ops: Any) -> Table:
    """The caller's rows with the measured columns: the one step that makes a table.

    Columns that the table already has are replaced where they stand, all others follow in the
    order of the measurement. New positions leave the old ones in ``x_orig`` and ``y_orig``;
    flags are OR-ed into those that a row already has.

    Parameters
    ----------
    table : Table
        Not modified.
    measurement : Measurement
    keep : (N,) bool array or None
        Rows of the result; None for all.
    ops : module
        Primitives of the backend that holds the measurement.

    Returns
    -------
    Table
    """
    values, new_flags, rows = _to_host(measurement, keep, ops)
    result = table[rows] if keep is not None else table.copy()
    result.meta = copy.deepcopy(table.meta)
    for column in result.columns.values():
        # An index of the caller's table forbids to replace its column, and would be stale.
        column.info.indices = []
    for name in ("x", "y"):
        if name in measurement.columns:
            _set_column(result, f"{name}_orig", result[name].copy())
    flags = read_flags(result) | new_flags[rows]
    _set_column(result, "flags", Column(flags, description="Quality flags of gpuphot.Flag"))
    for (name, column), row in zip(measurement.columns.items(), values, strict=True):
        values_kept = row[rows].astype(column.dtype, copy=False)
        unit = getattr(result[name], "unit", None) if name in ("x", "y") else column.unit
        new = Column(values_kept, unit=unit, description=column.description)
        _set_column(result, name, new)
    return result


def new_table(measurement: Measurement, ops: Any) -> Table:
    """A table of nothing but the measured columns; the flags follow the errors of the fluxes."""
    values, flags, _ = _to_host(measurement, None, ops)
    table = Table()
    for (name, column), row in zip(measurement.columns.items(), values, strict=True):
        values_kept = row.astype(column.dtype, copy=False)
        new = Column(values_kept, unit=column.unit, description=column.description)
        _set_column(table, name, new)
        if name == "fluxerr":
            _set_column(table, "flags", Column(flags, description="Flags of SEP, and bad_flag"))
    return table


def with_unit(values: NDArray, unit: Any) -> NDArray:
    """An image that the caller gets: a Quantity if there is a unit."""
    return values if unit is None else values << unit


def maps(
    background: Array, noise: Array, err: Any, unit: Any, ops: Any
) -> tuple[NDArray[np.float64], Any]:
    """Background and noise for the caller, who gets the `err` back that was given."""
    level = with_unit(np.array(ops.to_host(background), np.float64), unit)
    if err is not None:
        return level, err
    return level, with_unit(np.array(ops.to_host(noise), np.float64), unit)


def _to_host(
    measurement: Measurement, keep: Array | None, ops: Any
) -> tuple[NDArray[np.float64], NDArray[np.int64], Any]:
    """All columns, the flags and the selection of rows, in two visits to the device."""
    xp = ops.xp
    columns = measurement.columns.values()
    values = ops.to_host(xp.stack([c.values.astype(xp.float64, copy=False) for c in columns]))
    if keep is None:
        return values, ops.to_host(measurement.flags), slice(None)
    flags, kept = ops.to_host(xp.stack([measurement.flags, keep.astype(xp.int64)]))
    return values, flags, kept != 0


def _set_column(table: Table, name: str, column: Any) -> None:
    if name in table.colnames:
        table.replace_column(name, column, copy=False)
    else:
        table.add_column(column, name=name, copy=False)


def provenance(backend: Backend, function: str, parameters: dict[str, Any], **methods: str) -> str:
    """What made a table, as a line of JSON: short keys and plain text survive any file format.

    Parameters
    ----------
    backend : Backend
    function : str
        Name of the function that measured.
    parameters : dict
        Its arguments as they were used; of those that are no numbers or strings, the type is
        recorded.
    **methods : str
        How something was done that backends do in different ways.
    """
    return json.dumps(
        {
            "version": __version__,
            "function": function,
            "backend": backend.name,
            "device": backend.device,
            **methods,
            "parameters": {name: _plain(value) for name, value in parameters.items()},
        }
    )


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return f"<{type(value).__name__}>"
