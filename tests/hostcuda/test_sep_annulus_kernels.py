"""The kernels of SEP's annuli, in any order of threads and under every tool."""

from __future__ import annotations

import numpy as np
import pytest

from gpuphot.numpy_backend import primitives as numpy_ops

from ..scenes import positions_of
from ..test_sep_annulus import coarse, means_of, median_of
from ..test_sep_aperture import sep_frame_of, sep_scene
from .proof import SCHEDULES, assert_sanitizers_pass, running

# Radii; clipping of means, or None for medians; whether there are only few pixel values.
CASES = {
    "medians": (4.0, 8.0, None, False),
    "medians of few values": (3.0, 9.0, None, True),
    "medians, streaming": (2.0, 45.0, None, False),
    "means": (4.0, 8.0, (2.0, 5), False),
    "means of few values": (4.0, 8.0, (2.0, 5), True),
    "means, streaming": (2.0, 45.0, (2.0, 3), False),
    "means without clipping": (4.0, 8.0, (3.0, 0), False),
    "means without clipping, streaming": (2.0, 45.0, (3.0, 0), False),
}
ROWS = np.r_[2:6, 20:23, 30:33, 50:53]


def levels(ops, case, n=13):
    r_in, r_out, clip, few = CASES[case]
    scene, err, image, mask = sep_scene(np.random.default_rng(3), 3, shape=(64, 72), n=90)
    frame = sep_frame_of(ops, coarse(image) if few else image, mask, err)
    pos = positions_of(ops, *(np.asarray(scene.table[v])[ROWS[:n]] for v in ("x", "y")))
    radii = np.full(n, r_in), r_out + np.linspace(0, 0.5, n)
    if clip is None:
        return median_of(ops, frame, pos, *radii)
    return np.stack(means_of(ops, frame, pos, *radii, *clip, 1.3))


def run(case, variant, schedule=None, n=13):
    """Levels from the stand-in; what races is an error."""
    with running(variant, schedule) as ops:
        return levels(ops, case, n)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", ["plain", "contracted"])
def test_any_order_of_threads_gives_the_same_bits(case, variant):
    reference = run(case, variant)
    for schedule in SCHEDULES:
        np.testing.assert_array_equal(run(case, variant, schedule), reference)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", ["plain", "contracted"])
def test_kernels_agree_with_numpy(case, variant):
    np.testing.assert_allclose(run(case, variant), levels(numpy_ops, case), rtol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_kernels_have_no_races(case):
    run(case, "race", {"order": "random", "seed": 1}, n=6)


def test_kernels_pass_the_sanitizers():
    calls = [(case, "sanitized", {}, 6) for case in CASES]
    assert_sanitizers_pass(__name__, calls)
