"""A small made-up star field as a FITS file, with the truth about its stars."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from gpuphot import place_psf_stamps

FWHM = 3.0
SKY, NOISE = 100.0, 5.0
SHAPE = (140, 160)
GAIN, EXPOSURE, SATURATION = 1.5, 30.0, 60000.0
N_ISOLATED = 42


@dataclass(frozen=True)
class StarField:
    """Pixels, and positions and fluxes of the stars; those after the first 42 have neighbours."""

    pixels: np.ndarray
    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray


def make_star_field(seed):
    """42 stars that stand alone, and three pairs at 1.7 FWHM."""
    rng = np.random.default_rng(seed)
    x, y = (axis.ravel() for axis in np.meshgrid(np.linspace(12, 148, 8), np.linspace(12, 128, 6)))
    x, y = x + rng.uniform(-1.5, 1.5, x.size), y + rng.uniform(-1.5, 1.5, y.size)
    flux = 10 ** rng.uniform(3.5, 4.7, x.size)
    x[-3:], y[-3:] = x[-6:-3] + 5, y[-6:-3]
    flux[-6:] = 1e4
    image = rng.normal(SKY, NOISE, SHAPE)
    image = place_psf_stamps(image, FWHM, x, y, flux, gain=GAIN, rng=rng, backend="numpy")
    return StarField(image.astype(np.float32), x, y, flux)


def make_header(**changes):
    """Gain, exposure and saturation; a keyword that changes to None is left out."""
    facts = {"OBJECT": "Made up", "GAIN": GAIN, "EXPTIME": EXPOSURE, "SATURATE": SATURATION}
    facts |= {name.replace("_", "-"): value for name, value in changes.items()}
    return fits.Header({name: value for name, value in facts.items() if value is not None})


def make_wcs_header():
    """A tangential projection, distorted by some pixels at the image's edge."""
    return fits.Header(
        {
            "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "RADESYS": "ICRS",
            "CRPIX1": 80.5, "CRPIX2": 70.5, "CRVAL1": 150.1, "CRVAL2": 2.2,
            "CD1_1": -2e-4, "CD1_2": 1e-5, "CD2_1": 1e-5, "CD2_2": 2e-4,
            "A_ORDER": 2, "A_2_0": 4e-4, "A_1_1": -2e-4, "B_ORDER": 2, "B_0_2": 3e-4,
        }
    )  # fmt: skip


def sky_of(header, x, y):
    """Right ascension and declination of positions that count from 0."""
    return WCS(header).all_pix2world(x, y, 0)
