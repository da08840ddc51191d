"""The quality flags of the ``flags`` column: their bits, their names and their meaning."""

from enum import IntFlag


class Flag(IntFlag):
    """Bits that the measuring functions OR into the ``flags`` column."""

    MASKED = 0x200
    INVALID = 0x400
    NO_FIT = 0x800
    POOR_FIT = 0x1000


MEANING = {
    Flag.MASKED: "a masked or non-finite pixel lies inside the aperture",
    Flag.INVALID: "position missing, aperture off the image, or no local background",
    Flag.NO_FIT: "optimal extraction gave no flux",
    Flag.POOR_FIT: "chi-squared of the fit above 1000, or inseparable from others of its group",
}
