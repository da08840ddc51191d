"""The quality flags of the ``flags`` column: their bits, their names and their meaning."""

from enum import IntFlag


class Flag(IntFlag):
    """Bits that the measuring functions OR into the ``flags`` column."""

    MASKED = 0x200
    INVALID = 0x400
    NO_FIT = 0x800
    POOR_FIT = 0x1000
    LARGE_SHIFT = 0x2000


MEANING = {
    Flag.MASKED: "a masked or non-finite pixel lies inside the aperture",
    Flag.INVALID: "position missing, aperture off the image, or no local background",
    Flag.NO_FIT: "optimal extraction, or SEP's aperture, gave no flux",
    Flag.POOR_FIT: "the fit is poor, or the source inseparable from others of its group",
    Flag.LARGE_SHIFT: "the PSF fit moved the position by more than a pixel",
}
