"""Made-up star fields, and the structures that primitives take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from astropy.table import Table

from gpuphot.measure.inputs import make_positions
from gpuphot.models.frame import Frame

FWHM = 3.0
SIGMA = FWHM / 2.3548
HEIGHT, WIDTH = 240, 300
N_SOURCES = 260


@dataclass(frozen=True)
class Scene:
    """An image with its table of positions and its mask."""

    image: np.ndarray
    table: Table
    mask: np.ndarray


def add_stars(image, x, y, flux):
    """Add Gaussian stars to an image, in place."""
    half = int(5 * SIGMA)
    for xi, yi, fi in zip(x, y, flux, strict=True):
        left, right = max(0, int(xi) - half), min(image.shape[1], int(xi) + half + 1)
        low, high = max(0, int(yi) - half), min(image.shape[0], int(yi) + half + 1)
        if left >= right or low >= high:
            continue
        rows, columns = np.mgrid[low:high, left:right]
        r2 = (columns - xi) ** 2 + (rows - yi) ** 2
        image[low:high, left:right] += fi / (2 * np.pi * SIGMA**2) * np.exp(-r2 / 2 / SIGMA**2)


def make_scene(seed, sky=None, shape=(HEIGHT, WIDTH), n=N_SOURCES):
    """Close pairs, integer, half-integer, off-image and missing positions; masks; bad pixels."""
    rng = np.random.default_rng(seed)
    height, width = shape
    x = rng.uniform(-12, width + 12, n)
    y = rng.uniform(-12, height + 12, n)
    x[10:20], y[10:20] = x[20:30] + rng.uniform(-3, 3, 10), y[20:30] + rng.uniform(-3, 3, 10)
    x[30:50], y[30:50] = np.round(x[30:50]), np.round(y[30:50])
    x[50:70], y[50:70] = np.floor(x[50:70]) + 0.5, np.floor(y[50:70]) + 0.5
    flux = 10 ** rng.uniform(1.5, 5, n)
    sky = 10 ** rng.uniform(0, np.log10(5e4)) if sky is None else sky
    image = sky * np.sqrt(2) + rng.normal(0, 3, shape)
    image += np.linspace(0, 20, width) * rng.normal()
    add_stars(image, x, y, flux)
    x[:6] = np.nan, np.inf, 5.0, -np.inf, 1e6, -400.0
    y[:6] = 5.0, 7.0, np.nan, 3.0, 20.0, -400.0
    for value in (np.nan, np.inf, -np.inf):
        image[rng.integers(0, height, 6), rng.integers(0, width, 6)] = value
    mask = rng.random(shape) < 0.01
    mask[height // 3 : height // 3 + 12, width // 2 : width // 2 + 17] = True
    mask[:, rng.integers(0, width)] = True
    return Scene(image, Table({"x": x, "y": y}), mask)


def positions_of(ops, x, y):
    """`Positions` on the backend's device."""
    x, y = (np.atleast_1d(np.asarray(v, dtype=float)) for v in (x, y))
    valid = np.isfinite(x) & np.isfinite(y)
    return make_positions(ops.to_device(x), ops.to_device(y), ops.to_device(valid), ops.xp)


def frame_of(ops, image, mask=None, bg=0.0, err=1.0) -> Frame:
    """A `Frame` of an image with a known background and noise."""
    data, bad = ops.load_image(ops.to_device(np.asarray(image)), mask)
    bg, err = (ops.to_device(np.broadcast_to(v, image.shape)) for v in (bg, err))
    return ops.subtract_background(data, bad, bg, err, None, None)
