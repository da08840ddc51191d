"""The kernels of SEP's stamps and windowed centroids, in any order of threads, by every tool."""

from __future__ import annotations

import numpy as np
import pytest

from gpuphot.numpy_backend import primitives as numpy_ops

from ..psfs import make_psf, model_of
from ..scenes import add_stars, positions_of
from .proof import SCHEDULES, assert_sanitizers_pass, running

MODELS = {
    "finer than the image": make_psf(41, 38, 0.5, 0),
    "finer, degree 2": make_psf(33, 36, 0.45, 2),
    "as the image": make_psf(17, 18, 1.0, 1),
    "coarser": make_psf(13, 12, 1.3, 2),
    "wider than a block": make_psf(12, 60, 2.3, 1),
    "larger than shared memory": make_psf(104, 101, 0.15, 1),
}
WINDOWS = {"Gaussian": 1.3, "narrow Gaussian": 0.2, "wide Gaussian": 4.0} | MODELS
SHAPE = 64, 72


def places(n):
    """Positions of stars: anywhere, on centres and edges of pixels, off the image, missing."""
    rng = np.random.default_rng(5)
    x, y = rng.uniform(2, SHAPE[1] - 3, 16), rng.uniform(2, SHAPE[0] - 3, 16)
    x[:2], y[:2], x[2:4], y[2:4] = 30, 12, 41.5, 33.5
    x[4:9], y[4:9] = (-0.7, np.nan, 1e300, 70.8, -1e10), (20, 5, 7, 63.2, 3)
    return x[:n], y[:n]


def stamps(ops, name, n=16):
    x, y = (ops.to_device(values) for values in places(n))
    return ops.to_host(ops.sep_psf_stamps(model_of(MODELS[name]), x, y))


def centroids(ops, name, n=16):
    """Positions and flags, with every kind of bad pixel in the image."""
    rng = np.random.default_rng(6)
    image, (x, y) = rng.normal(0, 1, SHAPE), places(16)
    seen = np.abs(x) < 100
    add_stars(image, x[seen], y[seen], np.full(seen.sum(), 1e4))
    mask = rng.random(SHAPE) < 0.02
    mask[28:40, 36:48] = True
    background = np.zeros(SHAPE)
    background[50:53, 20] = np.nan, np.inf, -np.inf
    frame = ops.sep_frame(*map(ops.to_device, (image, mask, background, np.ones(SHAPE))))
    pos = positions_of(ops, x[:n] + 0.25, y[:n] - 0.25)
    window = WINDOWS[name]
    if isinstance(window, float):
        result = ops.sep_winpos(frame, pos, window, 0.6)
    else:
        result = ops.sep_psf_winpos(frame, pos, model_of(window), 0.6)
    return np.stack([ops.to_host(values) for values in result])


MADE = {("stamps", name): stamps for name in MODELS}
MADE |= {("centroids", name): centroids for name in WINDOWS}
CASES = pytest.mark.parametrize(("what", "name"), MADE, ids=[": ".join(case) for case in MADE])


def run(what, name, variant, schedule=None, n=16):
    """Stamps or centroids from the stand-in; what races is an error."""
    with running(variant, schedule) as ops:
        return MADE[what, name](ops, name, n)


@CASES
@pytest.mark.parametrize("variant", ["plain", "contracted"])
def test_any_order_of_threads_gives_the_same_bits(what, name, variant):
    reference = run(what, name, variant)
    for schedule in SCHEDULES:
        np.testing.assert_array_equal(run(what, name, variant, schedule), reference)


@CASES
@pytest.mark.parametrize("variant", ["plain", "contracted"])
def test_kernels_agree_with_numpy(what, name, variant):
    """Contracted, single precision rounds otherwise, which also moves the border of a stamp."""
    pytest.importorskip("sep_x")
    expected = MADE[what, name](numpy_ops, name)
    tolerance = 1e-9 if variant == "plain" else 2e-5
    np.testing.assert_allclose(run(what, name, variant), expected, rtol=1e-15, atol=tolerance)


@CASES
def test_kernels_have_no_races(what, name):
    run(what, name, "race", {"order": "random", "seed": 1}, n=10)


def test_kernels_pass_the_sanitizers():
    calls = [(*case, "sanitized", {}, 12) for case in MADE]
    assert_sanitizers_pass(__name__, calls)
