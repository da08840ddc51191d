"""FITS images in: pixels, header and world coordinates.

A file that cannot be used raises OSError or ValueError with a sentence that does not repeat its
path. What the pixels mean is checked in `measure`.
"""

from __future__ import annotations

import importlib
import io
import math
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from .headers import header_value, quiet
from .sky import pixel_to_sky


@dataclass(frozen=True)
class FitsImage:
    """An image as its file has it.

    Attributes
    ----------
    data : (H, W) array
        In the dtype and byte order of the file.
    header : fits.Header
        Of the image's HDU, with what the primary header says besides.
    wcs : WCS or None
        Celestial coordinates with their distortion; None without usable ones.
    wcs_problem : str
        Why there is no `wcs`; empty if there is one.
    """

    data: NDArray
    header: fits.Header
    wcs: WCS | None = None
    wcs_problem: str = ""


# Files and their HDUs

_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ": "lzma"}
"""How compressed files begin, and the modules that open them: some Pythons lack one."""


def read_image(path: str | Path, ext: str | None = None) -> FitsImage:
    """Read an image with its header and world coordinates.

    Parameters
    ----------
    path : str or Path
        FITS file; it may be compressed by gzip, bzip2 or xz, or in tiles (fpack).
    ext : str, optional
        Extension of the image: its name, its number or both name and version, as in ``"SCI,2"``.
        By default the only 2-D image of the file; of several, the only one called SCI, or else
        that of the primary HDU.

    Returns
    -------
    FitsImage

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not a complete FITS file, if it has no such image, or several without `ext`.
    """
    with open_fits(Path(path)) as hdus:
        hdu = _select(hdus, ext)
        header = _whole_header(hdu.header, hdus[0].header)
        wcs, problem = _celestial_wcs(header, hdus)
        return FitsImage(_pixels(hdu), header, wcs, problem)


def read_plane(path: str | Path, shape: tuple[int, int]) -> NDArray:
    """Read an image that goes with another one: its errors, weights or mask.

    Parameters
    ----------
    path : str or Path
        FITS file; ``file.fits[WHT]`` or ``file.fits[2]`` names the extension.
    shape : (int, int)
        Rows and columns of the image that it goes with.

    Returns
    -------
    (H, W) array
        In the dtype and byte order of the file.

    Raises
    ------
    OSError, ValueError
        As `read_image`, and ValueError if it has another shape.
    """
    ext = None
    named = re.fullmatch(r"(.+)\[([^\[\]]+)\]", str(path))
    if named and not Path(path).exists():
        path, ext = named[1], named[2].strip()
    data = read_image(path, ext).data
    if data.shape != tuple(shape):
        raise ValueError(
            f"it has {_pixel_count(data.shape)} (rows x columns), "
            f"but the image that it goes with has {_pixel_count(shape)}"
        )
    return data


def errors_of_weights(weight: NDArray) -> tuple[NDArray, NDArray[np.bool_]]:
    """Standard deviations of pixels from their weights.

    Parameters
    ----------
    weight : (H, W) array
        Inverse variances.

    Returns
    -------
    err : (H, W) float array
        Standard deviations; NaN for pixels without weight.
    bad : (H, W) bool array
        Pixels whose weight is not a positive, finite number.
    """
    dtype = np.result_type(weight.dtype.newbyteorder("="), np.float32)
    good = np.isfinite(weight) & (weight > 0)
    with np.errstate(over="ignore"):
        err = 1 / np.sqrt(np.where(good, weight, np.nan), dtype=dtype)
    return err, ~good


def is_fits(path: Path) -> bool:
    """Whether a file begins like FITS, also if it is compressed."""
    with path.open("rb") as raw:
        try:
            return _decompressing(raw).read(6) == b"SIMPLE"
        except Exception:  # Each compression has an error of its own for damaged files
            return False


@contextmanager
def open_fits(path: Path) -> Iterator[fits.HDUList]:
    """Open a FITS file that is complete; what is unusual in it is no news.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not a complete FITS file.
    """
    with path.open("rb") as raw, quiet():
        file = _decompressed(raw)
        start = file.read(6)
        if start != b"SIMPLE":
            raise ValueError("it is not a FITS file" if start else "it is empty")
        try:
            _check_complete(file)
            file.seek(0)
            hdus = fits.open(file, memmap=False, lazy_load_hdus=False)
        except Exception as error:  # Damaged headers make astropy raise exceptions of all kinds
            raise ValueError(f"it is truncated or damaged: {_reason(error)}") from error
        yield hdus


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _decompressing(raw: IO[bytes]) -> IO[bytes]:
    """The file itself, or a stream of what it holds compressed."""
    start = raw.read(8)
    raw.seek(0)
    for magic, module in _COMPRESSIONS.items():
        if start.startswith(magic):
            return importlib.import_module(module).open(raw)
    return raw


def _decompressed(raw: IO[bytes]) -> IO[bytes]:
    """The file itself, or in memory what it holds compressed: FITS needs to go to and fro."""
    file = _decompressing(raw)
    if file is raw:
        return raw
    try:
        return io.BytesIO(file.read())
    except Exception as error:  # As in is_fits
        raise ValueError(f"it is truncated or damaged: {_reason(error)}") from error


def _check_complete(file: IO[bytes]) -> None:
    """Refuse a file that ends too early: astropy only warns, or drops what it cannot read."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    end = 0
    # Tiles stay the tables that they are in the file
    hdus = fits.open(file, memmap=False, disable_image_compression=True)
    for number, hdu in enumerate(hdus):
        info = hdu.fileinfo()
        if info["datLoc"] + hdu.size > size:
            raise ValueError(f"HDU {number} goes beyond the end of the file")
        end = info["datLoc"] + info["datSpan"]
    file.seek(end)
    if file.read(8).startswith(b"XTENSION"[: max(size - end, 1)]):
        raise ValueError(f"HDU {len(hdus)} has no whole header")


def _select(hdus: fits.HDUList, ext: str | None) -> Any:
    images = [number for number, hdu in enumerate(hdus) if _is_plane(hdu)]
    if ext is not None:
        number = _find(hdus, ext)
        if number not in images:
            raise ValueError(f"its extension {ext!r} is not a 2-D image")
        return hdus[number]
    if not images:
        raise ValueError("it holds no 2-D image")
    science = [number for number in images if hdus[number].name == "SCI"]
    for chosen in (images, science, [number for number in images if number == 0]):
        if len(chosen) == 1:
            return hdus[chosen[0]]
    raise ValueError(f"it holds several images, choose one with --ext: {_listed(hdus, images)}")


def _find(hdus: fits.HDUList, ext: str) -> int:
    name, comma, version = (part.strip() for part in ext.partition(","))
    try:
        if name.isdecimal() and not comma:
            return range(len(hdus))[int(name)]
        if not name:
            raise KeyError
        return hdus.index_of((name, int(version)) if comma else name)
    except (KeyError, IndexError, ValueError):
        raise ValueError(
            f"it has no extension {ext!r}, only: {_listed(hdus, range(len(hdus)))}"
        ) from None


def _is_plane(hdu: Any) -> bool:
    """Whether an HDU holds a 2-D image, perhaps with further axes of one pixel."""
    if not isinstance(hdu, (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)):
        return False
    shape = hdu.shape
    is_sized = all(isinstance(n, int) and n > 0 for n in shape)  # Headers may have anything there
    return is_sized and len(shape) >= 2 and math.prod(shape[:-2]) == 1


def _listed(hdus: fits.HDUList, numbers: Iterable[int]) -> str:
    names = [hdu.name for hdu in hdus]
    labels = []
    for number in numbers:
        name = names[number]
        version = f",{hdus[number].ver}" if names.count(name) > 1 else ""
        labels.append(f"{number} ({name}{version})" if name else f"{number}")
    more = [f"and {len(labels) - 12} more"] if len(labels) > 12 else []
    return ", ".join(labels[:12] + more)


def _pixels(hdu: Any) -> NDArray:
    try:
        data = hdu.data
    except Exception as error:  # Damaged tiles make the decompressors raise all kinds
        raise ValueError(f"it is truncated or damaged: {_reason(error)}") from error
    return data.reshape(data.shape[-2:])


def _pixel_count(shape: tuple[int, ...]) -> str:
    return f"{' x '.join(str(n) for n in shape)} pixels"


# What belongs to one HDU only: its layout, and the terms of its world coordinates.
_OWN = re.compile(
    r"|SIMPLE|EXTEND|XTENSION|BITPIX|NAXIS\d*|[PG]COUNT|GROUPS|TFIELDS|B(SCALE|ZERO|LANK)|"
    r"CHECKSUM|DATASUM|EXT(NAME|VER|LEVEL)|INHERIT|COMMENT|HISTORY|WCSAXES[A-Z]?|"
    r"(CTYPE|CRPIX|CRVAL|CDELT|CUNIT|CROTA|CRDER|CSYER|CPDIS|CPERR|CQDIS|CQERR)\d+[A-Z]?|"
    r"(CD|PC|PV|PS)\d+_\d+[A-Z]?|D[PQ]\d+(\..*)?|D2IM\w*|AXISCORR|(A|B|AP|BP)_(ORDER|DMAX|\d_\d)|L(ON|AT)POLE[A-Z]?"
)
_FRAME = {"RADESYS", "RADECSYS", "EQUINOX", "EPOCH"}
"""What only makes sense together, from one header."""


def _whole_header(header: fits.Header, primary: fits.Header) -> fits.Header:
    """A header with what the primary header says besides, unless it wants none of that."""
    whole = header.copy()
    if header is primary or header_value(header, "INHERIT") is False:
        return whole
    own = _FRAME if any(name in header for name in _FRAME) else set()
    for card in primary.cards:
        name = card.keyword
        if not (name in header or name in own or _OWN.fullmatch(name)):
            whole.append(card, end=True)
    return whole


def _celestial_wcs(header: fits.Header, hdus: fits.HDUList) -> tuple[WCS | None, str]:
    """World coordinates, or why there are none: a measurement may do without them."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Polynomial distortion")  # astropy leaves it out
            wcs = WCS(header, hdus, naxis=2)
        if not wcs.has_celestial:
            return None, "its header has no celestial coordinates"
        for name in ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2"):
            if isinstance(header.get(name), str):  # wcslib would take it for 0
                raise ValueError(f"{name} is not a number")
        ra, dec = pixel_to_sky(wcs, wcs.wcs.crpix[0] - 1, wcs.wcs.crpix[1] - 1)
        if not np.all(np.isfinite([ra, dec])):
            raise ValueError("the reference pixel has no position")
    except Exception as error:  # wcslib has an exception of its own for each kind of failure
        return None, f"the celestial coordinates of its header are broken: {_reason(error)}"
    return wcs, ""
