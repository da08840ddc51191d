"""The quality flags of the ``flags`` column: their bits, their names and their meaning."""

from enum import IntFlag


class Flag(IntFlag):
    """Bits that the measuring functions OR into the ``flags`` column."""

    MASKED = 0x200
    INVALID = 0x400


MEANING = {
    Flag.MASKED: "a masked or non-finite pixel lies inside the aperture",
    Flag.INVALID: "position missing, aperture off the image, or no local background",
}
