"""The kernels of grouped PSF fits with SEP's conventions, in any order and under every tool."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest

from gpuphot.numpy_backend import primitives as numpy_ops

from ..psfs import make_psf, model_of
from ..scenes import positions_of
from .proof import SCHEDULES, assert_sanitizers_pass, running

sep_x = pytest.importorskip("sep_x")

from ..test_sep_fit import Field, as_sep, on_host, options_of  # noqa: E402
from ..test_sep_group_fit import assert_replays  # noqa: E402

# PSF, stars, options.
CASES = {
    "box sums": (make_psf(26, 30, 0.5, 0), "small groups", {"gain": 2.0}),
    "interpolated, damped": (make_psf(13, 11, 1.0, 1), "small groups", {"damp_snthresh": 40.0}),
    "degree 2, within a radius": (make_psf(28, 27, 0.45, 2), "small groups", {"fit_radius": 4.0}),
    "in a workspace": (make_psf(95, 90, 0.3, 1), "small groups", {"maxiter": 3}),
    "chain": (make_psf(11, 11, 1.0, 0), "chain", {"maxiter": 4}),
    "fluxes only": (make_psf(26, 30, 0.5, 1), "chain", {"fit_positions": False, "gain": 0.7}),
    "coincident": (make_psf(11, 11, 1.0, 0), "coincident", {"maxiter": 2}),
    "few pixels": (make_psf(2, 3, 1.0, 0), "corner", {"maxiter": 2}),
    "blocks": (make_psf(9, 9, 1.0, 0), "blocks", {"maxiter": 2, "fit_radius": 3.0}),
    "fluxes of blocks": (make_psf(9, 9, 1.0, 0), "blocks", {"fit_positions": False}),
}
REPLAYED = [name for name in CASES if CASES[name][1] in ("small groups", "chain")]
ERR = 3.0


def places(stars):
    """Where stars are."""
    if stars == "small groups":
        x = [12.3, 17.0, 13.5, 40.0, 44.5, 43.2, 46.1, 60.2, -0.3, 3.0, 30.1, np.nan]
        y = [10.0, 12.5, 16.2, 20.1, 22.0, 26.3, 18.5, 50.0, 40.7, 43.0, 50.5, 5.0]
    elif stars == "chain":
        x, y = 8 + 4.4 * (np.arange(20) % 12), 12 + 4.1 * (np.arange(20) // 12 + np.arange(20) % 3)
    elif stars == "coincident":
        x, y = [20.2, 20.2, 24.0, 40.0], [15.1, 15.1, 16.0, 18.0]
    elif stars == "corner":
        x, y = [0.2, -0.4, 0.1, 30.0, 31.2], [0.1, -0.3, 0.9, 20.0, 20.3]
    else:
        k = np.arange(84)
        x, y = 5 + 4.9 * (k % 14) + 0.3 * np.sin(k), 9 + 5.0 * (k // 14) + 0.3 * np.cos(k)
        x[80:], y[80:] = 30 + 2.5 * np.arange(4), 40.0
    return np.array(x, dtype=float), np.array(y, dtype=float)


def field_of(name):
    psf, stars, _ = CASES[name]
    rng = np.random.default_rng(5)
    field = Field(rng, psf, n=12, shape=(64, 72))
    x, y = places(stars)
    is_star = np.isfinite(x)
    flux = rng.uniform(2000, 20000, len(x))
    field.image = rng.normal(0, ERR, (64, 72))
    sep_x.model_psf(field.image, x[is_star], y[is_star], flux[is_star], as_sep(psf))
    field.err[:], field.mask[:] = ERR, False
    field.err[14, 40], field.mask[12, 14] = 0, True
    scatter = 0 if stars in ("coincident", "corner") else 0.15
    field.x, field.y = np.stack([x, y]) + scatter * rng.normal(size=(2, len(x)))
    return field


def fits(ops, name):
    psf, _, case = CASES[name]
    gain, options = options_of(case)
    field = field_of(name)
    pos = positions_of(ops, field.x, field.y)
    found = ops.sep_grouped_psf_fit(field.frame(ops), pos, model_of(psf), gain, options)
    return on_host(ops, found)


def run(name, variant, schedule=None):
    """Fits from the stand-in, the blocks of large groups twice; what races is an error."""
    with (
        running(variant, schedule) as ops,
        mock.patch("gpuphot.cupy_backend.sep_group_fit._ROUNDS", 2),
    ):
        return fits(ops, name)


@pytest.mark.parametrize("name", CASES)
def test_any_order_of_threads_gives_the_same_bits(name):
    reference = vars(run(name, "plain"))
    for schedule in SCHEDULES:
        for field, values in vars(run(name, "plain", schedule)).items():
            np.testing.assert_array_equal(values, reference[field], err_msg=field)


@pytest.mark.parametrize("name", REPLAYED)
def test_kernels_agree_with_numpy(name):
    assert_replays(run(name, "plain"), fits(numpy_ops, name))


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"coincident", "few pixels"}))
def test_contraction_rounds_stamps_of_single_precision(name):
    # It changes nothing but the last digits, unless it decides on a further step.
    found, expected = run(name, "contracted"), run(name, "plain")
    np.testing.assert_array_equal(found.flag, expected.flag)
    for one, other in ((found.flux, expected.flux), (found.fluxerr, expected.fluxerr)):
        np.testing.assert_allclose(one, other, rtol=1e-4)
    for one, other in ((found.x, expected.x), (found.y, expected.y)):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", CASES)
def test_kernels_have_no_races(name):
    run(name, "race", {"order": "random", "seed": 1})


def test_kernels_pass_the_sanitizers():
    calls = [(name, "sanitized") for name in CASES]
    assert_sanitizers_pass(__name__, calls)
