"""PSF fits with SEP's conventions on fields of known truth: positions and fluxes with their errors.

All noise is that of photons, and in the noise map; the gain is not given, see the last test.
Signal-to-noise ratios are 20 to 100, and the fits start 0.3 pixels off in x and in y. The bound
of Cramer and Rao is that of the true profile with the true variances. Tolerances are 5 %, or
four times what chance does where the kernels are executed by the CPU and there are fewer stars.
"""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest

import gpuphot

from . import truth

FWHM = 3.0
SKY = 100.0
SIGNAL_TO_NOISE = 20, 100
SCATTER = 0.3
N_STARS, N_PAIRS, N_ON_STAND_IN = 71**2, 50**2, 12**2
N_CONFIGURATIONS = 200
CELL, CELL_OF_PAIR = 27, 35
SIGMAS = 4

PROFILES = {"gaussian": truth.gaussian(FWHM), "moffat": truth.moffat(FWHM, beta=4.765)}
# SEP sums the samples of a fine model over the pixels: a sample that a pixel's border cuts counts
# by its part. With two samples a pixel, that costs 0.7 % of the flux; with one, it interpolates.
MODELS = {"four samples a pixel": (101, 0.25), "one sample a pixel": (25, 1.0)}


@pytest.fixture
def sized(request, backend):
    """Number of cells: all, or fewer where the kernels are executed by the CPU."""
    on_stand_in = backend == "cupy" and not request.config.getoption("--backend")
    return lambda n: min(n, N_ON_STAND_IN) if on_stand_in else n


@lru_cache(maxsize=4)
def field(name, n, separation=None):
    """Stars, or pairs of equal stars so many FWHM apart, exposed: counts are electrons."""
    rng = np.random.default_rng(5)
    profile, cell = PROFILES[name], CELL_OF_PAIR if separation else CELL
    offsets = rng.uniform(-0.5, 0.5, (N_CONFIGURATIONS, 1, 2))
    if separation:
        angle = rng.uniform(0, 2 * np.pi, N_CONFIGURATIONS)
        half = separation * FWHM / 2 * np.stack([np.cos(angle), np.sin(angle)], axis=1)[:, None]
        offsets = np.concatenate([offsets - half, offsets + half], axis=1)
    ratio = np.exp(rng.uniform(*np.log(SIGNAL_TO_NOISE), n))
    noise = SKY * 4 * np.pi * (FWHM / 2.3548) ** 2
    flux = (ratio**2 + np.sqrt(ratio**4 + 4 * ratio**2 * noise)) / 2
    light, table, _ = truth.fill_cells(profile, offsets, flux, cell)
    image = rng.poisson(light + SKY).astype(float)
    start = table.copy()
    for column in ("x", "y"):
        start[column] += rng.normal(0, SCATTER, len(table))
    bound = np.sqrt(smallest_variances(profile, offsets, flux, cell))
    return SimpleNamespace(
        start=start["x", "y"], table=table, image=image, light=light, bound=bound
    )


def smallest_variances(profile, offsets, flux, cell, step=0.01):
    """Bounds on the variances of flux, x and y of all stars, (n, 3)."""
    m = offsets.shape[1]
    shares = np.empty((len(offsets), m, 3, cell * cell))
    for star in range(m):
        here = offsets[:, star : star + 1]
        for k, move in enumerate([(0, 0), (step, 0), (0, step)]):
            ahead, behind = (
                truth.pixel_shares(profile, here + sign * np.array(move), cell).reshape(-1, cell**2)
                for sign in (1, -1)
            )
            shares[:, star, k] = ahead if k == 0 else (ahead - behind) / (2 * step)
    variances = np.empty((len(flux), m, 3))
    for cell_number, f in enumerate(flux):
        share = shares[cell_number % len(offsets)]
        gradient = share * np.array([1, f, f])[:, None]
        variance = SKY + f * share[:, 0].sum(axis=0)
        gradient = gradient.reshape(3 * m, -1)
        information = (gradient / variance) @ gradient.T
        variances[cell_number] = np.diag(np.linalg.inv(information)).reshape(m, 3)
    return variances.reshape(-1, 3)


def fit(scene, name, backend, model="four samples a pixel", **options):
    options = {"err": np.sqrt(scene.light + SKY), "bg": SKY, **options}
    psf = truth.psf_dict(PROFILES[name], *MODELS[model])
    return gpuphot.measure_objects_sep(
        scene.start, scene.image, psf=psf, backend=backend, **options
    )


def spread(values):
    """Standard deviation, and how far from 1 it may be."""
    return np.std(values), max(0.05, SIGMAS / np.sqrt(2 * len(values)))


def check(result, scene):
    flux = np.asarray(result["flux"])
    ratio = flux / np.asarray(scene.table["flux"])
    chance = np.sqrt(np.pi / 2) * np.std(ratio) / np.sqrt(len(ratio))
    assert abs(np.median(ratio) - 1) < max(5e-3, SIGMAS * chance)
    pulls, allowed = spread((flux - scene.table["flux"]) / result["fluxerr"])
    assert pulls == pytest.approx(1, abs=allowed)
    for k, (fitted, true) in enumerate([("x_psf", "x"), ("y_psf", "y")], start=1):
        offset = np.asarray(result[fitted] - scene.table[true])
        scatter, allowed = spread(offset / scene.bound[:, k])
        assert scatter == pytest.approx(1, abs=allowed)
        assert abs(np.mean(offset)) < SIGMAS * np.std(offset) / np.sqrt(len(offset))


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("grouped", [False, True], ids=["single", "grouped"])
def test_single_stars_are_fitted_as_well_as_their_pixels_allow(
    backend, sized, name, model, grouped
):
    scene = field(name, sized(N_STARS))
    result = fit(scene, name, backend, model, group_sources=grouped)
    check(result, scene)
    assert not np.any(result["flags"] & ~gpuphot.Flag.LARGE_SHIFT)
    assert np.mean(result["chi2_psf"]) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("separation", [1.5, 2.0, 3.0])
def test_pairs_are_fitted_as_well_as_their_pixels_allow(backend, sized, separation):
    scene = field("moffat", sized(N_PAIRS), separation)
    check(fit(scene, "moffat", backend), scene)


def test_gain_counts_the_noise_of_the_stars_twice(backend, sized):
    """With a gain, SEP adds the star's Poisson noise to errors that have it already.

    For stars that are brighter than the sky, the pulls become 1 / sqrt(2).
    """
    scene = field("moffat", sized(N_STARS))
    result = fit(scene, "moffat", backend, gain=1.0)
    pulls, allowed = spread((result["flux"] - scene.table["flux"]) / result["fluxerr"])
    assert pulls == pytest.approx(0.73, abs=allowed)
