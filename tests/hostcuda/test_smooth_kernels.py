"""The kernels of local regression, in any order of threads and under every tool."""

from __future__ import annotations

import numpy as np
import pytest

from gpuphot.models.smooth import LoessOptions
from gpuphot.numpy_backend.smooth import loess_field

from .proof import SCHEDULES, assert_sanitizers_pass, running

OPTIONS = LoessOptions(k=20)


def scattered(n):
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, 200, n), rng.uniform(0, 150, n)
    values = 1 + x / 300 + 0.1 * np.sin(y / 20) + rng.normal(0, 0.02, n)
    values[::17] += 1
    return x, y, values, rng.random(n) < 0.8, OPTIONS


def many_neighbours(n):
    return *scattered(n)[:4], LoessOptions(k=70)


def few_samples(n):
    x, y, values, _, _ = scattered(n)
    return x, y, values, np.arange(n) % (n // 7) == 3, OPTIONS


def one_sample(n):
    x, y, values, _, _ = scattered(n)
    return x, y, values, np.arange(n) == 3, OPTIONS


def tied(n):
    x, y, values, used, _ = scattered(n)
    return 10 * np.rint(x / 10), 10 * np.rint(y / 10), values, used, OPTIONS


def coincident(n):
    n //= 3
    _, _, values, used, _ = scattered(n)
    return np.full(n, 20.1), np.full(n, 30.7), values, used, OPTIONS


def clump(n):
    """Of samples at one position, most of the nearest ones of what is around."""
    x, y, values, used, _ = scattered(n)
    x[:15], y[:15] = 33.3, 44.4
    return x, y, values, used, OPTIONS


def far_sample(n):
    x, y, values, used, _ = scattered(n)
    x[3], used[3] = 1e7, True
    return x, y, values, used, OPTIONS


def in_pixels(n):
    """Scales of their own, and a distance that the bandwidth is not let below."""
    x, y, values, used, _ = scattered(n)
    x[3], y[4] = 1e7, -1e7
    used[3:5] = False
    options = LoessOptions(scales=(1.0, 2.0), k=15, min_bandwidth=20.0, robust_iters=3)
    return x, y, values, used, options


def awkward(n):
    """Positions that are not finite or huge, also of a sample, which no other is fitted to."""
    x, y, values, used, _ = scattered(n)
    x[:4], y[4:7] = (np.nan, np.inf, 1e200, 1e308), (np.nan, -np.inf, -1e308)
    used[:7] = False
    x[8], used[8] = 1e200, True
    return x, y, values, used, LoessOptions(scales=(50.0, 40.0), k=20, robust_iters=0)


CASES = {
    case.__name__: case
    for case in (
        scattered, many_neighbours, few_samples, one_sample, tied, coincident, clump, far_sample,
        in_pixels, awkward,
    )
}  # fmt: skip


def run(name, variant, schedule=None, n=300):
    """The field of a case, from the stand-in; what races is an error."""
    *arrays, options = CASES[name](n)
    with running(variant, schedule) as ops:
        return ops.to_host(ops.loess_field(*map(ops.to_device, arrays), options))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("variant", ["plain", "contracted"])
def test_any_order_of_threads_gives_the_same_bits(name, variant):
    reference = run(name, variant, {"order": "forward"})
    for schedule in SCHEDULES:
        np.testing.assert_array_equal(run(name, variant, schedule), reference)


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"one_sample"}))
@pytest.mark.parametrize("variant", ["plain", "contracted"])
def test_kernels_agree_with_numpy(name, variant):
    """But for lines that end far from their samples, where rounding errors have grown."""
    *arrays, options = CASES[name](300)
    field, expected = run(name, variant), loess_field(*arrays, options)
    near = ~((np.abs(arrays[0]) > 1e3) | (np.abs(arrays[1]) > 1e3)) | ~np.isfinite(expected)
    np.testing.assert_allclose(field[near], expected[near], rtol=1e-9)


@pytest.mark.parametrize("variant", ["plain", "contracted"])
def test_ridge_decides_on_the_slopes_of_one_sample(variant):
    x, y, values, used, _ = one_sample(300)
    offset = np.hypot(x - x[used], y - y[used])
    np.testing.assert_allclose(
        run("one_sample", variant), values[used] / (1 + offset**2), rtol=1e-9
    )


@pytest.mark.parametrize("name", CASES)
def test_kernels_have_no_races(name):
    run(name, "race", {"order": "random", "seed": 1}, n=60)


def test_kernels_pass_the_sanitizers():
    assert_sanitizers_pass(__name__, [(name, "sanitized", {}, 60) for name in CASES])
