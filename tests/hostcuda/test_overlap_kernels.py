"""The kernel of overlaps, in any order of threads and under every tool."""

from __future__ import annotations

import numpy as np
import pytest

from gpuphot.models.overlap import MAX_NEAR
from gpuphot.numpy_backend import primitives

from ..psfs import make_psf, model_of
from ..test_overlap import make_stars, overlaps_of
from .proof import SCHEDULES, assert_sanitizers_pass, running

# Radius, sub-pixels, whether neighbours count, and the bound of the workspace.
CASES = {
    "usual": (3.0, 4, True, None),
    "pixel centres": (3.0, 1, True, None),
    "star by star": (3.0, 4, True, 1),
    "alone": (3.0, 4, False, None),
    "small": (0.4, 5, True, None),
    "not tabulated": (20.0, 2, True, 20_000),
    "huge": (1e300, 2, True, None),
}
MODEL = model_of(make_psf(15, 17, 0.9, 1))


def stars_and_targets():
    rng = np.random.default_rng(1)
    stars = make_stars(rng, 50)
    stars[0][30:34] = MAX_NEAR - 1, MAX_NEAR, 2.0**31, -1e19
    return stars, rng.integers(0, len(stars[0]), 60)


def run(case, variant, schedule=None):
    """Enclosed shares, light and variances, from the stand-in; what races is an error."""
    r, subpix, neighbours, workspace = CASES[case]
    with running(variant, schedule) as ops, pytest.MonkeyPatch.context() as patch:
        if workspace:
            patch.setattr("gpuphot.cupy_backend.launch.MAX_WORKSPACE", workspace)
        return overlaps_of(ops, MODEL, *stars_and_targets(), r, subpix, neighbours)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", ["plain", "contracted"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_any_order_of_threads_gives_the_same_bits(case, variant, schedule):
    np.testing.assert_array_equal(run(case, variant, schedule), run(case, variant))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", ["plain", "contracted"])
def test_kernel_agrees_with_numpy(case, variant):
    r, subpix, neighbours, _ = CASES[case]
    expected = overlaps_of(primitives, MODEL, *stars_and_targets(), r, subpix, neighbours)
    for ours, theirs in zip(run(case, variant), expected, strict=True):
        atol = 1e-13 * np.nanmax(theirs)
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=atol)


@pytest.mark.parametrize("case", CASES)
def test_kernel_has_no_races(case):
    run(case, "race", {"order": "random", "seed": 1})


def test_kernel_passes_the_sanitizers():
    assert_sanitizers_pass(__name__, [(case, "sanitized") for case in CASES])
