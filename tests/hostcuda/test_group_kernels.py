"""The kernels of optimal extraction, in any order of threads and under every tool."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import fields
from unittest import mock

import numpy as np
import pytest

import gpuphot
from gpuphot.models.frame import OptimalSums

from ..psfs import make_psf, model_of
from ..scenes import add_stars, frame_of, positions_of
from .proof import SCHEDULES, assert_sanitizers_pass, running

SHAPE = 36, 44
R = 3.0
# PSF, whether there is a local background, largest group that is not cut into blocks.
CASES = {
    "dense": (2.1, False, 64),
    "dense with a constant": (2.1, True, 64),
    "blocks": (1.4, False, 2),
    "blocks with a constant": ((11, 13, 1.0, 1), True, 2),
}


def sources(n):
    rng = np.random.default_rng(3)
    x, y = rng.uniform(-2, SHAPE[1] + 1, n), rng.uniform(-2, SHAPE[0] + 1, n)
    x[:3], y[:3] = (np.nan, 8.5, 8.5), (5, 9, 9)
    x[3], y[3] = 1e12, 4
    image = rng.normal(0, 3, SHAPE)
    add_stars(image, x[4:], y[4:], rng.uniform(100, 1000, n - 4))
    image[5, 7], image[20, 30] = np.nan, np.inf
    return x, y, image, rng.random(SHAPE) < 0.03


def fit(backend, case, n):
    """Groups, sums of all sources and of groups, and medians of the groups, as host arrays."""
    psf, has_background, _ = CASES[case]
    ops = gpuphot.resolve_backend(backend).primitives
    model = model_of(make_psf(*psf) if isinstance(psf, tuple) else psf)
    x, y, image, mask = sources(n)
    frame, pos = frame_of(ops, image, mask, err=2.0), positions_of(ops, x, y)
    bg = ops.to_device(np.full(n, 0.5 if has_background else 0.0))
    groups = ops.link_groups(pos, R)
    single = ops.optimal_sums(frame, pos, model, R, bg)
    grouped = ops.grouped_optimal_sums(frame, pos, groups, model, R, bg)
    arrays = [groups.id, groups.size, ops.group_median(groups, pos.x)]
    arrays += [getattr(sums, each.name) for sums in (single, grouped) for each in fields(sums)]
    return [ops.to_host(array) for array in arrays]


@contextmanager
def small_blocks(backend, case):
    """Groups are cut into blocks that suit few sources."""
    largest = CASES[case][2]
    with (
        mock.patch.multiple(f"gpuphot.{backend}_backend.blocks", MAX_DENSE=largest, CORE=10),
        mock.patch(f"gpuphot.{backend}_backend.group_fit.CORE", 10),
    ):
        yield


def expected(case):
    with small_blocks("numpy", case):
        return fit("numpy", case, 40)


def run(case, variant, schedule=None, n=40):
    """The same from the stand-in, with a workspace that suits few sources."""
    with (
        running(variant, schedule),
        small_blocks("cupy", case),
        mock.patch("gpuphot.cupy_backend.launch.MAX_WORKSPACE", 30_000),
    ):
        return fit("cupy", case, n)


def assert_close(results, expected):
    names = ["id", "size", "median", *2 * [each.name for each in fields(OptimalSums)]]
    fluxerr = np.nan_to_num(expected[names.index("fluxerr", 9)])
    for name, one, other in zip(names, results, expected, strict=True):
        np.testing.assert_array_equal(np.isnan(one), np.isnan(other), name)
        absolute = 1e-9 * fluxerr if name == "flux" else 0
        one, other = one.astype(float), other.astype(float)
        excess = np.abs(one - other) - 1e-9 * np.abs(other) - absolute
        assert np.nanmax(excess) <= 0, name


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", ["plain", "contracted"])
def test_kernels_agree_with_numpy(case, variant):
    assert_close(run(case, variant), expected(case))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_any_order_of_threads_gives_the_same_bits(case, schedule):
    for one, other in zip(run(case, "plain", schedule), run(case, "plain"), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("case", CASES)
def test_kernels_have_no_races(case):
    run(case, "race", {"order": "random", "seed": 1}, n=20)


def test_kernels_pass_the_sanitizers():
    calls = [(case, "sanitized", {}, 20) for case in CASES]
    assert_sanitizers_pass(__name__, calls)
