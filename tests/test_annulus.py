"""Local backgrounds."""

from __future__ import annotations

import numpy as np
import pytest

from .scenes import frame_of, positions_of
from .test_clipping import clip


def test_mode_of_the_pixels_between_the_radii(ops, scene):
    x, y = np.asarray(scene.table["x"]), np.asarray(scene.table["y"])
    frame = frame_of(ops, scene.image, scene.mask)
    level = ops.to_host(ops.annulus_mode(frame, positions_of(ops, x, y), 6.0, 11.5))
    good = np.isfinite(scene.image) & ~scene.mask
    rows, columns = np.mgrid[: scene.image.shape[0], : scene.image.shape[1]]
    for k in range(len(x)):
        with np.errstate(invalid="ignore"):
            d2 = (columns - x[k]) ** 2 + (rows - y[k]) ** 2
            sample = scene.image[good & (d2 >= 36) & (d2 < 11.5**2)]
        if not len(sample):
            assert np.isnan(level[k])
            continue
        median, mean, std, _ = clip(sample, from_original=False)
        # 1e-12 of the sample's standard deviation, and the rounding of the reference's own mean.
        assert abs(level[k] - (3 * median - 2 * mean)) <= 1e-12 * std + 1e-14 * abs(mean)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("sky", [0.0, 1e6])
def test_polynomial_surfaces_are_recovered(rng, ops, order, sky):
    rows, columns = np.mgrid[:200, :260].astype(float)

    def surface(x, y):
        u, v = x / 100, y / 100
        value = sky + 40 + 12 * u - 25 * v
        return value if order == 1 else value + 3 * u * u - 8 * u * v + 5 * v * v

    x, y = rng.uniform(2, 257, 100), rng.uniform(2, 197, 100)
    frame = frame_of(ops, surface(columns, rows))
    level = ops.annulus_polynomial(frame, positions_of(ops, x, y), 5.0, 12.0, order)
    # Sources in the corners extrapolate a rounding error of 1e-16 of the level.
    np.testing.assert_allclose(ops.to_host(level), surface(x, y), rtol=3e-14, atol=1e-11)


@pytest.mark.parametrize("order", [1, 2])
def test_far_outliers_are_rejected_without_a_trace(rng, ops, order):
    image = rng.normal(0, 1, (60, 60))
    pos = positions_of(ops, rng.uniform(20, 40, 20), rng.uniform(20, 40, 20))
    spoilt, mask = image.copy(), np.zeros(image.shape, bool)
    spot = rng.integers(0, 60, (2, 40))
    mask[tuple(spot)] = True
    spoilt[tuple(spot)] = 1e8
    clean = ops.annulus_polynomial(frame_of(ops, image, mask), pos, 6.0, 14.0, order)
    level = ops.annulus_polynomial(frame_of(ops, spoilt), pos, 6.0, 14.0, order)
    # The same pixels are left, unless the outliers hid some from the first rounds.
    close = np.abs(ops.to_host(level) - ops.to_host(clean)) < 1e-9
    assert close.mean() > 0.5


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("value", [1e8, 1e15, 1e30])
def test_one_outlier_costs_no_precision(rng, ops, order, value):
    image = rng.normal(0, 1, (60, 60))
    image[38, 30] = value
    mask = image == value
    pos = positions_of(ops, rng.uniform(28, 32, 20), rng.uniform(28, 32, 20))
    level = ops.to_host(ops.annulus_polynomial(frame_of(ops, image), pos, 5.0, 14.0, order))
    # The mask takes away what the first round rejects, and leaves one round more.
    expected = ops.to_host(
        ops.annulus_polynomial(frame_of(ops, image, mask), pos, 5.0, 14.0, order)
    )
    assert np.median(np.abs(level - expected)) < 1e-12
    assert np.all(np.abs(level - expected) < 1)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("sky", [0.0, 100.3])
def test_constant_sky_with_contaminants_is_found(rng, ops, order, sky):
    image = np.where(rng.random((120, 140)) < 0.01, 1000.0, 0.0) + sky
    pos = positions_of(ops, rng.uniform(15, 120, 200), rng.uniform(15, 100, 200))
    level = ops.to_host(ops.annulus_polynomial(frame_of(ops, image), pos, 5.0, 9.0, order))
    assert np.mean(np.abs(level - sky) < 1e-9) > 0.9


@pytest.mark.parametrize("order", [0, 1, 2])
def test_annulus_without_pixels_is_nan(ops, order):
    mask = np.zeros((40, 40), bool)
    mask[10:30, 10:30] = True
    frame = frame_of(ops, np.ones((40, 40)), mask)
    pos = positions_of(ops, [20.0, 20.0, -30.0, np.nan, 1e12], [20.0, 31.0, 20.0, 1.0, 1.0])
    radii = (4.0, 8.0)
    level = (
        ops.annulus_mode(frame, pos, *radii)
        if order == 0
        else ops.annulus_polynomial(frame, pos, *radii, order)
    )
    assert np.isfinite(ops.to_host(level)).tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("visible", ["few", "a column", "two columns"])
def test_pixels_that_determine_no_polynomial_give_their_mean(rng, ops, order, visible):
    image = rng.normal(10, 1, (60, 60))
    mask = np.ones(image.shape, bool)
    if visible == "few":
        mask[30, 36:40], mask[36, 30] = False, False
    elif visible == "a column":
        mask[:, 33] = False
    else:
        mask[:, 33:35] = False
    pos = positions_of(ops, 30.2, 30.4)
    level = ops.to_host(ops.annulus_polynomial(frame_of(ops, image, mask), pos, 5.0, 20.0, order))
    rows, columns = np.mgrid[:60, :60]
    d = np.hypot(columns - 30.2, rows - 30.4)
    sample = image[~mask & (d >= 5) & (d <= 20)]
    if visible == "two columns" and order == 1:
        assert abs(level[0] - 10) < 5
    else:
        # One of a sample of normal deviates may be clipped.
        assert abs(level[0] - sample.mean()) < 4 / len(sample)


def test_non_finite_background_pixels_are_left_out(rng, ops):
    image, bg = rng.normal(10, 1, (60, 60)), np.zeros((60, 60))
    bg[:, 35:] = np.nan
    pos = positions_of(ops, 30.0, 30.0)
    for level in (
        ops.annulus_mode(frame_of(ops, image, bg=bg), pos, 6.0, 15.0),
        ops.annulus_polynomial(frame_of(ops, image, bg=bg), pos, 6.0, 15.0, 1),
    ):
        assert abs(ops.to_host(level)[0] - 10) < 2
