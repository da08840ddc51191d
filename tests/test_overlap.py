"""Light of the models of stars in each other's apertures."""

from __future__ import annotations

import numpy as np
import pytest
from stdpipe.photometry_measure import _aperture_overlap_at_offset
from stdpipe.psf import enclosed_psf_fraction, get_psf_stamp

from gpuphot.measure.inputs import make_positions
from gpuphot.models.overlap import MAX_NEAR
from gpuphot.numpy_backend.stamps import psf_stamps as numpy_stamps

from .psfs import awkward_positions, load_psf, model_of

pytestmark = pytest.mark.fresh_seed

MODELS = ["constant", "degree 2, sampled 0.5", "wide", 3.3]
SHAPE = 60, 80
N = 70


def psf_of(name):
    return load_psf(name) if isinstance(name, str) else name


@pytest.fixture(params=MODELS)
def model(request):
    return model_of(psf_of(request.param))


def make_stars(rng, n=N):
    """Positions, fluxes and their errors of close stars, everything that can go wrong among them.

    None lies where rounding decides whether a sub-pixel is in a circle.
    """
    x, y = awkward_positions(rng, n, SHAPE[0] + 40, SHAPE[1] + 40)
    x, y = (np.round((v - 20) * 64) / 64 + 1e-3 * rng.uniform(0.1, 1, len(v)) for v in (x, y))
    flux, fluxerr = rng.uniform(1, 100, len(x)), rng.uniform(0.1, 3, len(x))
    x[:5] = np.nan, 20, -np.inf, 1e300, 3e15
    y[:5] = 20, np.nan, 20, 20, -1e300
    flux[5:10] = 0, np.nan, np.inf, -np.inf, -4
    fluxerr[10:13] = np.nan, np.inf, 0
    x[13:17], y[13:17] = 40.2501, 30.5003  # twins, two of them with equal light
    flux[13:15], fluxerr[13:15] = 7.0, 2.0
    x[17:21], y[17:21] = x[21:25], y[21:25]
    return x, y, flux, fluxerr


def overlaps_of(ops, model, stars, target, r, subpix=4, neighbours=True):
    """Enclosed share, light and variance of the targets, on the host."""
    x, y, flux, fluxerr = map(ops.to_device, stars)
    pos = make_positions(x, y, ops.xp.isfinite(x) & ops.xp.isfinite(y), ops.xp)
    target = ops.to_device(np.asarray(target, np.intp))
    result = ops.aperture_overlaps(model, pos, target, r, subpix, flux, fluxerr, neighbours)
    return tuple(ops.to_host(v) for v in (result.enclosed, result.light, result.variance))


@np.errstate(over="ignore", invalid="ignore")
def share_of(model, star, centre, r, subpix):
    """Light of a star of flux 1 in a circle; two positions."""
    (stamp,) = numpy_stamps(model, *(np.array([v]) for v in star))
    n_rows, n_columns = stamp.shape
    (x, y), (centre_x, centre_y) = star, centre
    sub = (np.arange(subpix) + 0.5) / subpix - 0.5
    row = np.arange(n_rows) - n_rows // 2 + (np.rint(y) - np.rint(centre_y))
    column = np.arange(n_columns) - n_columns // 2 + (np.rint(x) - np.rint(centre_x))
    dy = (row[:, None] + sub) - (centre_y - np.rint(centre_y))
    dx = (column[:, None] + sub) - (centre_x - np.rint(centre_x))
    inside = dy[:, :, None, None] ** 2 + dx[None, None] ** 2 <= r**2
    return np.sum(stamp * inside.mean(axis=(1, 3)))


def overlaps_by_a_loop(model, stars, target, r, subpix=4, neighbours=True):
    x, y, flux, fluxerr = stars
    placed = np.isfinite(x) & np.isfinite(y) & np.isfinite(flux) & (flux > 0)
    reach = model.width * model.sampling / 2 + r
    results = []
    for i in target:
        if not np.isfinite(x[i] + y[i]):
            results.append((np.nan, np.nan, np.nan))
            continue
        enclosed, light, variance = np.nan, 0.0, 0.0
        for j in np.flatnonzero(placed):
            near = abs(x[j] - x[i]) <= reach and abs(y[j] - y[i]) <= reach
            if (
                (j != i and not neighbours)
                or not near
                or np.hypot(x[j] - x[i], y[j] - y[i]) > reach
            ):
                continue
            share = share_of(model, (x[j], y[j]), (x[i], y[i]), r, subpix)
            light += flux[j] * share
            if j == i:
                enclosed = share
            elif np.isfinite(fluxerr[j]):
                variance += (fluxerr[j] * share) ** 2
        results.append((enclosed, light, variance))
    return tuple(np.array(results).reshape(-1, 3).T)


def assert_close(result, expected, rtol=1e-12):
    for ours, theirs in zip(result, expected, strict=True):
        scale = np.nanmax(np.abs(theirs), initial=0)
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=1e-13 * scale)


@pytest.mark.parametrize(("r", "subpix"), [(0.4, 4), (3.0, 1), (3.0, 4), (3.0, 5), (5.3, 2)])
def test_overlaps_are_those_of_a_loop_over_pairs(rng, ops, model, r, subpix):
    stars = make_stars(rng)
    target = np.arange(len(stars[0]))
    result = overlaps_of(ops, model, stars, target, r, subpix)
    assert_close(result, overlaps_by_a_loop(model, stars, target, r, subpix))


@pytest.mark.parametrize("r", [17.0, 40.0])
def test_circles_larger_than_a_stamp(rng, ops, model, r):
    stars = make_stars(rng, 50)
    target = np.arange(0, len(stars[0]), 2)
    result = overlaps_of(ops, model, stars, target, r)
    assert_close(result, overlaps_by_a_loop(model, stars, target, r))


@pytest.mark.parametrize("r", [1e5, 1e12, 1e200])
def test_huge_circles_hold_all_light(rng, ops, model, r):
    x, y = rng.uniform(0, 50, (2, 20))
    flux = rng.uniform(1, 9, 20)
    enclosed, light, variance = overlaps_of(ops, model, (x, y, flux, flux), np.arange(20), r)
    np.testing.assert_allclose(enclosed, 1, rtol=1e-12)
    np.testing.assert_allclose(light, flux.sum(), rtol=1e-12)
    np.testing.assert_allclose(variance, np.sum(flux**2) - flux**2, rtol=1e-12)


def test_rim_of_a_circle_belongs_to_it(ops):
    """Distances that are exact: sub-pixels at 3, 4 and 5 from integer positions."""
    model = model_of(3.3)
    stars = (*np.array([[20.0, 25.0], [30.0, 30.0]]), np.ones(2), np.ones(2))
    result = overlaps_of(ops, model, stars, [0, 1], 5.0, 1)
    assert_close(result, overlaps_by_a_loop(model, stars, [0, 1], 5.0, 1))
    smaller = overlaps_of(ops, model, stars, [0, 1], np.nextafter(5, 0), 1)
    assert (smaller[0] < result[0]).all()


@pytest.mark.parametrize("r", [3.0, 7.0, 30.0])
def test_reach_is_inclusive(ops, r):
    model = model_of(3.3)
    reach = model.width * model.sampling / 2 + r
    for apart, near in [(reach, True), (np.nextafter(reach, 99), False)]:
        stars = np.array([12.5 - apart, 12.5]), np.zeros(2), np.ones(2), np.ones(2)
        result = overlaps_of(ops, model, stars, [0, 1], r)
        assert_close(result, overlaps_by_a_loop(model, stars, [0, 1], r))
        assert (result[2][0] > 0) == near


@pytest.mark.parametrize("target", [[], [7, 7, 30, 0, 7, 3, 15, 13, 60, 1], np.arange(50, 20, -1)])
@pytest.mark.parametrize("neighbours", [True, False])
def test_targets_are_rows_in_any_order(rng, ops, model, target, neighbours):
    stars = make_stars(rng)
    result = overlaps_of(ops, model, stars, target, 3.0, neighbours=neighbours)
    assert_close(result, overlaps_by_a_loop(model, stars, target, 3.0, neighbours=neighbours))
    everyone = overlaps_of(ops, model, stars, np.arange(len(stars[0])), 3.0, neighbours=neighbours)
    for some, everything in zip(result, everyone, strict=True):
        np.testing.assert_array_equal(some, everything[np.asarray(target, np.intp)])


def test_without_neighbours_only_its_own_light_counts(rng, ops, model):
    stars = make_stars(rng)
    target = np.arange(len(stars[0]))
    enclosed, light, variance = overlaps_of(ops, model, stars, target, 3.0, neighbours=False)
    with_them = overlaps_of(ops, model, stars, target, 3.0)
    np.testing.assert_array_equal(enclosed, with_them[0])
    finite = np.isfinite(stars[0]) & np.isfinite(stars[1])
    placed = finite & np.isfinite(stars[2]) & (stars[2] > 0)
    np.testing.assert_array_equal(light[placed], (stars[2] * enclosed)[placed])
    assert np.isnan(enclosed[~placed]).all()
    assert (light[finite & ~placed] == 0).all()
    assert (variance[finite] == 0).all()
    assert np.isnan(light[~finite]).all()
    assert np.isnan(variance[~finite]).all()


def test_no_stars(ops, model):
    assert [len(v) for v in overlaps_of(ops, model, np.empty((4, 0)), [], 3.0)] == [0, 0, 0]
    nowhere = np.full((4, 3), np.nan)
    for values in overlaps_of(ops, model, nowhere, [0, 2], 3.0):
        assert np.isnan(values).all()
    dark = np.ones(3), np.ones(3), np.zeros(3), np.ones(3)
    enclosed, light, variance = overlaps_of(ops, model, dark, [0, 2], 3.0)
    assert np.isnan(enclosed).all()
    assert not light.any()
    assert not variance.any()


@pytest.mark.parametrize("far", [MAX_NEAR - 1, MAX_NEAR, 1e9 + 0.25, 1e18, 1e300])
def test_stars_far_away(ops, far):
    """They keep their own light, whatever is beside them."""
    model = model_of(3.3)
    x, y = np.array([far, far, 10.25, -far]), np.array([5.0, 5.0, 5.0, far])
    flux = np.array([1.0, 2.0, 3.0, 4.0])
    enclosed, light, variance = overlaps_of(ops, model, (x, y, flux, flux), np.arange(4), 3.0)
    expected = [share_of(model, at, at, 3.0, 4) for at in zip(x, y, strict=True)]
    np.testing.assert_allclose(enclosed, expected, rtol=1e-12)
    near = far < MAX_NEAR
    np.testing.assert_allclose(light[:2], enclosed[0] * (3 if near else flux[:2]), rtol=1e-12)
    np.testing.assert_allclose(light[2:], flux[2:] * enclosed[2:], rtol=1e-12)
    assert (variance > 0).tolist() == [near, near, False, False]


def test_permuted_rows_and_targets_give_the_same_bits(rng, ops, model):
    stars = make_stars(rng)
    target = rng.integers(0, len(stars[0]), 150)
    result = overlaps_of(ops, model, stars, target, 3.0)
    order, mixed = rng.permutation(len(stars[0])), rng.permutation(len(target))
    place = np.argsort(order)
    permuted = overlaps_of(ops, model, [v[order] for v in stars], place[target[mixed]], 3.0)
    for ours, theirs in zip(permuted, result, strict=True):
        np.testing.assert_array_equal(ours, theirs[mixed])


@pytest.mark.parametrize("workspace", [1, 30_000])
@pytest.mark.parametrize("r", [3.0, 20.0])
def test_size_of_chunks_does_not_matter(rng, ops, backend, model, r, workspace, monkeypatch):
    stars = make_stars(rng, 60)
    target = rng.integers(0, len(stars[0]), 50)
    result = overlaps_of(ops, model, stars, target, r)
    bound = {
        "numpy": "gpuphot.numpy_backend.chunks.WORKSPACE",
        "cupy": "gpuphot.cupy_backend.launch.MAX_WORKSPACE",
    }
    monkeypatch.setattr(bound[backend], workspace)
    for ours, theirs in zip(overlaps_of(ops, model, stars, target, r), result, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_crowd_has_more_neighbours_than_a_warp_takes_at_once(rng, ops):
    model = model_of(1.1)
    x, y = rng.uniform(0, 30, (2, 1500))
    flux = rng.uniform(1, 9, len(x))
    stars, target = (x, y, flux, flux), np.arange(0, len(x), 100)
    assert_close(
        overlaps_of(ops, model, stars, target, 2.0),
        overlaps_by_a_loop(model, stars, target, 2.0),
    )


def test_neighbours_are_found_across_the_image(rng, ops):
    model = model_of(1.1)
    x, y = rng.uniform(-500, 500, (2, 3000))
    flux = rng.uniform(1, 9, len(x))
    stars, target = (x, y, flux, flux), np.arange(0, len(x), 30)
    assert_close(
        overlaps_of(ops, model, stars, target, 9.0),
        overlaps_by_a_loop(model, stars, target, 9.0),
    )


@pytest.mark.parametrize("precision", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["constant", "degree 2, sampled 0.5", "wide"])
@pytest.mark.parametrize("subpix", [1, 4])
def test_stdpipe_agrees(rng, ops, name, precision, subpix):
    """Shares of own stamps and of neighbours' ones."""
    psf = psf_of(name)
    psf = psf | {"data": psf["data"].astype(precision)}
    model = model_of(psf)
    tolerance = 1e-7 if precision is np.float32 else 1e-12
    x, y = rng.uniform(0, 40, (2, 12))
    y[6:], x[6:] = y[:6] + rng.uniform(-4, 4, 6), x[:6] + rng.uniform(-4, 4, 6)
    target = np.arange(12)
    for j in range(6):
        flux = np.zeros(12)
        flux[j] = 1.0
        enclosed, light, _ = overlaps_of(ops, model, (x, y, flux, flux), target, 3.0, subpix)
        expected = enclosed_psf_fraction(psf, float(x[j]), float(y[j]), 3.0, subpix)
        np.testing.assert_allclose(enclosed[j], expected, rtol=0, atol=tolerance)
        stamp = get_psf_stamp(psf, float(x[j]), float(y[j]), normalize=True)
        i = j + 6
        expected = _aperture_overlap_at_offset(stamp, x[j], y[j], x[i], y[i], 3.0, subpix)
        np.testing.assert_allclose(light[i], expected, rtol=0, atol=tolerance)
