"""The synthetic star fields that all benchmarks measure: the same on every run and machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray
from scipy.special import erf

SIZES = {
    "S": (1024, 1_000),
    "M": (2048, 10_000),
    "L": (4096, 100_000),
    "XL": (8192, 1_000_000),
    "P": (1500, 100_000),
}
"""Side in pixels and number of stars. In P, nearly all are linked to one group at 2 FWHM."""

SEED = 20251
FWHM = 3.0
SCALE = np.sqrt(2)
"""Factor on the whole image. Round pixel values would add up exactly and hide rounding."""
SKY = 100.0
FAINTEST, BRIGHTEST = 300.0, 1e6
"""Range of the stars' fluxes before scaling; the faintest have a signal-to-noise ratio of 5."""
POSITION_ERROR = 0.2
PSF_SIZE = 25
PSF_VARIATION = 0.05
"""How much wider than at the centre the stars of the PSF model are at the image's edges."""
MARGIN = 30
"""Distance of all sources from the border in pixels: annuli of 7 FWHM lie inside the image."""

STAMP_RADIUS = 7
STARS_AT_ONCE = 10_000
PIXELS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Workload:
    """A star field.

    Attributes
    ----------
    name : str
    image, bg, err : (H, W) float64 arrays
        Pixels, the sky in them and the standard deviation of their noise.
    table : Table
        Columns x and y: where the stars were "detected", off by `POSITION_ERROR`.
    fwhm : float
        Of the stars, in pixels.
    psf : dict
        A PSF model of degree 2 with a sample a pixel, like those of PSFEx. It has the stars' width
        at the centre of the image; that it varies costs time, whether or not the stars vary.
    """

    name: str
    image: NDArray[np.float64]
    bg: NDArray[np.float64]
    err: NDArray[np.float64]
    table: Table
    fwhm: float
    psf: dict[str, Any]

    def arguments(
        self, options: dict[str, Any], maps_given: bool, psf_given: bool = False
    ) -> dict[str, Any]:
        """Keyword arguments of `measure_objects`, with background, noise map and PSF if given."""
        maps = {"bg": self.bg, "err": self.err} if maps_given else {}
        psf = {"psf": self.psf} if psf_given else {}
        return {"fwhm": self.fwhm, **maps, **psf, **options}

    def sample(self, n: int) -> NDArray[np.intp]:
        """At most n rows of the table, all over the image because positions are in random order."""
        return np.unique(np.linspace(0, len(self.table) - 1, n).astype(np.intp))

    def only(self, rows: NDArray[np.intp]) -> Workload:
        """The same image with some of the sources."""
        return replace(self, table=self.table[rows])

    def corner(self, n: int) -> tuple[NDArray[np.intp], Workload]:
        """At most n sources, those in a square at the image's origin, and that part of the image.

        They are as far from the border of that part as all sources are from that of the image.
        """
        reach = np.maximum(self.table["x"], self.table["y"])
        if n >= len(reach):
            return np.arange(len(reach)), self
        side = int(np.partition(reach, n)[n]) + MARGIN
        rows = np.flatnonzero(reach <= side - 1 - MARGIN)
        image, bg, err = (
            np.ascontiguousarray(plane[:side, :side]) for plane in (self.image, self.bg, self.err)
        )
        return rows, replace(self.only(rows), image=image, bg=bg, err=err)


def build(name: str) -> Workload:
    """Make the workload of that name."""
    return make(name, *SIZES[name])


def make(name: str, side: int, n_stars: int) -> Workload:
    """Make a workload of any size; never needs much more memory than its three planes."""
    rng = np.random.default_rng([SEED, side])
    x, y = rng.uniform(MARGIN, side - 1 - MARGIN, (2, n_stars))
    image = np.zeros((side, side))
    _add_stars(image, x, y, _power_law_fluxes(rng, n_stars))
    u = np.linspace(0, 1, side)
    bg = SKY + 6 * u + 4 * u[:, None] ** 2
    err = np.empty_like(image)
    for rows in _bands(side):
        np.sqrt(bg[rows] + image[rows], out=err[rows])
        err[rows] *= SCALE
        bg[rows] *= SCALE
        image[rows] *= SCALE
        image[rows] += bg[rows]
        image[rows] += err[rows] * rng.standard_normal(image[rows].shape)
    error_x, error_y = POSITION_ERROR * rng.uniform(-1, 1, (2, n_stars))
    table = Table({"x": x + error_x, "y": y + error_y})
    return Workload(name, image, bg, err, table, FWHM, _psf_model(side))


def _power_law_fluxes(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Fluxes of which a share proportional to 1/F is brighter than F."""
    return 1 / rng.uniform(1 / BRIGHTEST, 1 / FAINTEST, n)


def _add_stars(image: NDArray, x: NDArray, y: NDArray, flux: NDArray) -> None:
    """Add Gaussian stars integrated over the pixels, all of which must be inside the image."""
    pixels = image.reshape(-1)
    offset = np.arange(-STAMP_RADIUS, STAMP_RADIUS + 1)
    by_row = np.argsort(y)  # neighbours in the image share cache lines
    for start in range(0, len(x), STARS_AT_ONCE):
        i = by_row[start : start + STARS_AT_ONCE]
        column, row = np.rint(x[i]).astype(np.intp), np.rint(y[i]).astype(np.intp)
        profile_x = _profile(offset - (x[i] - column)[:, None])
        profile_y = _profile(offset - (y[i] - row)[:, None])
        stamps = (flux[i, None] * profile_y)[:, :, None] * profile_x[:, None, :]
        first = row * image.shape[1] + column
        index = first[:, None, None] + offset[:, None] * image.shape[1] + offset
        np.add.at(pixels, index.reshape(-1), stamps.reshape(-1))


def _psf_model(side: int) -> dict[str, Any]:
    """Gaussian stars that become wider towards the edges of an image of that side."""
    offset = np.arange(PSF_SIZE) - PSF_SIZE // 2
    narrow, wide = (_profile(offset, width * FWHM) for width in (1, 1 + PSF_VARIATION))
    star = np.outer(narrow, narrow)
    wider_in_x = np.outer(narrow, wide) - star
    wider_in_y = np.outer(wide, narrow) - star
    wider = np.outer(wide, wide) - star
    # Of the terms 1, x, x^2, y, x y, y^2.
    planes = [star, wider_in_x / 2, wider_in_x / 2, wider_in_y / 2, wider / 4, wider_in_y / 2]
    return {
        "data": np.array(planes, np.float32), "width": PSF_SIZE, "height": PSF_SIZE,
        "ncoeffs": len(planes), "degree": 2, "sampling": 1.0, "fwhm": FWHM,
        "x0": side / 2, "y0": side / 2, "sx": side / 2, "sy": side / 2,
    }  # fmt: skip


def _profile(distance: NDArray[np.float64], fwhm: float = FWHM) -> NDArray[np.float64]:
    """Share of a Gaussian star in a pixel column at that distance."""
    unit = fwhm / (2 * np.sqrt(np.log(2)))
    return (erf((distance + 0.5) / unit) - erf((distance - 0.5) / unit)) / 2


def _bands(side: int) -> Iterator[slice]:
    step = max(1, PIXELS_AT_ONCE // side)
    for start in range(0, side, step):
        yield slice(start, start + step)
