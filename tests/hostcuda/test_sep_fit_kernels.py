"""The kernel of PSF fits with SEP's conventions, in any order of threads and under every tool."""

from __future__ import annotations

import numpy as np
import pytest

from gpuphot.numpy_backend import primitives as numpy_ops

from ..psfs import make_psf, model_of
from ..scenes import positions_of
from .proof import SCHEDULES, assert_sanitizers_pass, running

pytest.importorskip("sep_x")

from ..test_sep_fit import Field, assert_same_fits, on_host, options_of

CASES = {
    "box sums": (make_psf(26, 30, 0.5, 0), {"gain": 2.0}),
    "interpolated, damped": (make_psf(13, 11, 1.0, 1), {"damp_snthresh": 40.0}),
    "degree 2, within a radius": (make_psf(28, 27, 0.45, 2), {"fit_radius": 3.0}),
    "in a workspace": (make_psf(95, 90, 0.3, 1), {"maxiter": 3}),
    "fluxes only": (make_psf(26, 30, 0.5, 1), {"fit_positions": False, "gain": 0.7}),
}
SHAPE = 64, 72
N_SOURCES = 12


def fits(ops, name):
    """Fits of bright and faint stars; of two of them, only one and two pixels are usable."""
    psf, case = CASES[name]
    gain, options = options_of(case)
    field = Field(np.random.default_rng(7), psf, 60, SHAPE)
    inside = (np.abs(field.x - 36) < 34) & (np.abs(field.y - 32) < 30)
    rows = np.flatnonzero(inside)[-N_SOURCES:]
    field.x, field.y = field.x[rows], field.y[rows]
    field.x[:2], field.y[:2] = [14.2, 15.0], [13.7, 15.0]
    field.mask[:28, :30] = True
    field.mask[14, 14] = field.mask[16, 16] = False
    field.x[2], field.x[3], field.y[3] = np.nan, 1e300, -1e10
    pos = positions_of(ops, field.x, field.y)
    return on_host(ops, ops.sep_psf_fit(field.frame(ops), pos, model_of(psf), gain, options))


def run(name, variant, schedule=None):
    """Fits from the stand-in; what races is an error."""
    with running(variant, schedule) as ops:
        return fits(ops, name)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("variant", ["plain", "contracted"])
def test_any_order_of_threads_gives_the_same_bits(name, variant):
    reference = vars(run(name, variant))
    for schedule in SCHEDULES:
        for field, values in vars(run(name, variant, schedule)).items():
            np.testing.assert_array_equal(values, reference[field], err_msg=field)


@pytest.mark.parametrize("name", CASES)
def test_kernel_agrees_with_numpy(name):
    assert_same_fits(run(name, "plain"), fits(numpy_ops, name), n_unlike=1)


@pytest.mark.parametrize("name", CASES)
def test_contraction_rounds_stamps_of_single_precision(name):
    found, expected = run(name, "contracted"), fits(numpy_ops, name)
    # Of singular fits, rounding decides what they find.
    assert_same_fits(found, expected, n_unlike=3, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_kernel_has_no_races(name):
    run(name, "race", {"order": "random", "seed": 1})


def test_kernel_passes_the_sanitizers():
    calls = [(name, "sanitized", {}) for name in CASES]
    assert_sanitizers_pass(__name__, calls)
