"""Catalogues in and tables out, in the formats that astropy knows.

A file that cannot be used raises OSError, ImportError or ValueError with a sentence that does not
repeat its path. What the columns mean is checked in `measure`, except for the positions.
"""

from __future__ import annotations

import errno
import importlib
import itertools
import math
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.io.registry import IORegistryError, identify_format
from astropy.table import Column, Table
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS
from numpy.typing import NDArray

from gpuphot.images import is_fits, open_fits
from gpuphot.sky import sky_to_pixel

_FORMATS = {
    ".txt": "ascii.commented_header",
    ".dat": "ascii.commented_header",
    ".rst": "ascii.rst",
    ".vot": "votable",
    ".votable": "votable",
    ".xml": "votable",
    ".parquet": "parquet",
    ".pq": "parquet",
}
"""Formats of suffixes that astropy does not know when it writes."""

_FITS_NAME = re.compile(r"\.(fits?|fts)(\.\w+)?$", re.IGNORECASE)
_LIBRARIES = {"parquet": ("pyarrow",), "hdf5": ("h5py",)}
_WRITE_OPTIONS = {"hdf5": {"path": "objects", "serialize_meta": True}}

# SExtractor's, which count from 1, and how catalogues call right ascension and declination.
_PIXEL_PAIRS = (("x", "y"), ("X_IMAGE", "Y_IMAGE"), ("XWIN_IMAGE", "YWIN_IMAGE"))
_COUNTS_FROM_1 = re.compile(r"[XY]\w*_IMAGE(_DBL)?")
_SKY_PAIRS = (
    ("ra", "dec"),
    ("raj2000", "dej2000"),
    ("_raj2000", "_dej2000"),
    ("ra_icrs", "de_icrs"),
    ("alpha_j2000", "delta_j2000"),
    ("alphawin_j2000", "deltawin_j2000"),
    ("ramean", "decmean"),
)

# How an angle of either kind is written: what is behind its first number, and that in degrees.
_SEXAGESIMAL = {
    "ra": (r"(?:[:h]\s*|\s+)", "12:34:56.7", 15.0),
    "dec": (r"(?:[:d°]\s*|\s+)", "-01:23:45", 1.0),
}
_MINUTES_AND_SECONDS = r"([0-5]?\d)(?:[:m']\s*|\s+)([0-5]?\d(?:\.\d*)?|60(?:\.0*)?)[s\"]?"

_Floats = NDArray[np.float64]


# Catalogues in


def read_catalog(
    path: str | Path,
    wcs: WCS | None = None,
    *,
    x_column: str | None = None,
    y_column: str | None = None,
    ra_column: str | None = None,
    dec_column: str | None = None,
    one_based: bool = False,
    wcs_problem: str = "",
) -> Table:
    """Read positions to measure, with whatever else the catalogue has.

    Positions are in the columns that are named, or else in ``x`` and ``y``, in SExtractor's
    ``X_IMAGE`` and ``Y_IMAGE`` or ``XWIN_IMAGE`` and ``YWIN_IMAGE``, or on the sky, in ``ra`` and
    ``dec`` or what else catalogues call them.

    Parameters
    ----------
    path : str or Path
        In any format that astropy recognises, or guesses among its text formats; of a FITS file,
        the table LDAC_OBJECTS or else the first one.
    wcs : WCS, optional
        Of the image, for positions on the sky.
    x_column, y_column : str, optional
        Columns of positions in pixels.
    ra_column, dec_column : str, optional
        Columns of positions on the sky, in ICRS: numbers in degrees unless the column has another
        unit, or strings like ``"12:34:56.7"`` (hours) and ``"-01:23:45"`` (degrees).
    one_based : bool, default False
        Whether positions in pixels count from 1, as in FITS: 1 is then subtracted. SExtractor's
        columns do so in any case.
    wcs_problem : str, optional
        Why there is no `wcs`, for the error message.

    Returns
    -------
    Table
        With ``x`` and ``y`` as float64 columns that count from 0. Columns in pixels are renamed to
        them. Those on the sky stay; ``x`` and ``y`` that the catalogue has besides get a number,
        ``x_1`` and ``y_1``. Positions that are masked, or that the WCS cannot project, are NaN.

    Raises
    ------
    OSError
        If the file cannot be read.
    ImportError
        If its format needs a library that is not installed.
    ValueError
        If it holds no table, or not the columns; if `wcs` is needed and None.
    """
    in_pixels, on_sky = x_column or y_column, ra_column or dec_column
    if on_sky and (in_pixels or one_based):
        raise ValueError("--x-column, --y-column and --one-based do not go with --ra-column")
    table = _read(Path(path))
    if on_sky:
        pair = _sky_pair(table) or ("ra", "dec")
        return _add_pixels(table, (ra_column or pair[0], dec_column or pair[1]), wcs, wcs_problem)
    if in_pixels:
        return _use_pixels(table, (x_column or "x", y_column or "y"), one_based)
    for pair in _PIXEL_PAIRS:
        if set(pair) <= set(table.colnames):
            return _use_pixels(table, pair, one_based)
    found = None if one_based else _sky_pair(table)
    if found is None:
        raise ValueError(_nothing_found(table))
    return _add_pixels(table, found, wcs, wcs_problem)


def _sky_pair(table: Table) -> tuple[str, str] | None:
    """The first complete pair of columns that are called as catalogues call sky positions."""
    names = {name.lower(): name for name in reversed(table.colnames)}
    pairs = (pair for pair in _SKY_PAIRS if set(pair) <= set(names))
    return next(((names[ra], names[dec]) for ra, dec in pairs), None)


def _nothing_found(table: Table) -> str:
    """What is missing: the other column of a pair, or all of them."""
    for pair in (*_PIXEL_PAIRS, *_SKY_PAIRS):
        names = {name if pair in _PIXEL_PAIRS else name.lower() for name in table.colnames}
        missing = [name for name in pair if name not in names]
        if len(missing) == 1:
            options = "xy" if pair in _PIXEL_PAIRS else ("ra", "dec")
            option = options[pair.index(missing[0])]
            return f"it has no column '{missing[0]}' (see --{option}-column); {_columns_of(table)}"
    return (
        "it has no column 'x' or 'ra' (see --x-column, --y-column, --ra-column and --dec-column); "
        f"{_columns_of(table)}"
    )


def _use_pixels(table: Table, pair: tuple[str, str], one_based: bool) -> Table:
    """Rename two columns to ``x`` and ``y``, and make them count from 0."""
    for name, column in zip(("x", "y"), pair, strict=True):
        values = _numbers(table, column, name)
        if column != name and name in table.colnames:
            raise ValueError(f"'{column}' cannot become '{name}', it has another column '{name}'")
        first = 1.0 if one_based or _COUNTS_FROM_1.fullmatch(column) else 0.0
        info = table[column].info
        new = Column(values - first, unit=info.unit, description=info.description)
        table.replace_column(column, new)
        table.rename_column(column, name)
    return table


def _add_pixels(table: Table, pair: tuple[str, str], wcs: WCS | None, wcs_problem: str) -> Table:
    """Add ``x`` and ``y`` of positions on the sky."""
    ra, dec = (
        _degrees(table, column, name) for name, column in zip(("ra", "dec"), pair, strict=True)
    )
    if wcs is None:
        raise ValueError(
            f"its positions are on the sky, in '{pair[0]}' and '{pair[1]}', but the image has no "
            f"celestial coordinates{f': {wcs_problem}' if wcs_problem else ''}"
        )
    _move_away(table)
    x, y = sky_to_pixel(wcs, ra, dec)
    table.add_columns([Column(x), Column(y)], names=["x", "y"], indexes=[0, 0])
    return table


def _move_away(table: Table) -> None:
    """Give the ``x`` and ``y`` that a catalogue has of another image a number."""
    old = [name for name in ("x", "y") if name in table.colnames]
    number = next(n for n in itertools.count(1) if not {f"x_{n}", f"y_{n}"} & set(table.colnames))
    for name in old:
        table.rename_column(name, f"{name}_{number}")


def _column(table: Table, column: str, name: str) -> Any:
    if column not in table.colnames:
        raise ValueError(f"it has no column '{column}' (see --{name}-column); {_columns_of(table)}")
    return table[column]


def _kind(column: Any) -> str:
    """Kind of NumPy's dtype; V for columns of times and the like, which have none."""
    return getattr(column, "dtype", np.dtype("V")).kind


def _columns_of(table: Table) -> str:
    return f"its columns are: {', '.join(table.colnames) or 'none'}"


def _numbers(table: Table, column: str, name: str) -> _Floats:
    """Values of a column; NaN where they are masked."""
    values = _column(table, column, name)
    if _kind(values) not in "iuf" or values.ndim != 1:
        raise ValueError(
            f"its column '{column}' does not hold numbers, as --{name}-column must; "
            f"{_columns_of(table)}"
        )
    return np.ma.filled(np.ma.asarray(values).astype(np.float64), np.nan)


def _degrees(table: Table, column: str, name: str) -> _Floats:
    """Values of a column of angles; NaN where they are masked or empty."""
    values = _column(table, column, name)
    if _kind(values) in "SU":
        return _parse_angles(values, column, name)
    numbers = _numbers(table, column, name)
    unit = values.info.unit
    if unit is None or str(unit).lower() in ("degree", "degrees"):
        return numbers
    try:
        return (numbers * u.Unit(unit)).to_value(u.deg)
    except (u.UnitConversionError, TypeError, ValueError):
        raise ValueError(
            f"its column '{column}' is in {str(unit)!r}, but --{name}-column must be an angle"
        ) from None


def _parse_angles(values: Any, column: str, name: str) -> _Floats:
    """Degrees of strings, which have hours for right ascension and degrees for declination."""
    texts = np.ma.filled(np.ma.asarray(values).astype(str), "")
    return np.array([_parse_angle(text.strip(), column, name) for text in texts.tolist()], float)


def _parse_angle(text: str, column: str, name: str) -> float:
    if not text:
        return math.nan
    separator, example, unit = _SEXAGESIMAL[name]
    parts = re.fullmatch(rf"([+-]?)(\d+){separator}{_MINUTES_AND_SECONDS}", text)
    if parts is None or int(parts[2]) * unit > 360:
        raise ValueError(
            f"its column '{column}' must hold numbers or strings like '{example}' for "
            f"--{name}-column, got {text!r}"
        )
    sign, whole, minutes, seconds = parts.groups()
    degrees = (int(whole) + int(minutes) / 60 + float(seconds) / 3600) * unit
    return -degrees if sign == "-" else degrees


def _read(path: Path) -> Table:
    with _whatever_goes_wrong():
        # This opens the file: text guessing would take the name of a missing one for a table
        if is_fits(path) or _FITS_NAME.search(path.name):
            table = _read_fits(path)
        elif _FORMATS.get(path.suffix.lower()) == "parquet":
            table = _read_parquet(path)
        else:
            table = _read_other(path)
        _limit_strings(table)
    return table


def _read_other(path: Path) -> Table:
    try:
        return Table.read(path)
    except IORegistryError:
        pass
    try:
        return Table.read(path, format="ascii")
    except ValueError as error:
        raise ValueError("it is in no table format that astropy recognises") from error


def _limit_strings(table: Table) -> None:
    """Give strings of any length, which VOTables have, the type that FITS and Parquet can hold."""
    for name in table.colnames:
        column = table[name]
        if _kind(column) == "O" and all(isinstance(text, str) for text in np.ma.filled(column, "")):
            table.replace_column(name, column.astype(str))


def _read_fits(path: Path) -> Table:
    with open_fits(path) as hdus:
        tables = [hdu for hdu in hdus if isinstance(hdu, (fits.BinTableHDU, fits.TableHDU))]
        catalogs = [hdu for hdu in tables if hdu.name == "LDAC_OBJECTS"]
        if len(catalogs) > 1:
            raise ValueError(f"it holds {len(catalogs)} catalogues called LDAC_OBJECTS")
        if not tables:
            raise ValueError("it holds no table")
        return Table.read((catalogs or tables)[0], format="fits")


def _read_parquet(path: Path) -> Table:
    """Read a table by its path, also where astropy and pandas would hand over an open file.

    Arrow's threads may hold on to such a file until the interpreter ends, and then abort it.
    """
    _import("pyarrow", "pandas")
    parquet = importlib.import_module("pyarrow.parquet")
    if b"table_meta_yaml" in (parquet.read_schema(path).metadata or {}):
        return Table.read(path, format="parquet")
    return Table.from_pandas(parquet.read_table(path).to_pandas())


# Tables out


def check_output(path: str | Path, overwrite: bool) -> None:
    """Make sure that a table can be written, before the work that makes it.

    Parameters
    ----------
    path : str or Path
        The file is not touched.
    overwrite : bool
        Whether it may exist.

    Raises
    ------
    OSError
        If it exists and is not to be replaced, or if its directory cannot be written to.
    ImportError, ValueError
        As `check_suffix`.
    """
    path = Path(path)
    check_suffix(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not overwrite:
        raise FileExistsError("it exists; --overwrite replaces it")
    with all_or_nothing(path.parent):
        pass


def check_suffix(name: str | Path) -> None:
    """Make sure that a table can be written in the format of a suffix.

    Parameters
    ----------
    name : str or Path
        A file name; the file is not touched.

    Raises
    ------
    ValueError
        If the suffix is not that of a table format.
    ImportError
        If the format needs a library that is not installed.
    """
    _import(*_LIBRARIES.get(_output_format(Path(name)), ()))


def write_table(table: Table, path: str | Path) -> None:
    """Write a table in the format of the suffix; a failure leaves an older file as it was.

    Parameters
    ----------
    table : Table
        Metadata that the format cannot hold are left out.
    path : str or Path
        Replaced if it exists.

    Raises
    ------
    OSError
        If the file cannot be written.
    ImportError, ValueError
        As `check_suffix`, and ValueError if the format cannot hold a column.
    """
    path = Path(path)
    check_suffix(path)
    table_format = _output_format(path)
    with all_or_nothing(path.parent) as scratch, _whatever_goes_wrong():
        options = _WRITE_OPTIONS.get(table_format, {})
        table.write(scratch / path.name, format=table_format, **options)


@contextmanager
def all_or_nothing(directory: str | Path) -> Iterator[Path]:
    """Write several files so that all of them appear together, or none.

    Parameters
    ----------
    directory : str or Path
        It exists.

    Yields
    ------
    Path
        A scratch directory. Its files replace those of the same names in `directory` at the end of
        the ``with`` block. After an exception, also an interrupt, `directory` is as it was before.

    Raises
    ------
    OSError
        If `directory` cannot be written to, or a directory stands where a file is to go.
    """
    directory = Path(directory)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".gpuphot-") as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        old.mkdir()
        yield new
        names = sorted(path.name for path in new.iterdir())
        try:
            for name in names:
                if (directory / name).is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
                if os.path.lexists(directory / name):
                    (directory / name).replace(old / name)
                (new / name).replace(directory / name)
        except BaseException:
            for name in names:
                if os.path.lexists(old / name):
                    (old / name).replace(directory / name)
                elif not os.path.lexists(new / name):
                    (directory / name).unlink()
            raise


def _output_format(path: Path) -> str:
    name = path.name.lower()
    known = identify_format("write", Table, name, None, [name], {})
    table_format = _FORMATS.get(path.suffix.lower()) or next(iter(known), None)
    if table_format is None:
        raise ValueError(
            f"the suffix '{path.suffix}' is not that of a table format; "
            "use for instance .fits, .ecsv, .csv, .vot, .parquet or .txt"
        )
    return table_format


def _import(*libraries: str) -> None:
    for library in libraries:
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise ImportError(
                f"this format needs {library}, which cannot be imported: pip install {library}"
            ) from error


@contextmanager
def _whatever_goes_wrong() -> Iterator[None]:
    """Readers and writers raise all kinds of exceptions when a file or a library is not right.

    They also warn of units and metadata that a format cannot hold; that is no news.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        warnings.simplefilter("ignore", u.UnitsWarning)
        try:
            yield
        except (OSError, ImportError, ValueError):
            raise
        except Exception as error:
            raise ValueError(str(error) or type(error).__name__) from error
