"""The files of the command line: images and catalogues in, tables out.

A file that cannot be used raises OSError, ImportError or ValueError with a message that does not
repeat its path. What the pixels and columns mean is checked in `measure`.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.io.registry import IORegistryError, identify_format
from astropy.table import Table
from astropy.utils.exceptions import AstropyUserWarning
from numpy.typing import NDArray

# Suffixes that astropy reads without asking but does not know when it writes.
_FORMATS = {
    ".txt": "ascii.commented_header",
    ".dat": "ascii.commented_header",
    ".rst": "ascii.rst",
    ".vot": "votable",
    ".xml": "votable",
}
_WRITE_OPTIONS = {"hdf5": {"path": "objects", "serialize_meta": True}}


def read_image(path: Path, hdu: str | None = None) -> NDArray:
    """Pixels of a FITS image.

    Parameters
    ----------
    path : Path
        May be compressed: by gzip or the like, or in a tile-compressed HDU.
    hdu : str, optional
        Name or number of the HDU; by default the first one that holds a 2-D image.

    Returns
    -------
    (H, W) array
        In the dtype and byte order of the file.
    """
    with _whatever_goes_wrong(), fits.open(path) as hdus:
        return _select_hdu(hdus, hdu).data


def _select_hdu(hdus: Any, wanted: str | None) -> Any:
    if wanted is None:
        found = next((hdu for hdu in hdus if _is_image(hdu)), None)
        if found is None:
            raise ValueError("it holds no 2-D image")
        return found
    try:
        found = hdus[int(wanted) if wanted.isdecimal() else wanted]
    except (KeyError, IndexError):
        raise ValueError(f"it has no HDU {wanted!r}") from None
    if not _is_image(found):
        raise ValueError(f"its HDU {wanted!r} is not a 2-D image")
    return found


def _is_image(hdu: Any) -> bool:
    return hdu.is_image and len(hdu.shape) == 2


def read_catalog(
    path: Path, x_column: str = "x", y_column: str = "y", one_based: bool = False
) -> Table:
    """Positions to measure, with whatever else the catalogue has.

    Parameters
    ----------
    path : Path
        In any format that astropy recognises, or guesses among its text formats.
    x_column, y_column : str
        Columns of the positions; they are renamed to ``x`` and ``y``.
    one_based : bool, default False
        Whether positions count from 1, as in FITS and SExtractor: 1 is then subtracted.

    Returns
    -------
    Table
    """
    path.open("rb").close()  # Text guessing would take the name of a missing file for a table
    with _whatever_goes_wrong():
        try:
            table = Table.read(path)
        except IORegistryError:
            table = _read_text(path)
    for name, column in (("x", x_column), ("y", y_column)):
        _rename(table, column, name)
        if one_based:
            table[name] = table[name] - 1.0
    return table


def _read_text(path: Path) -> Table:
    try:
        return Table.read(path, format="ascii")
    except ValueError as error:
        raise ValueError("it is in no table format that astropy recognises") from error


def _rename(table: Table, column: str, name: str) -> None:
    if column not in table.colnames:
        raise ValueError(
            f"it has no column '{column}' (see --{name}-column); "
            f"its columns are: {', '.join(table.colnames) or 'none'}"
        )
    if column != name and name in table.colnames:
        raise ValueError(f"'{column}' cannot become '{name}', it has another column '{name}'")
    if np.asarray(table[column]).dtype.kind not in "iuf":
        raise ValueError(f"its column '{column}' does not hold numbers")
    table.rename_column(column, name)


def check_output(path: Path, overwrite: bool) -> None:
    """Make sure that a table can be written, before the work that makes it.

    Parameters
    ----------
    path : Path
        Tried with a table of one number, in a scratch directory beside it.
    overwrite : bool
        Whether the file may exist.
    """
    if path.exists() and not overwrite:
        raise FileExistsError("it exists; --overwrite replaces it")
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        _write(Table({"x": [0.0]}), Path(scratch) / path.name)


def write_table(table: Table, path: Path) -> None:
    """Write a table in the format of the suffix; a failure leaves an older file as it was.

    Parameters
    ----------
    table : Table
    path : Path
        Replaced if it exists.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        written = Path(scratch) / path.name
        _write(table, written)
        written.replace(path)


def _write(table: Table, path: Path) -> None:
    table_format = _output_format(path)
    with _whatever_goes_wrong(), warnings.catch_warnings():
        # Catalogues may bring metadata that the format cannot hold; that is no news.
        warnings.simplefilter("ignore", AstropyUserWarning)
        table.write(path, format=table_format, **_WRITE_OPTIONS.get(table_format, {}))


def _output_format(path: Path) -> str:
    name = path.name.lower()
    formats = identify_format("write", Table, name, None, [name], {})
    table_format = _FORMATS.get(path.suffix.lower()) or next(iter(formats), None)
    if table_format is None:
        raise ValueError(
            f"the suffix '{path.suffix}' is not that of a table format; "
            "use for instance .ecsv, .csv, .fits, .vot, .hdf5 or .txt"
        )
    return table_format


@contextmanager
def _whatever_goes_wrong() -> Iterator[None]:
    """Readers and writers raise all kinds of exceptions when a file or a library is not right."""
    try:
        yield
    except (OSError, ImportError, ValueError):
        raise
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from error
