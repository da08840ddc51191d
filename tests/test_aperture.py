"""Aperture sums: the overlap of circle and pixel, and what masked pixels do to it."""

from __future__ import annotations

import numpy as np
import pytest

from .scenes import frame_of, positions_of

RADII = np.array([0.03, 0.5, 0.71, 1.0, 1.5, 3.0, 5.37, 12.0, 40.0])


def area_of_disc(height, width, x, y, r):
    """Area of a disc on the image's rectangle, by the midpoint rule over its chords."""
    low, high = np.clip([-0.5 - x, width - 0.5 - x], -r, r)
    edges = np.linspace(np.arcsin(low / r), np.arcsin(high / r), 20001)
    angle = (edges[1:] + edges[:-1]) / 2
    half_chord = r * np.cos(angle)
    top, bottom = np.minimum(y + half_chord, height - 0.5), np.maximum(y - half_chord, -0.5)
    return np.sum(np.maximum(top - bottom, 0) * half_chord) * (edges[1] - edges[0])


@pytest.mark.parametrize("r", RADII)
def test_sums_agree_with_photutils(rng, ops, r):
    from photutils.aperture import CircularAperture

    image = rng.normal(1000, 300, (70, 90))
    x, y = rng.uniform(-3, 93, 300), rng.uniform(-3, 73, 300)
    x[:50], y[50:100] = np.rint(2 * x[:50]) / 2, np.rint(2 * y[50:100]) / 2
    sums = ops.aperture_sums(frame_of(ops, image), positions_of(ops, x, y), np.array([r]))
    aperture = CircularAperture(np.stack([x, y], axis=1), r)
    (expected,) = (np.array(v) for v in (aperture.do_photometry(image)[0],))
    area = aperture.do_photometry(np.ones_like(image))[0]
    flux = ops.to_host(sums.flux)[:, 0]
    compared = np.isfinite(flux)
    assert np.all(~(area[~compared] > 0))
    # A difference of areas of order r^2 keeps 1e-15 of them, however small the overlap is.
    tolerance = 1e-12 * (np.abs(expected) + r * r * image.max())
    assert np.all(np.abs(flux - expected)[compared] <= tolerance[compared])
    np.testing.assert_allclose(
        ops.to_host(sums.area)[compared, 0], area[compared], rtol=1e-12, atol=1e-12 * r * r
    )


def test_area_is_that_of_the_disc(rng, ops):
    x, y, r = rng.uniform(-2, 42, 60), rng.uniform(-2, 32, 60), 10 ** rng.uniform(-1, 1.5, 60)
    sums = ops.aperture_sums(frame_of(ops, np.zeros((30, 40))), positions_of(ops, x, y), r[:, None])
    expected = [area_of_disc(30, 40, *case) for case in zip(x, y, r, strict=True)]
    area = np.nan_to_num(ops.to_host(sums.area)[:, 0])
    np.testing.assert_allclose(area, expected, rtol=1e-6, atol=1e-6)


def test_several_radii_at_once_equal_one_at_a_time(rng, ops, scene):
    frame = frame_of(ops, scene.image, scene.mask)
    pos = positions_of(ops, scene.table["x"], scene.table["y"])
    shared = ops.aperture_sums(frame, pos, RADII)
    own = ops.aperture_sums(frame, pos, np.tile(RADII, (len(pos), 1)))
    for k, r in enumerate(RADII):
        alone = ops.aperture_sums(frame, pos, np.array([r]))
        for name in ("flux", "var", "area", "masked"):
            expected = ops.to_host(getattr(alone, name))[:, 0]
            np.testing.assert_array_equal(ops.to_host(getattr(shared, name))[:, k], expected)
            np.testing.assert_array_equal(ops.to_host(getattr(own, name))[:, k], expected)


def test_integer_edges_belong_to_neither_side(ops):
    sums = ops.aperture_sums(
        frame_of(ops, np.ones((20, 20))), positions_of(ops, 10.0, 10.0), np.array([0.5, 1.5, 4.5])
    )
    np.testing.assert_allclose(
        ops.to_host(sums.flux)[0], np.pi * np.array([0.5, 1.5, 4.5]) ** 2, rtol=1e-14
    )


def test_disc_larger_than_the_image_sums_the_image(rng, ops):
    image = rng.normal(5, 1, (13, 17))
    for r in (50.0, 1e4, 1e9):
        sums = ops.aperture_sums(frame_of(ops, image), positions_of(ops, 3.3, 9.1), np.array([r]))
        assert ops.to_host(sums.flux)[0, 0] == pytest.approx(image.sum(), rel=1e-12)
        assert ops.to_host(sums.area)[0, 0] == pytest.approx(image.size, rel=1e-12)


def test_off_image_and_invalid_rows_are_nan(ops):
    x = [-3.6, -3.4, np.nan, 1e300, np.inf, 5.0, -2.7]
    y = [5.0, 5.0, 5.0, 5.0, 5.0, -1e300, -2.7]
    sums = ops.aperture_sums(
        frame_of(ops, np.ones((9, 9))), positions_of(ops, x, y), np.array([3.0])
    )
    finite = [False, True, False, False, False, False, False]
    for values in (sums.flux, sums.var, sums.area):
        assert np.isfinite(ops.to_host(values)[:, 0]).tolist() == finite


def test_disc_without_area_is_off_the_image(ops):
    frame = frame_of(ops, np.ones((90, 9)))
    pos = positions_of(ops, [4.0, 4.0], [89.8, 89.7])
    area = ops.to_host(ops.aperture_sums(frame, pos, np.array([0.3])).area)[:, 0]
    assert np.isfinite(area).tolist() == [False, True]


def test_masked_pixel_in_aperture_sets_flag_and_counts(ops):
    image, mask = np.ones((20, 20)), np.zeros((20, 20), bool)
    mask[10, 13] = True
    frame = frame_of(ops, image, mask)
    # The centre of the masked pixel is 3 pixels away: inside only if that is less than r.
    sums = ops.aperture_sums(frame, positions_of(ops, 10.0, 10.0), np.array([2.9, 3.0, 3.01]))
    assert ops.to_host(sums.masked)[0].tolist() == [False, False, True]
    np.testing.assert_allclose(
        ops.to_host(sums.flux)[0], np.pi * np.array([2.9, 3.0, 3.01]) ** 2, rtol=1e-13
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_pixel_is_left_out_and_flagged(ops, value):
    image = np.full((20, 20), 2.0)
    image[10, 12] = value
    sums = ops.aperture_sums(frame_of(ops, image), positions_of(ops, 10, 10), np.array([4.0]))
    area = np.pi * 16 - 1
    assert ops.to_host(sums.area)[0, 0] == pytest.approx(area, rel=1e-13)
    assert ops.to_host(sums.flux)[0, 0] == pytest.approx(2 * area, rel=1e-13)
    assert ops.to_host(sums.var)[0, 0] == pytest.approx(area, rel=1e-13)
    assert ops.to_host(sums.masked)[0, 0]


@pytest.mark.parametrize("name", ["bg", "err"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_background_or_noise_matters_only_where_the_disc_reaches(ops, name, value):
    plane = np.ones((20, 20))
    plane[10, 14] = value
    frame = frame_of(ops, np.ones((20, 20)), **{name: plane})
    sums = ops.aperture_sums(frame, positions_of(ops, [10, 10.01], [10, 10]), np.array([3.5]))
    spoilt = ops.to_host(sums.flux if name == "bg" else sums.var)[:, 0]
    other = ops.to_host(sums.var if name == "bg" else sums.flux)[:, 0]
    assert np.isfinite(spoilt).tolist() == [True, False]
    assert np.isfinite(other).all()
