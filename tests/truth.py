"""Star fields whose truth is known, rendered by code that shares nothing with the package.

Analytic stars are integrated over 11 x 11 points of every pixel. The points are those of Gauss
and Legendre: with a regular grid, the pixel is a little too narrow, and the flux of a star of 3
pixels off by 2e-4. Stars of PSFEx models are drawn by GalSim.

Most fields are made of square cells with a star or a pair in the middle of each. Light beyond its
own cell is not drawn, for nothing is measured there: all stars are isolated. `draw_stars` draws
stars anywhere, to a twentieth of a pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from astropy.io import fits
from astropy.table import Table

N_POINTS = 11
N_PHASES = 20
Profile = Callable[[np.ndarray, np.ndarray], np.ndarray]


def gaussian(fwhm_x, fwhm_y=None) -> Profile:
    """Surface brightness of a Gaussian star of unit flux, by distance in x and y."""
    a, b = (np.sqrt(4 * np.log(2)) / width for width in (fwhm_x, fwhm_y or fwhm_x))
    return lambda x, y: a * b / np.pi * np.exp(-((a * x) ** 2) - (b * y) ** 2)


def moffat(fwhm, beta) -> Profile:
    """The same of a Moffat star, which has wings."""
    alpha2 = (fwhm / 2) ** 2 / (2 ** (1 / beta) - 1)
    return lambda x, y: (beta - 1) / (np.pi * alpha2) * (1 + (x**2 + y**2) / alpha2) ** -beta


def pixel_shares(profile, offsets, size, step=1.0, width=None):
    """Share of the light of stars in the pixels around the origin.

    Parameters
    ----------
    offsets : (n, m, 2) array
        Positions x, y of m stars in each of n images.
    size : int
        Number of pixels along each side.
    step, width : float
        Distance of the pixels' centres, and their own width, which is that by default.

    Returns
    -------
    (n, size, size) array
        Sum over the m stars.
    """
    node, weight = np.polynomial.legendre.leggauss(N_POINTS)
    width = width or step
    weight = weight / 2 * width
    points = step * (np.arange(size)[:, None] - (size - 1) / 2) + node / 2 * width
    shares = np.zeros((len(offsets), size, size))
    for share, stars in zip(shares, offsets, strict=True):
        for x, y in stars:
            light = profile(points.ravel() - x, (points.ravel() - y)[:, None])
            light = light.reshape(size, N_POINTS, size, N_POINTS)
            share += np.einsum("iajb,a,b->ij", light, weight, weight)
    return shares


def psf_dict(profile, size, sampling):
    """A constant model of a star, as the dictionary that stdpipe reads, in pixels of its own.

    Stamps are sums over whole blocks of these pixels if 1 / sampling is an integer.
    """
    return {
        "data": pixel_shares(profile, np.zeros((1, 1, 2)), size, sampling),
        "width": size, "height": size, "ncoeffs": 1, "sampling": sampling, "fwhm": 3.0,
        "degree": 0, "x0": 0.0, "y0": 0.0, "sx": 1.0, "sy": 1.0,
    }  # fmt: skip


def fill_cells(profile, offsets, flux, cell):
    """Stars in the middle of square cells, in a square of cells.

    Parameters
    ----------
    offsets : (n, m, 2) array
        Positions x, y of m stars relative to the middle of a cell, for n configurations that the
        cells take in turn.
    flux : (n_cells,) array
        Of every star of a cell; a square number of cells.
    cell : int
        Number of pixels along each side of a cell, odd.

    Returns
    -------
    light : (H, W) array
        Without sky and noise.
    table : Table
        Columns x, y, flux.
    shares : (n, cell, cell) array
        Share of the light of a cell's stars in its pixels, by configuration.
    """
    n_side = int(np.sqrt(len(flux)))
    shares = pixel_shares(profile, offsets, cell)
    configuration = np.arange(n_side**2) % len(offsets)
    cells = flux[:, None, None] * shares[configuration]
    cells = cells.reshape(n_side, n_side, cell, cell).swapaxes(1, 2)
    row, column = np.divmod(np.arange(n_side**2), n_side)
    middle = np.stack([column, row], axis=1) * cell + cell // 2
    x, y = np.moveaxis(middle[:, None] + offsets[configuration], -1, 0)
    table = Table({"x": x.ravel(), "y": y.ravel(), "flux": np.repeat(flux, offsets.shape[1])})
    return cells.reshape(n_side * cell, n_side * cell), table, shares


def on_phases(position):
    """Nearest position at which `draw_stars` can draw, never the middle or edge of a pixel."""
    return (np.floor(np.asarray(position) * N_PHASES) + 0.5) / N_PHASES


@lru_cache(maxsize=2)
def _shares_by_phase(profile, size):
    phase = (np.arange(N_PHASES) + 0.5) / N_PHASES - 0.5
    offsets = np.stack(np.meshgrid(phase, phase), axis=-1).reshape(-1, 1, 2)
    return pixel_shares(profile, offsets, size).reshape(N_PHASES, N_PHASES, size, size)


def draw_stars(profile, table, shape, size=41):
    """Light of stars at positions of `on_phases`, each in a square of size x size pixels.

    A table of few columns: x, y and flux.
    """
    shares, half = _shares_by_phase(profile, size), size // 2
    light = np.zeros((shape[0] + 2 * size, shape[1] + 2 * size))
    column, row = np.rint(table["x"]).astype(int), np.rint(table["y"]).astype(int)
    i, j = (
        np.floor((table[axis] - pixel + 0.5) * N_PHASES).astype(int)
        for axis, pixel in (("x", column), ("y", row))
    )
    for a, b, c, r, flux in zip(i, j, column, row, table["flux"], strict=True):
        low, left = r + size - half, c + size - half
        light[low : low + size, left : left + size] += flux * shares[b, a]
    return light[size:-size, size:-size]


def write_varying_psf(path, fwhm, side):
    """A model like those of PSFEx for an image of side x side pixels.

    Stars become wider in x from left to right, and in y from the bottom to the top, by a third.
    The model has two samples a pixel, each of which holds the light of a whole pixel around it.
    """
    size, step = 51, 0.5
    u, v = (grid.ravel() for grid in np.meshgrid([-1, 0, 1], [-1, 0, 1]))
    stars = [
        pixel_shares(
            gaussian(fwhm * (1 + a / 7), fwhm * (1 + b / 7)), np.zeros((1, 1, 2)), size, step, 1.0
        ).ravel()
        for a, b in zip(u, v, strict=True)
    ]
    terms = np.stack([u**0, u, u**2, v, u * v, v**2], axis=1)
    planes = np.linalg.lstsq(terms, np.stack(stars))[0]
    column = fits.Column("PSF_MASK", f"{planes.size}E", dim=f"({size}, {size}, {len(planes)})")
    hdu = fits.BinTableHDU.from_columns([column], nrows=1, name="PSF_DATA")
    hdu.data["PSF_MASK"][0] = planes.reshape(-1, size, size)
    hdu.header.update(
        {
            "POLNAXIS": 2, "POLNGRP": 1, "POLDEG1": 2, "PSF_FWHM": fwhm, "PSF_SAMP": step,
            "POLGRP1": 1, "POLNAME1": "X_IMAGE", "POLZERO1": side / 2, "POLSCAL1": side / 2,
            "POLGRP2": 1, "POLNAME2": "Y_IMAGE", "POLZERO2": side / 2, "POLSCAL2": side / 2,
            "PSFNAXIS": 3, "PSFAXIS1": size, "PSFAXIS2": size, "PSFAXIS3": len(planes),
        }
    )  # fmt: skip
    hdu.writeto(path)


def draw_psfex_stars(path, table, side, size):
    """Light of stars of a PSFEx model, drawn by GalSim in squares of size x size pixels.

    The model includes the pixel, and its polynomial takes positions that count from 1.
    """
    import galsim
    from galsim.des import DES_PSFEx

    model = DES_PSFEx(str(path))
    light = np.zeros((side, side))
    stamp = galsim.ImageD(size, size, scale=1)
    for x, y, flux in table.iterrows("x", "y", "flux"):
        column, row = round(x), round(y)
        star = model.getPSF(galsim.PositionD(x + 1, y + 1)).withFlux(flux)
        star.drawImage(stamp, method="no_pixel", offset=(x - column, y - row))
        low, left = row - size // 2, column - size // 2
        light[low : low + size, left : left + size] += stamp.array
    return light
