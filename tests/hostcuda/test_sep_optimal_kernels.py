"""The kernels of SEP's optimal sums, in any order of threads and under every tool."""

from __future__ import annotations

from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest

import gpuphot

from ..scenes import add_stars, positions_of
from .proof import SCHEDULES, assert_sanitizers_pass, running

SHAPE = 64, 72
# Reach of a source in radii, largest group that is not cut into blocks, lines that are tabulated.
CASES = {
    "small groups": (0.8, 64, 128),
    "blocks": (2.5, 2, 128),
    "without tables": (1.2, 64, 5),
}


def sources(n):
    """Positions, radii and widths, some of them impossible, on a noisy image with a mask."""
    rng = np.random.default_rng(5)
    x, y = rng.uniform(-3, SHAPE[1] + 2, n), rng.uniform(-3, SHAPE[0] + 2, n)
    fwhm = rng.uniform(1.8, 4, n)
    r = rng.uniform(0.8, 1.5, n) * fwhm
    image = rng.normal(2, 3, SHAPE)
    add_stars(image, x, y, rng.uniform(100, 1000, n))
    x[:4], y[:4] = (np.nan, 8.5, 8.5, 1e19), (5, 9, 9, 4)
    r[4:7], fwhm[7:9] = (1e12, np.inf, np.nan), (np.nan, 0)
    x[9], y[9] = 30, 20
    image[5, 7] = np.nan
    err = rng.uniform(2, 4, SHAPE)
    err[40, 30:34] = 0, np.nan, np.inf, -3
    return x, y, r, fwhm, image, err, rng.random(SHAPE) < 0.03


def measure(backend, case, n):
    """Groups, and sums of single sources and of groups, as host arrays."""
    factor, _, _ = CASES[case]
    ops = gpuphot.resolve_backend(backend).primitives
    x, y, r, fwhm, image, err, mask = sources(n)
    frame = ops.sep_frame(*map(ops.to_device, (image, mask)), 0.0, ops.to_device(err))
    pos, r, fwhm = positions_of(ops, x, y), ops.to_device(r), ops.to_device(fwhm)
    groups = ops.link_groups(pos, factor * r)
    single = ops.sep_optimal_sums(frame, pos, r, fwhm, 2.0)
    grouped = ops.sep_grouped_optimal_sums(frame, pos, groups, r, fwhm, 2.0, radius_factor=factor)
    arrays = [groups.id, groups.size, *vars(single).values(), *vars(grouped).values()]
    return [ops.to_host(values) for values in arrays]


@contextmanager
def small_blocks(backend, case):
    """Groups are cut into blocks that suit few sources."""
    name = f"gpuphot.{backend}_backend"
    with (
        mock.patch.multiple(f"{name}.blocks", MAX_DENSE=CASES[case][1], CORE=20),
        mock.patch(f"{name}.sep_group_optimal.MAX_EXACT_GROUP", 1 if CASES[case][1] == 2 else 32),
    ):
        yield


def expected(case):
    with small_blocks("numpy", case):
        return measure("numpy", case, 60)


def run(case, variant, schedule=None, n=60):
    """The same from the stand-in, with a workspace that suits few sources."""
    with (
        running(variant, schedule),
        small_blocks("cupy", case),
        mock.patch("gpuphot.cupy_backend.launch.MAX_WORKSPACE", 30_000),
        mock.patch("gpuphot.cupy_backend.sep_optimal._MAX_LINES", CASES[case][2]),
    ):
        return measure("cupy", case, n)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", ["plain", "contracted"])
def test_kernels_agree_with_numpy(case, variant):
    """Fluxes as far as their errors go, all else to the last few bits."""
    results = run(case, variant)
    others = expected(case)
    for k, (one, other) in enumerate(zip(results, others, strict=True)):
        if k in (2, 5):
            np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
            assert np.nanmax(np.abs(one - other) / np.maximum(others[k + 1], 1)) < 1e-9
        else:
            np.testing.assert_allclose(one, other, rtol=1e-9)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_any_order_of_threads_gives_the_same_bits(case, schedule):
    for one, other in zip(run(case, "plain", schedule), run(case, "plain"), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("case", CASES)
def test_kernels_have_no_races(case):
    run(case, "race", {"order": "random", "seed": 1}, n=30)


def test_kernels_pass_the_sanitizers():
    calls = [(case, "sanitized", {}, 30) for case in CASES]
    assert_sanitizers_pass(__name__, calls)
