"""The kernel of SEP's aperture sums, in any order of threads and under every tool."""

from __future__ import annotations

import numpy as np
import pytest

from gpuphot.numpy_backend import primitives as numpy_ops

from ..scenes import positions_of
from ..test_sep_aperture import sep_frame_of, sep_scene, sums_of
from .proof import SCHEDULES, assert_sanitizers_pass, running

# Gain and sub-pixels.
CASES = {"sub-pixels": (None, 5), "gain": (1.7, 5), "exact": (1.7, 0), "centres": (None, 1)}
ROWS = np.r_[2:6, 20:23, 30:33, 50:53]
RADII = np.array([3.0, 1e300, 2.0, np.nan, 3.0, 0.0, 8.0, 40.0, 0.7, 5.03, 1.0, 5.5, 3.3])


def sums(ops, case, n=13):
    gain, subpix = CASES[case]
    scene, err, image, mask = sep_scene(np.random.default_rng(3), 3, shape=(64, 72), n=90)
    frame = sep_frame_of(ops, image, mask, err)
    pos = positions_of(ops, *(np.asarray(scene.table[v])[ROWS[:n]] for v in ("x", "y")))
    return np.stack(sums_of(ops, frame, pos, RADII[:n], gain, subpix=subpix))


def run(case, variant, schedule=None, n=13):
    """Sums from the stand-in; what races is an error."""
    with running(variant, schedule) as ops:
        return sums(ops, case, n)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", ["plain", "contracted"])
def test_any_order_of_threads_gives_the_same_bits(case, variant):
    reference = run(case, variant)
    for schedule in SCHEDULES:
        np.testing.assert_array_equal(run(case, variant, schedule), reference)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", ["plain", "contracted"])
def test_kernels_agree_with_numpy(case, variant):
    np.testing.assert_allclose(run(case, variant), sums(numpy_ops, case), rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_kernels_have_no_races(case):
    run(case, "race", {"order": "random", "seed": 1})


def test_kernels_pass_the_sanitizers():
    calls = [(case, "sanitized", {}) for case in CASES]
    assert_sanitizers_pass(__name__, calls)
