"""What the header of an image states: gain, saturation, exposure, and what identifies it."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from astropy import log
from astropy.io import fits
from astropy.io.fits.verify import VerifyError
from astropy.utils.exceptions import AstropyWarning

_EXPOSURE = ("EXPTIME", "EXPOSURE", "XPOSURE", "EFFEXPTM", "EXP_TIME", "TEXPTIME", "ITIME")
_GAIN = ("EGAIN", "GAIN", "CCDGAIN", "ATODGAIN", "CELL.GAIN", "ESO DET OUT1 CONAD")
# Not DATAMAX: in many files that is the highest pixel, saturated or not.
_SATURATION = ("SATURATE", "SATURVAL", "SATLEVEL", "SATURLEV", "CELL.SATURATION", "MAXLIN")
_KEY_FACTS = (
    "OBJECT", "TELESCOP", "INSTRUME", "DETECTOR", "CCDNUM", "EXTNAME", "FILTER", "FILTER1",
    "FILTER2", "BAND", "DATE-OBS", "TIME-OBS", "MJD-OBS", "EXPTIME", "GAIN", "EGAIN", "SATURATE",
    "BUNIT", "AIRMASS", "SEEING", "MAGZERO", "PHOTZP",
)  # fmt: skip
_SECONDS = {"ms": 1e-3, "min": 60.0, "h": 3600.0, "d": 86400.0, "day": 86400.0, "days": 86400.0}
_ELECTRONS = {"e", "e-", "electron", "electrons", "photoelectron", "photoelectrons"}
_COUNTS = {"adu", "adus", "dn", "count", "counts", "ct", "cts", "", "none", "unknown"}
_PER_SECOND = re.compile(r"\s*(/\s*|per\s*)s(ec|econd)?$|[\s.*]*s(ec)?(\^|\*\*)?\(?-1\)?$")


class Fact(NamedTuple):
    """A number that a header states, and the keywords that it comes from."""

    value: float
    source: str


@dataclass(frozen=True)
class HeaderFacts:
    """What a header says about the pixels; None where it says nothing usable.

    Attributes
    ----------
    gain : Fact or None
        Electrons per unit of the pixels; with pixels per second, that is times the exposure.
    saturation : Fact or None
        Level in units of the pixels from which they are saturated.
    exposure : Fact or None
        Exposure time in seconds.
    unit : str
        Unit of the pixels as the file has it; empty if it does not say.
    is_rate : bool
        Whether the pixels are counts or electrons per second.
    """

    gain: Fact | None
    saturation: Fact | None
    exposure: Fact | None
    unit: str
    is_rate: bool


@contextmanager
def quiet() -> Iterator[None]:
    """Keep astropy from reporting what is unusual in a header, by warnings and in its log."""
    level = log.level
    log.setLevel("ERROR")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)
            yield
    finally:
        log.setLevel(level)


def header_facts(header: fits.Header) -> HeaderFacts:
    """Gain, saturation and exposure as a header states them.

    Only positive, finite numbers count, also if they are written as strings. ``EGAIN`` goes before
    ``GAIN``, which is a setting of the camera in the files of amateurs (those with ``XPIXSZ``) and
    not used there. Pixels in electrons have gain 1; those in any other unit but counts have none.

    Parameters
    ----------
    header : fits.Header

    Returns
    -------
    HeaderFacts
    """
    with quiet():
        unit = str(header_value(header, "BUNIT") or "").strip()
        quantity, is_rate = _parse_unit(unit)
        exposure = _exposure(header)
        gain = None
        if quantity in _ELECTRONS:
            gain = Fact(1.0, f"BUNIT = {unit}")
        elif quantity in _COUNTS:
            gain = _gain(header)
        saturation = _first(header, _SATURATION) or _of_amplifiers(header, "SATURAT", min)
    if is_rate:
        gain = _times(gain, exposure)
    if is_rate or quantity not in _ELECTRONS | _COUNTS:
        saturation = None  # What headers state is a level of the detector, in counts
    return HeaderFacts(gain, saturation, exposure, unit, is_rate)


def key_facts(header: fits.Header) -> dict[str, Any]:
    """What identifies an observation, by keyword.

    Parameters
    ----------
    header : fits.Header

    Returns
    -------
    dict
        Strings, numbers and bools of Python under keywords of up to 8 characters; only those that
        the header has.
    """
    with quiet():
        values = {name: header_value(header, name) for name in _KEY_FACTS}
    return {name: value for name, value in values.items() if value not in (None, "")}


def _parse_unit(unit: str) -> tuple[str, bool]:
    """What the pixels count, and whether per second."""
    text = re.sub(r"\s*/\s*pix(el)?s?\b", "", unit.lower())
    quantity = _PER_SECOND.sub("", text).strip()
    is_rate = quantity != text and quantity in _ELECTRONS | _COUNTS
    return (quantity if is_rate else text), is_rate


def _gain(header: fits.Header) -> Fact | None:
    names = [name for name in _GAIN if name != "GAIN" or "XPIXSZ" not in header]
    return _first(header, names) or _of_amplifiers(header, "GAIN", _mean)


def _exposure(header: fits.Header) -> Fact | None:
    fact = _first(header, _EXPOSURE)
    if fact is None:
        return None
    unit = re.match(r"\[(\w+)\]", header.comments[fact.source])
    return Fact(fact.value * _SECONDS.get(unit[1] if unit else "s", 1.0), fact.source)


def _times(gain: Fact | None, exposure: Fact | None) -> Fact | None:
    if gain is None or exposure is None:
        return None
    return Fact(gain.value * exposure.value, f"{gain.source} and {exposure.source}")


def _first(header: fits.Header, names: Iterable[str]) -> Fact | None:
    for name in names:
        value = _positive(header, name)
        if value is not None:
            return Fact(value, name)
    return None


def _of_amplifiers(
    header: fits.Header, name: str, combine: Callable[[list[float]], float]
) -> Fact | None:
    """One number for a detector whose two amplifiers have their own, as in DECam."""
    values = [_positive(header, name + letter) for letter in "AB"]
    known = [value for value in values if value is not None]
    return Fact(combine(known), f"{name}A and {name}B") if len(known) == 2 else None


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _positive(header: fits.Header, name: str) -> float | None:
    value = header_value(header, name)
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def header_value(header: fits.Header, name: str) -> str | bool | int | float | None:
    """Value of a keyword; None if there is none, also because it cannot be parsed."""
    try:
        value = header.get(name)
    except VerifyError:
        return None
    if isinstance(value, str):
        return value.strip()
    return value if isinstance(value, (bool, int, float)) and math.isfinite(value) else None
