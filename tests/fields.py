"""Fields of stars whose fluxes are known, with Moffat profiles and the noise of a camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

import gpuphot

SKY, GAIN, READ_NOISE = 200.0, 2.0, 5.0
_SUB = 5


@dataclass(frozen=True)
class Field:
    """An image, and the stars that are on it."""

    image: np.ndarray
    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray


def profile(dx, dy, fwhm, beta, ratio=1.0, angle=0.5):
    """Moffat profile, or a Gaussian without `beta`; `fwhm` is the geometric mean of the axes."""
    u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    r2 = (u**2 / ratio + v**2 * ratio) * 4 / fwhm**2
    return 2.0**-r2 if beta is None else (1 + (2 ** (1 / beta) - 1) * r2) ** -beta


def enclosed(radius, beta):
    """Part of the light of a Moffat profile within a radius in FWHM."""
    return 1 - (1 + (2 ** (1 / beta) - 1) * 4 * radius**2) ** (1 - beta)


def make_psf(fwhm, beta=3.5, ratio=1.0, extent=8.0):
    """A model that gpuphot renders, integrated over the pixels; `extent` in FWHM is its radius."""
    n = (2 * int(extent * fwhm) + 1) * _SUB
    offsets = (np.arange(n) - (n - 1) / 2) / _SUB
    data = profile(offsets, offsets[:, None], fwhm, beta, ratio)
    return gpuphot.PSFModel.from_psfex_dict(
        {"data": data / data.sum(), "sampling": 1 / _SUB, "fwhm": fwhm, "width": n, "height": n}
    )


def expose(rng, psf, x, y, flux, shape, sky=SKY):
    """Stars through a camera: Poisson noise of what arrives, and the noise of reading it."""
    light = gpuphot.place_psf_stamps(np.full(shape, sky), psf, x, y, flux)
    image = rng.poisson(light * GAIN) / GAIN + rng.normal(0, READ_NOISE, shape)
    for array in (image, x, y):
        array.setflags(write=False)
    return Field(image, x, y, np.broadcast_to(flux, np.shape(x)))


def scattered(rng, n, shape=(200, 220), psf=None, faintest=1e3, brightest=1e5):
    """Stars anywhere, all magnitudes between two being as frequent."""
    x, y = rng.uniform(0, shape[1] - 1, n), rng.uniform(0, shape[0] - 1, n)
    flux = 10 ** rng.uniform(*np.log10([faintest, brightest]), n)
    return expose(rng, make_psf(3.0) if psf is None else psf, x, y, flux, shape)


def isolated(rng, n_side=8, step=36, psf=None, faintest=2e3, brightest=1e5):
    """Stars near the nodes of a grid."""
    row, column = np.divmod(np.arange(n_side**2), n_side)
    x, y = (step * (axis + 0.5) + rng.uniform(-3, 3, n_side**2) for axis in (column, row))
    flux = 10 ** rng.uniform(*np.log10([faintest, brightest]), n_side**2)
    shape = (n_side * step, n_side * step)
    return expose(rng, make_psf(3.0) if psf is None else psf, x, y, flux, shape)


def match(field, table, radius=1.5):
    """Rows of a table that are stars, and which ones: two arrays of indices."""
    x, y = (table[f"{n}_psf" if f"{n}_psf" in table.colnames else n] for n in ("x", "y"))
    row = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    stars = cKDTree(np.stack([field.x, field.y], axis=1))
    distance, star = stars.query(np.stack([x[row], y[row]], axis=1))
    return row[distance < radius], star[distance < radius]
