"""Pairs and crowded fields of known truth, measured from end to end on the NumPy backend.

What the deblended fluxes need comes from the same noisy image: aperture fluxes, and PSF fits with
free positions, grouped. Stars are Moffat profiles of 3 pixels, apertures have a radius of 1 FWHM,
and the truth is a star's own light in that aperture, which is measured where it is drawn alone.
All noise is that of photons, and in the noise map. The fainter star of a pair has a
signal-to-noise ratio of 60 to 150 without its neighbour; a third of the cells have a single star.

The PSF model has one sample a pixel, because SEP adds up the samples of a finer model, each of
which holds the light of a whole pixel already: a quarter of a pixel too wide is enough for 8 % of
a star beside one that is brighter by 2 magnitudes at 1 FWHM.
"""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace

import numpy as np
from astropy.table import Table
from scipy.spatial import cKDTree

import gpuphot
from gpuphot.detect import detect_objects

from . import truth

FWHM = RADIUS = 3.0
SKY = 100.0
SIGNAL_TO_NOISE = 60, 150
SEPARATIONS = 1.0, 1.25, 1.5, 2.0, 3.0, 4.0
N_SIDE, CELL, SINGLE = 44, 37, 0.3
POSITION_ERROR = 0.3
PROFILE = truth.moffat(FWHM, beta=4.765)


def flux_of(signal_to_noise):
    """Of a single star, in an aperture with all of its light."""
    noise = SKY * np.pi * RADIUS**2
    return (signal_to_noise**2 + np.sqrt(signal_to_noise**4 + 4 * signal_to_noise**2 * noise)) / 2


@lru_cache
def model(width=1.0):
    return truth.psf_dict(truth.moffat(width * FWHM, beta=4.765), 25, 1.0)


def expose(table, shape, seed, noise=True):
    """Counts are electrons."""
    mean = truth.draw_stars(PROFILE, table, shape) + SKY
    image = np.random.default_rng([seed, 1]).poisson(mean).astype(float) if noise else mean
    return SimpleNamespace(table=table, image=image, err=np.sqrt(mean), seed=seed)


@lru_cache(maxsize=2)
def pairs(contrast, seed=1, noise=True):
    """Stars and pairs in the cells of a grid; columns of the table say who is who."""
    rng = np.random.default_rng([seed, contrast])
    row, column = np.divmod(np.arange(N_SIDE**2), N_SIDE)
    middle = np.stack([column, row], axis=1) * CELL + CELL // 2
    middle = middle + rng.uniform(-0.5, 0.5, (N_SIDE**2, 2))
    single = rng.random(N_SIDE**2) < SINGLE
    separation = np.where(single, np.inf, rng.choice(SEPARATIONS, N_SIDE**2))
    angle = rng.uniform(0, 2 * np.pi, N_SIDE**2)
    half = np.where(single, 0, separation)[:, None] * FWHM / 2
    half = half * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    faint = flux_of(np.exp(rng.uniform(*np.log(SIGNAL_TO_NOISE), N_SIDE**2)))
    bright = np.where(single, faint, faint * 10 ** (0.4 * contrast))
    x, y = truth.on_phases(np.concatenate([middle - half, (middle + half)[~single]])).T
    table = Table({"x": x, "y": y, "flux": np.concatenate([bright, faint[~single]])})
    table["separation"] = np.concatenate([separation, separation[~single]])
    table["fainter"] = np.arange(len(table)) >= N_SIDE**2
    return expose(table, (N_SIDE * CELL,) * 2, seed, noise)


def crowd(density, side, seed=1):
    """Stars anywhere, with N(> F) proportional to 1/F, and the distance to the next in FWHM."""
    rng = np.random.default_rng([seed, side])
    xy = truth.on_phases(rng.uniform(0, side, (rng.poisson(density * side**2), 2)))
    flux = 1 / rng.uniform(1 / 3e5, 1 / 2e3, len(xy))
    table = Table({"x": xy[:, 0], "y": xy[:, 1], "flux": flux})
    table["separation"] = cKDTree(xy).query(xy, k=2)[0][:, 1] / FWHM
    return expose(table, (side, side), seed)


def known_positions(scene):
    """Those of a catalogue of better seeing."""
    rng = np.random.default_rng([scene.seed, 2])
    r, angle = np.sqrt(rng.random(len(scene.table))), rng.uniform(0, 2 * np.pi, len(scene.table))
    x = scene.table["x"] + POSITION_ERROR * r * np.cos(angle)
    return Table({"x": x, "y": scene.table["y"] + POSITION_ERROR * r * np.sin(angle)})


def measure(scene, positions, seeds="psf", width=1.0, fit_positions=True, mask=None, **options):
    """Fluxes, their truth, and the stars they belong to, from an image and rough positions."""
    common = {"err": scene.err, "bg": SKY, "mask": mask, "backend": "numpy"}
    psf = model(width)
    fit = gpuphot.measure_objects_sep(
        positions["x", "y"], scene.image, psf=psf, fit_positions=fit_positions, **common
    )
    x, y, flux_psf, flux_psf_err = (
        np.asarray(fit[name]) for name in ("x_psf", "y_psf", "flux", "fluxerr")
    )
    flux_seed = flux_psf
    if seeds == "aperture":
        plain = gpuphot.measure_objects_sep(
            Table({"x": x, "y": y}), scene.image, aper=RADIUS, **common
        )
        flux_seed = np.asarray(plain["flux"])
    result = gpuphot.measure_aperture_deblended(
        scene.image, x, y, RADIUS, psf, flux_seed=flux_seed, flux_psf=flux_psf,
        flux_psf_err=flux_psf_err, diagnostics=True, **common, **options,
    )  # fmt: skip
    star, source = matched(scene.table, x, y)
    result, stars = result[source], scene.table[star]
    result["psf_error"] = flux_psf[source] / stars["flux"] - 1
    result["true"] = own_light(stars, result)
    result["star"] = star
    for name in ("separation", "fainter"):
        if name in stars.colnames:
            result[name] = stars[name]
    return result


def matched(table, x, y):
    """Rows of stars and sources that are each other's nearest, within a pixel."""
    stars, sources = np.stack([table["x"], table["y"]], axis=1), np.stack([x, y], axis=1)
    distance, source = cKDTree(sources).query(stars)
    mutual = cKDTree(stars).query(sources)[1][source] == np.arange(len(stars))
    star = np.flatnonzero(mutual & (distance < 1))
    return star, source[star]


def own_light(stars, apertures, size=27):
    """Sums in the same apertures with each star alone, in a cell of its own."""
    n_side = int(np.ceil(np.sqrt(len(stars))))
    row, column = np.divmod(np.arange(len(stars)), n_side)
    move = {"x": column * size + size // 2, "y": row * size + size // 2}
    for axis in move:
        move[axis] = move[axis] - np.rint(stars[axis])
    alone = Table({axis: stars[axis] + move[axis] for axis in "xy"})
    alone["flux"] = stars["flux"]
    light = truth.draw_stars(PROFILE, alone, (n_side * size,) * 2, size)
    at = Table({axis: apertures[axis] + move[axis] for axis in "xy"})
    options = {"aper": RADIUS, "err": 1.0, "bg": 0.0, "backend": "numpy"}
    return np.asarray(gpuphot.measure_objects_sep(at, light, **options)["flux"])


@lru_cache(maxsize=32)
def measured_pairs(contrast, detected=False, seed=1, noise=True, **options):
    scene = pairs(contrast, seed, noise)
    positions = detect_objects(scene.image) if detected else known_positions(scene)
    return measure(scene, positions, **options)


def error(result, rows, column="flux"):
    """Median relative error of the fluxes in per cent, and its own standard deviation."""
    ratio = np.asarray(result[column] / result["true"])[rows] - 1
    return 100 * np.median(ratio), 100 * np.sqrt(np.pi / 2) * robust(ratio) / np.sqrt(len(ratio))


def robust(values):
    return 1.4826 * np.median(np.abs(values - np.median(values)))


def pulls(result, rows):
    """Robust standard deviation of the pulls."""
    return robust(np.asarray((result["flux"] - result["true"]) / result["fluxerr"])[rows])


def targets(result, contrast, separation=None):
    """Rows of the fainter stars of pairs, or of both if they are equal."""
    rows = result["fainter"] | (contrast == 0)
    apart = result["separation"]
    return np.asarray(rows & (np.isfinite(apart) if separation is None else apart == separation))
