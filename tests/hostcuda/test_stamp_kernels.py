"""The kernels of stamps and model images, in any order of threads and under every tool."""

from __future__ import annotations

import numpy as np
import pytest

from gpuphot.numpy_backend.render import render_psf_image
from gpuphot.numpy_backend.stamps import psf_stamps

from ..psfs import awkward_positions, make_psf, model_of
from ..test_stamps import central, gridded_model
from .proof import SCHEDULES, assert_sanitizers_pass, running

SHAPE = 40, 56
HALF_SIZE = 3
MODELS = {
    "block sums": (24, 20, 0.5, 2),
    "interpolated": (15, 17, 0.9, 1),
    "in tiles": (101, 60, 0.1, 1),
    "gridded": None,
    "Gaussian": None,
}


def model(name):
    if name == "gridded":
        return gridded_model(24, 2)
    return model_of(2.1 if MODELS[name] is None else make_psf(*MODELS[name]))


def stars(n=50):
    rng = np.random.default_rng(1)
    x, y = awkward_positions(rng, n, SHAPE[0] + 20, SHAPE[1] + 20)
    x[0], y[1] = np.nan, np.inf
    return x - 10, y - 10, rng.normal(100, 80, len(x))


def run(name, variant, schedule=None, n=50):
    """Stamps and the image of n stars, from the stand-in; what races is an error."""
    with running(variant, schedule) as ops:
        x, y, flux = (ops.to_device(values) for values in stars(n))
        stamps = ops.to_host(ops.psf_stamps(model(name), x, y))
        part = ops.to_host(ops.psf_stamps(model(name), x, y, HALF_SIZE))
        np.testing.assert_array_equal(part, central(stamps, HALF_SIZE))
        image = ops.to_host(ops.render_psf_image(SHAPE, model(name), x, y, flux))
    return stamps, image


def run_own_widths(variant, fwhm):
    """Central parts of stamps of Gaussians of their own widths, from the stand-in."""
    with running(variant) as ops:
        x, y, fwhm = (ops.to_device(values) for values in (*stars()[:2], fwhm))
        stamps = ops.to_host(ops.psf_stamps(model("Gaussian"), x, y, HALF_SIZE, fwhm))
    return stamps


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("variant", ["plain", "contracted"])
@pytest.mark.parametrize(
    "schedule",
    [{"order": "forward"}, *SCHEDULES],
    ids=str,
)
def test_any_order_of_threads_gives_the_same_bits(name, variant, schedule):
    reference, reference_image = run(name, variant)
    stamps, image = run(name, variant, schedule)
    np.testing.assert_array_equal(stamps, reference)
    np.testing.assert_array_equal(image, reference_image)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("variant", ["plain", "contracted"])
def test_kernels_agree_with_numpy(name, variant):
    x, y, flux = stars()
    expected, expected_image = (
        psf_stamps(model(name), x, y),
        render_psf_image(SHAPE, model(name), x, y, flux),
    )
    stamps, image = run(name, variant)
    np.testing.assert_allclose(stamps, expected, rtol=0, atol=1e-13 * np.nanmax(expected))
    np.testing.assert_allclose(
        image, expected_image, rtol=0, atol=1e-13 * np.abs(expected_image).max()
    )


@pytest.mark.parametrize("variant", ["plain", "contracted", "race"])
def test_widths_of_their_own(variant):
    x, y, _ = stars()
    fwhm = np.random.default_rng(2).uniform(0.4, 6, len(x))
    expected = psf_stamps(model("Gaussian"), x, y, HALF_SIZE, fwhm)
    stamps = run_own_widths(variant, fwhm)
    np.testing.assert_allclose(stamps, expected, rtol=0, atol=1e-13 * np.nanmax(expected))


@pytest.mark.parametrize("name", MODELS)
def test_kernels_have_no_races(name):
    run(name, "race", {"order": "random", "seed": 1}, n=12)


@pytest.mark.parametrize(("variant", "order"), [("plain", "reverse"), ("race", "random")])
def test_crowded_tiles_list_their_stars_in_several_rounds(variant, order):
    _, image = run("Gaussian", variant, {"order": order}, n=1500)
    expected = render_psf_image(SHAPE, model("Gaussian"), *stars(1500))
    np.testing.assert_allclose(image, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


def test_kernels_pass_the_sanitizers():
    calls = [(name, "sanitized", {}, 12) for name in MODELS]
    assert_sanitizers_pass(__name__, calls)
