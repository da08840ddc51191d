"""From a FITS file to a table and pictures of its stars: what `gpuphot measure` does with each.

`measure_file` depends on nothing but its arguments and leaves nothing behind but its files, so
that a pool of processes can run it on a night of images.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units
from astropy.nddata import NDData
from astropy.table import Table
from numpy.typing import NDArray

from . import plot
from .chain import ImagePhotometry, measure_image
from .headers import HeaderFacts, header_facts, key_facts
from .images import FitsImage, errors_of_weights, read_image, read_plane
from .sky import add_sky_positions
from .tables import all_or_nothing, check_output, read_catalog, write_table

StrPath = str | os.PathLike[str]

_CROWDED = 0.9
"""Share of the light in an aperture that is the star's own, below which neighbours show."""

_PICTURES = ("field", "errors", "growth", "residual")


class FileError(OSError):
    """A file that cannot be read, used or written; the message names it."""


@dataclass(frozen=True)
class FileReport:
    """What `measure_file` did.

    Attributes
    ----------
    image, table : Path
        The image and the table written.
    pictures : tuple of Path
        The pictures written.
    n_measured, n_flagged : int
        Rows of the table, and those among them with a flag.
    notes : tuple of str
        What was decided on the way, one sentence each.
    """

    image: Path
    table: Path
    pictures: tuple[Path, ...]
    n_measured: int
    n_flagged: int
    notes: tuple[str, ...]


def measure_file(
    image: StrPath,
    output: StrPath,
    *,
    ext: str | None = None,
    catalog: StrPath | None = None,
    x_column: str | None = None,
    y_column: str | None = None,
    ra_column: str | None = None,
    dec_column: str | None = None,
    one_based: bool = False,
    mask: StrPath | None = None,
    weight: StrPath | None = None,
    bg: StrPath | float | None = None,
    err: StrPath | float | None = None,
    gain: float | None = None,
    saturation: float | None = None,
    exposure: float | None = None,
    overwrite: bool = False,
    pictures: bool = False,
    **options: Any,
) -> FileReport:
    """Measure the stars of a FITS image, and write a table of them.

    Parameters
    ----------
    image : path
        FITS file, tile-compressed, gzipped or plain.
    output : path
        Table to write, in the format of its suffix.
    ext : str, optional
        Name or number of the image's extension; by default the only image of the file, that
        called SCI, or that of the primary HDU.
    catalog : path, optional
        Table of the objects to measure, see `read_catalog`. By default objects are detected.
    x_column, y_column, ra_column, dec_column, one_based
        Which columns of `catalog` are the positions, see `read_catalog`.
    mask : path, optional
        Image that is not zero where a pixel is masked. Of this and the other planes, a name like
        ``file.fits[DQ]`` tells the extension.
    weight : path, optional
        Inverse variances of the pixels. Those without weight are masked. Excludes `err`.
    bg, err : path or float, optional
        Background, and standard deviation of the pixels.
    gain, saturation, exposure : float, optional
        As in `measure_image`. By default those of the image's header, if it tells them; 0 for
        none.
    overwrite : bool, default False
        Replace the output if it exists.
    pictures : bool, default False
        Draw the field, the magnitude errors, a growth curve and, if there is a PSF model, what is
        left without the neighbours of a star, into PNG files beside the table. Needs matplotlib.
    **options
        All others of `measure_image`.

    Returns
    -------
    FileReport

    Raises
    ------
    FileError
        If a file cannot be read, used or written. The message names it.
    ValueError, TypeError, ImportError, BackendError
        As `measure_image`. After an error nothing is written.
    """
    image, output = Path(image), Path(output)
    with naming(output, "cannot write"):
        check_output(output, overwrite)
        if output.exists() and image.exists() and output.samefile(image):
            raise ValueError("it is the image")
    if pictures:
        plot.require_matplotlib()
        _check_pictures(output, overwrite)
    with naming(image, "cannot read"):
        science = read_image(image, ext)
    objects = _read_objects(
        catalog, science, x_column=x_column, y_column=y_column, ra_column=ra_column,
        dec_column=dec_column, one_based=one_based,
    )  # fmt: skip
    planes = _read_planes(science.data.shape, mask, weight, bg, err)
    facts = header_facts(science.header)
    numbers, notes = _complete(facts, gain=gain, saturation=saturation, exposure=exposure)
    found = measure_image(
        _with_unit(science.data, facts.unit), objects, **planes, **numbers, **options
    )
    _add_facts(found.table, science, found.fwhm, image)
    with naming(output, "cannot write"), all_or_nothing(output.parent) as scratch:
        write_table(found.table, scratch / output.name)
        drawn = _draw(science.data, found, scratch, output.stem) if pictures else []
    return FileReport(
        image=image,
        table=output,
        pictures=tuple(output.parent / name for name in drawn),
        n_measured=len(found.table),
        n_flagged=int(np.count_nonzero(found.table["flags"])),
        notes=(*notes, *found.notes),
    )


@contextmanager
def naming(path: StrPath, doing: str) -> Iterator[None]:
    """Say in errors which file it was that could not be read or written."""
    try:
        yield
    except (OSError, ImportError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise FileError(f"{doing} {path}: {reason or error}") from error


# Input


def _read_objects(catalog: StrPath | None, image: FitsImage, **columns: Any) -> Table | None:
    """The catalogue of the caller, if there is one."""
    if catalog is None:
        idle = next((name for name, value in columns.items() if value), None)
        if idle:
            raise ValueError(f"{idle} has no effect without catalog, got {columns[idle]!r}")
        return None
    with naming(catalog, "cannot use"):
        return read_catalog(Path(catalog), image.wcs, wcs_problem=image.wcs_problem, **columns)


def _read_planes(
    shape: tuple[int, int],
    mask: StrPath | None,
    weight: StrPath | None,
    bg: StrPath | float | None,
    err: StrPath | float | None,
) -> dict[str, Any]:
    """The planes of the caller, as arguments of `measure_image`."""
    planes = {
        name: _read_plane(name, plane, shape)
        for name, plane in {"mask": mask, "bg": bg, "err": err}.items()
    }
    if weight is None:
        return planes
    if err is not None:
        raise ValueError("weight and err exclude each other: both tell the noise, got both")
    planes["err"], bad = errors_of_weights(_read_plane("weight", weight, shape))
    planes["mask"] = bad if mask is None else bad | (planes["mask"] != 0)
    return planes


def _read_plane(name: str, plane: Any, shape: tuple[int, int]) -> Any:
    """A number, or the image of a file."""
    if plane is None:
        return None
    if isinstance(plane, (int, float)):
        if not math.isfinite(plane) or (name == "err" and plane <= 0):
            expected = "positive" if name == "err" else "finite"
            raise ValueError(f"{name} must be a file or a {expected} number, got {plane!r}")
        return plane
    with naming(plane, "cannot read"):
        return read_plane(plane, shape)


def _complete(facts: HeaderFacts, **given: float | None) -> tuple[dict[str, Any], list[str]]:
    """What the caller gave, or else the header states; and what that is, in words."""
    numbers, notes = {}, []
    for name, value in given.items():
        fact = getattr(facts, name)
        if value is None and fact is not None and not (name == "exposure" and facts.is_rate):
            value = fact.value
            notes.append(f"{name} {value:g} ({fact.source} of the header)")
        numbers[name] = value or None
    return numbers, notes


def _with_unit(data: NDArray, name: str) -> NDArray | NDData:
    """The pixels with the unit that the header states, if astropy knows it."""
    unit = units.Unit(name, parse_strict="silent")
    if isinstance(unit, units.UnrecognizedUnit) or unit.is_equivalent(units.one):
        return data
    return NDData(data, unit=unit)


# Output


def _check_pictures(output: Path, overwrite: bool) -> None:
    """Make sure that pictures replace none that is to stay, before the work."""
    for name in _PICTURES:
        picture = output.with_name(_picture(output.stem, name))
        if picture.exists() and not overwrite:
            raise FileError(f"cannot write {picture}: it exists; --overwrite replaces it")


def _picture(stem: str, name: str) -> str:
    return f"{stem}-{name}.png"


def _add_facts(table: Table, image: FitsImage, fwhm: float | None, path: Path) -> None:
    """Sky positions, and what the header and the measurement say about the image as a whole."""
    if image.wcs is not None:
        if "ra" not in map(str.lower, table.colnames):  # Those of a catalogue stay
            add_sky_positions(table, image.wcs)
        if "x_psf" in table.colnames:
            add_sky_positions(table, image.wcs, "_psf")
    table.meta.update(key_facts(image.header))
    table.meta["IMAGE"] = path.name
    if fwhm is not None:
        table.meta["FWHM"] = fwhm


def _draw(image: NDArray, found: ImagePhotometry, directory: Path, stem: str) -> list[str]:
    """Draw what there is to be seen; returns the names of the files."""
    axes: dict[str, Any] = {
        "field": plot.plot_field(image, found.table, found.r_aper, mask=found.mask),
        "errors": plot.plot_magnitude_errors(found.table),
    }
    sky: dict[str, Any] = {"mask": found.mask, "bg": found.background, "err": found.noise}
    star = _brightest(found.table)
    if star is not None and found.fwhm is not None:
        x, y = found.table["x"][star], found.table["y"][star]
        axes["growth"] = plot.plot_growth_curve(image, x, y, found.fwhm, **sky)
    stars = found.modelled_stars()
    if star is not None and stars is not None:
        pixels = np.ma.masked_array(image - found.background, found.mask)
        panels = plot.plot_residual(pixels, found.psf, *stars, target=_most_crowded(found.table))
        axes["residual"] = panels[0]
    names: list[str] = []
    for name, drawn in axes.items():
        names.append(_picture(stem, name))
        drawn.figure.savefig(directory / names[-1], dpi=150)
    return names


def _brightest(table: Table, among: NDArray[np.bool_] | None = None) -> int | None:
    """Row of the brightest star without flags."""
    flux = np.ma.filled(np.asarray(table["flux"], dtype=float), np.nan)
    good = (table["flags"] == 0) & np.isfinite(flux)
    if among is not None and np.any(good & among):
        good &= among
    return int(np.argmax(np.where(good, flux, -np.inf))) if np.any(good) else None


def _most_crowded(table: Table) -> int | None:
    """Row of the brightest star in whose aperture there is light of its neighbours."""
    crowded = table["fracflux"] < _CROWDED if "fracflux" in table.colnames else None
    return _brightest(table, crowded)
