"""The kernels of centroids weighted with a PSF, in any order of threads and under every tool."""

from __future__ import annotations

import numpy as np
import pytest

from gpuphot.numpy_backend import primitives as numpy_ops

from ..psfs import make_psf, model_of
from ..scenes import frame_of, make_scene, positions_of
from ..test_stamps import gridded_model
from .proof import SCHEDULES, assert_sanitizers_pass, running

MODELS = {
    "block sums": make_psf(24, 20, 0.5, 2),
    "interpolated": make_psf(15, 17, 0.9, 1),
    "in tiles": make_psf(101, 90, 0.2, 0),
    "gridded": gridded_model(24, 2),
    "Gaussian": 2.1,
    "narrow Gaussian in a large box": 0.7,
}
HALF_SIZE, N_ITER = 4, 2
# Of the scene; none of them hunts after noise, which would magnify rounding.
ROWS = np.r_[0:4, 10:16, 30:36, 50:56, 70:88]


def centroids(ops, name, n=40):
    scene = make_scene(3, sky=100.0, shape=(64, 72), n=90)
    frame = frame_of(ops, scene.image, scene.mask, bg=np.nanmedian(scene.image))
    pos = positions_of(ops, *(np.asarray(scene.table[v])[ROWS[:n]] for v in ("x", "y")))
    moved = ops.psf_centroid(frame, pos, model_of(MODELS[name]), HALF_SIZE, N_ITER)
    return np.stack([ops.to_host(v) for v in moved])


def run(name, variant, schedule=None, n=40):
    """Centroids from the stand-in; what races is an error."""
    with running(variant, schedule) as ops:
        return centroids(ops, name, n)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("variant", ["plain", "contracted"])
def test_any_order_of_threads_gives_the_same_bits(name, variant):
    reference = run(name, variant)
    for schedule in SCHEDULES:
        np.testing.assert_array_equal(run(name, variant, schedule), reference)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("variant", ["plain", "contracted"])
def test_kernels_agree_with_numpy(name, variant):
    expected = centroids(numpy_ops, name)
    np.testing.assert_allclose(run(name, variant), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_kernels_have_no_races(name):
    run(name, "race", {"order": "random", "seed": 1}, n=14)


def test_kernels_pass_the_sanitizers():
    calls = [(name, "sanitized", {}, 14) for name in MODELS]
    assert_sanitizers_pass(__name__, calls)
