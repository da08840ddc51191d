"""Smooth fields: local regression and the grid of medians."""

from __future__ import annotations

import numpy as np
import pytest
from stdpipe.smoothing import fit_vector_field_2d

from gpuphot.models.smooth import GridOptions, LoessOptions
from gpuphot.numpy_backend.smooth import loess_field as numpy_loess

SIZE = 400.0, 300.0


def samples(rng, n):
    """Positions, and a gentle slope with noise and outliers."""
    x, y = rng.uniform(0, SIZE[0], n), rng.uniform(0, SIZE[1], n)
    values = 1 + 0.1 * np.sin(x / 90) + 1e-3 * y + 0.02 * rng.normal(size=n)
    values[rng.random(n) < 0.06] += rng.choice([-2.0, 5.0])
    return x, y, values


def loess(ops, x, y, values, used=None, **options):
    used = np.ones(len(x), bool) if used is None else used
    rows = map(ops.to_device, (x, y, values, used))
    return ops.to_host(ops.loess_field(*rows, LoessOptions(**options)))


def grid(ops, x, y, values, used=None, **options):
    used = np.ones(len(x), bool) if used is None else used
    rows = map(ops.to_device, (x, y, values, used))
    return ops.to_host(ops.grid_field(*rows, GridOptions(**options)))


def default_scales(x, y):
    return (np.ptp(x) or 1.0) / 4, (np.ptp(y) or 1.0) / 4


def loess_of_stdpipe(x, y, values, at=None, scales=None, k=100, **options):
    scales = scales or default_scales(x, y)
    return fit_vector_field_2d(x, y, values, scales=scales, k=k, **options)(*(at or (x, y)))


def loess_by_loops(x, y, values, at=None, scales=None, k=100, robust_iters=2):
    """One position after the other, leaving out exactly the sample itself."""
    order = np.lexsort((values, x, y))
    px, py, v = x[order], y[order], values[order]
    sx, sy = scales or default_scales(x, y)
    robust = np.ones(len(v))

    def predict(qx, qy, left_out=None):
        others = np.arange(len(v)) if left_out is None else np.delete(np.arange(len(v)), left_out)
        d2 = (px[others] / sx - qx / sx) ** 2 + (py[others] / sy - qy / sy) ** 2
        nearest = np.argsort(d2, kind="stable")[:k]
        if not len(nearest):
            return np.nan
        near, d2 = others[nearest], d2[nearest]
        kernel = np.exp(-d2 / np.maximum(d2[-1], 1e-12) / 2)
        w = kernel * robust[near]
        w = w if w.sum() > 0 else kernel
        terms = np.stack([np.ones(len(near)), px[near] - qx, py[near] - qy])
        return np.linalg.solve((terms * w) @ terms.T + 1e-10 * np.eye(3), (terms * w) @ v[near])[0]

    for _ in range(robust_iters):
        residual = v - [predict(px[i], py[i], i) for i in range(len(v))]
        r = residual[np.isfinite(residual)]
        sigma = 1.4826 * np.median(np.abs(r - np.median(r))) + 1e-12 if len(r) else 1.0
        u = residual / (4.685 * sigma)
        robust = np.where(np.isfinite(u), np.where(np.abs(u) < 1, (1 - u**2) ** 2, 0), 1)
    return np.array([predict(*q) for q in zip(*(at or (x, y)), strict=True)])


@pytest.mark.parametrize(
    "options",
    [
        {"k": 20},
        {"k": 16, "robust_iters": 3},
        {"k": 40, "robust_iters": 0},
        {"k": 31, "robust_iters": 1, "scales": (30.0, 110.0)},
        {"k": 25, "robust_c": 2.5, "ridge": 1e-3, "min_bandwidth": 0.5},
    ],
    ids=str,
)
def test_loess_agrees_with_stdpipe(rng, ops, options):
    x, y, values = samples(rng, 250)
    np.testing.assert_allclose(
        loess(ops, x, y, values, **options), loess_of_stdpipe(x, y, values, **options), rtol=1e-9
    )


@pytest.mark.fresh_seed
@pytest.mark.parametrize("scales", [None, (700.0, 200.0)])
@pytest.mark.parametrize("clustered", [False, True])
def test_numpy_loess_of_many_agrees_with_stdpipe(rng, scales, clustered):
    x, y, values = samples(rng, 3000)
    if clustered:
        x[500:2000], y[500:2000] = 100 + 3 * rng.normal(size=(2, 1500))
        x[2000:2500], y[2000:2500] = 7e4 + 1e-2 * rng.normal(size=(2, 500))
    field = numpy_loess(x, y, values, np.ones(len(x), bool), LoessOptions(scales=scales))
    expected = loess_of_stdpipe(x, y, values, scales=scales)
    np.testing.assert_allclose(field, expected, rtol=1e-9)


@pytest.mark.parametrize("n", [12, 30, 70])
@pytest.mark.parametrize("k", [20, 100])
def test_few_samples(rng, ops, n, k):
    x, y, values = samples(rng, n)
    field = loess(ops, x, y, values, k=k)
    np.testing.assert_allclose(field, loess_by_loops(x, y, values, k=k), rtol=1e-9)
    if k >= n:  # stdpipe fails to leave out some of few samples
        values = 1 + 1e-3 * x + 0.02 * rng.normal(size=n)
        field = loess(ops, x, y, values, k=k)
        np.testing.assert_allclose(field, loess_of_stdpipe(x, y, values, k=k), rtol=2e-2)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_hardly_any_samples(rng, ops, n):
    x, y, values = samples(rng, n)
    at = np.append(x, [150.0, np.nan]), np.append(y, [100.0, 3.0])
    used = np.arange(n + 2) < n
    field = loess(ops, *at, np.append(values, [np.nan, 1.0]), used)
    assert np.isnan(field[-1])
    # Only the ridge keeps the fits to one or two others from being singular.
    np.testing.assert_allclose(field[:n], loess_by_loops(x, y, values), rtol=5e-2)
    assert np.isfinite(field[n])


@pytest.mark.parametrize("k", [4, 12, 30])
def test_ties_go_to_the_first_in_canonical_order(rng, ops, k):
    x, y = (v.ravel().astype(float) for v in np.mgrid[:13, :11])
    values = 2 + 0.1 * x + rng.normal(0, 0.2, len(x))
    scales = 4.0, 4.0
    field = loess(ops, x, y, values, k=k, scales=scales)
    expected = loess_by_loops(x, y, values, k=k, scales=scales)
    np.testing.assert_allclose(field, expected, rtol=1e-9)


def test_coincident_samples(rng, ops):
    x, y, values = samples(rng, 120)
    x[20:60], y[20:60] = np.repeat(x[20:26], 7)[:40], np.repeat(y[20:26], 7)[:40]
    values[30:40] = values[30]
    expected = loess_by_loops(x, y, values, k=30)
    np.testing.assert_allclose(loess(ops, x, y, values, k=30), expected, rtol=1e-9)


def test_all_samples_coincident(rng, ops):
    values = 3 + 0.1 * rng.normal(size=40)
    x, y = np.full(40, 30.25), np.full(40, 17.0)
    expected = loess_by_loops(x, y, values, k=15)
    np.testing.assert_allclose(loess(ops, x, y, values, k=15), expected, rtol=1e-9)


@pytest.mark.parametrize("slope", [(1.0, 0.0), (0.0, 1.0), (0.6, 0.8)])
def test_samples_on_a_line(rng, ops, slope):
    along = rng.uniform(0, 300, 120)
    x, y = slope[0] * along + 20, slope[1] * along + 40
    values = 1 + 1e-3 * along + 0.01 * rng.normal(size=120)
    field = loess(ops, x, y, values, k=20)
    # Across the line, only rounding errors and the ridge decide.
    np.testing.assert_allclose(field, loess_by_loops(x, y, values, k=20), rtol=1e-6)


@pytest.mark.fresh_seed
def test_thousands_of_coincident_samples(rng):
    x, y, values = samples(rng, 20_000)
    x[:15_000], y[:15_000] = 33.0, 44.0
    field = numpy_loess(x, y, values, np.ones(len(x), bool), LoessOptions(k=50))
    assert np.isfinite(field).all()
    np.testing.assert_array_equal(field[:15_000], field[0])


def test_unused_rows(rng, ops):
    x, y, values = samples(rng, 220)
    used = np.arange(len(x)) < 150
    x[150:210], y[150:210] = rng.uniform(-200, 600, (2, 60))
    x[150:160], y[150:160] = x[:10], y[:10]
    x[210:215], y[212:217] = (np.nan, np.inf, 5.0, -np.inf, np.nan), (3.0, np.nan, 1, 4, np.inf)
    values[150:220:3] = np.nan
    values[151:220:9] = np.inf
    before = [v.copy() for v in (x, y, values, used)]
    field = loess(ops, x, y, values, used, k=20)
    for old, new in zip(before, (x, y, values, used), strict=True):
        np.testing.assert_array_equal(old, new)
    fitted = x[used], y[used], values[used]
    finite = np.isfinite(x) & np.isfinite(y)
    expected = loess_by_loops(*fitted, at=(x[finite], y[finite]), k=20)
    np.testing.assert_allclose(field[finite], expected, rtol=1e-9)
    assert np.isnan(field[~finite]).all()


def test_no_sample_gives_no_field(rng, ops):
    x, y, values = samples(rng, 9)
    used = np.zeros(9, bool)
    assert np.isnan(loess(ops, x, y, values, used)).all()
    assert np.isnan(grid(ops, x, y, values, used)).all()
    for field in (loess, grid):
        assert field(ops, x[:0], y[:0], values[:0]).shape == (0,)


def test_huge_positions_do_no_harm(rng, ops):
    x, y, values = samples(rng, 100)
    used = np.arange(100) < 90
    x[90:94], y[92:96] = (1e300, -1e300, 1e18, 1e154), (1e308, 1e18, -1e100, 1e160)
    field = loess(ops, x, y, values, used, k=20)
    near = (np.abs(x) < 1e6) & (np.abs(y) < 1e6)
    expected = loess_by_loops(x[:90], y[:90], values[:90], at=(x[near], y[near]), k=20)
    np.testing.assert_allclose(field[near], expected, rtol=1e-9)
    assert np.isfinite(grid(ops, x, y, values, used)[near]).all()


@pytest.mark.parametrize("field", [loess, grid])
def test_permuted_rows_give_the_same_field(rng, ops, field):
    x, y, values = samples(rng, 240)
    x[:90], y[:90] = np.round(x[:90], -1), np.round(y[:90], -1)
    x[90:120], y[90:120] = 100.0, 90.0
    values[100:110] = values[100]
    x[120:125], y[120:125], values[120:125] = x[125:130], y[125:130], values[125:130]
    used = rng.random(240) < 0.8
    values[~used] = np.nan
    options = {"k": 12} if field is loess else {"grid_shape": (5, 4)}
    expected = field(ops, x, y, values, used, **options)
    for _ in range(3):
        order = rng.permutation(240)
        permuted = field(ops, *(v[order] for v in (x, y, values, used)), **options)
        np.testing.assert_array_equal(permuted, expected[order])


@pytest.mark.parametrize("workspace", [1, 30_000])
def test_size_of_chunks_does_not_matter(rng, ops, backend, workspace, monkeypatch):
    x, y, values = samples(rng, 240)
    x[:90], y[:90] = np.round(x[:90], -1), np.round(y[:90], -1)
    expected = loess(ops, x, y, values, k=12)
    bound = {
        "numpy": "gpuphot.numpy_backend.chunks.WORKSPACE",
        "cupy": "gpuphot.cupy_backend.launch.MAX_WORKSPACE",
    }
    monkeypatch.setattr(bound[backend], workspace)
    np.testing.assert_array_equal(loess(ops, x, y, values, k=12), expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_shape": (300, 400)},
        {"image_shape": (200, 500), "grid_shape": (5, 7), "smooth_sigma": 0.0},
        {"grid_shape": (2, 2), "min_per_cell": 1000},
        {"grid_shape": (30, 20), "min_per_cell": 3, "smooth_sigma": 0.7},
    ],
    ids=str,
)
def test_grid_agrees_with_stdpipe(rng, ops, options):
    x, y, values = samples(rng, 400)
    x[:50], y[:50] = np.round(x[:50], -2), np.round(y[:50], -2)
    x[390:], y[390:] = rng.uniform(-200, 700, (2, 10))
    x[388:390] = np.nan, -np.inf
    used = (rng.random(400) < 0.8) & np.isfinite(x) & (np.arange(400) < 390)
    values[~used] = np.nan
    fit = fit_vector_field_2d(x[used], y[used], values[used], backend="grid", **options)
    finite = np.isfinite(x)
    field = grid(ops, x, y, values, used, **options)
    np.testing.assert_allclose(field[finite], fit(x[finite], y[finite]), rtol=1e-12, atol=1e-12)
    assert np.isnan(field[~finite]).all()


@pytest.mark.parametrize("n", [1, 2])
def test_grid_of_few_samples(rng, ops, n):
    x, y, values = samples(rng, n)
    field = grid(ops, x, y, values, image_shape=(300, 400))
    fit = fit_vector_field_2d(x, y, values, backend="grid", image_shape=(300, 400))
    np.testing.assert_allclose(field, fit(x, y), rtol=1e-12)


def test_grid_without_extent_gives_no_field(ops):
    x, y = np.arange(9.0), np.full(9, 5.0)
    assert np.isnan(grid(ops, x, y, x)).all()
    assert np.isnan(grid(ops, y, x, x)).all()


@pytest.mark.parametrize("n", [0, 1, 2, 7, 100])
def test_median_and_deviation(rng, ops, n):
    values, used = rng.normal(0, 1, n + 9), np.arange(n + 9) < n
    values[n:] = np.nan
    order = rng.permutation(n + 9)
    arguments = ops.to_device(values[order]), ops.to_device(used[order])
    median, deviation = (float(v) for v in ops.median_and_deviation(*arguments))
    if n == 0:
        assert np.isnan(median)
        assert np.isnan(deviation)
        return
    assert median == np.median(values[:n])
    assert deviation == np.median(np.abs(values[:n] - median))
