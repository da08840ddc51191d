"""Which objects of an image are stars to learn from, how wide they are, and which were hidden."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table

import gpuphot
from gpuphot.stars import (
    brightest_stars,
    detect_hidden,
    estimate_fwhm,
    have_width_of_stars,
    measure_widths,
    suitable_stars,
)

from .fields import SKY, make_psf, match, profile, scattered

SHAPE = 300, 320


def stars_of(rng, fwhm, beta=None, ratio=1.0, n=25, noise=0.0, sub=5):
    """Stars of a peak near 1000 in the middle of boxes: image, x and y."""
    size = 2 * int(3 * fwhm + 3) + 1
    x, y = (size // 2 + rng.uniform(-0.5, 0.5, n) for _ in range(2))
    fine = (np.arange(size * sub) - (sub - 1) / 2) / sub
    boxes = [
        profile(fine - xi, fine[:, None] - yi, fwhm, beta, ratio)
        .reshape(size, sub, size, sub)
        .mean(axis=(1, 3))
        for xi, yi in zip(x, y, strict=True)
    ]
    image = 1000 * np.concatenate(boxes, axis=1)
    return image + rng.normal(0, 1, image.shape) * noise, x + size * np.arange(n), y


# The width


@pytest.mark.parametrize("guess", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("ratio", [1.0, 1.3])
@pytest.mark.parametrize("fwhm", [1.5, 2.0, 3.0, 5.0, 12.0])
def test_width_of_gaussians(rng, fwhm, ratio, guess):
    image, x, y = stars_of(rng, fwhm, ratio=ratio)
    tolerance = 0.02 if fwhm < 2 else 0.005
    assert estimate_fwhm(image, x, y, guess * fwhm) == pytest.approx(fwhm, rel=tolerance)


@pytest.mark.parametrize("ratio", [1.0, 1.3])
@pytest.mark.parametrize("beta", [2.5, 3.5, 5.0])
@pytest.mark.parametrize(("fwhm", "most"), [(1.5, 0.15), (2.0, 0.1), (3.0, 0.06), (8.0, 0.03)])
def test_width_of_moffats_is_a_little_too_large(rng, fwhm, most, beta, ratio):
    image, x, y = stars_of(rng, fwhm, beta, ratio)
    assert -0.01 < estimate_fwhm(image, x, y, fwhm) / fwhm - 1 < most
    assert abs(estimate_fwhm(image, x, y, fwhm / 2) / fwhm - 1) < max(most, 0.04)
    assert abs(estimate_fwhm(image, x, y, fwhm * 2) / fwhm - 1) < max(most, 0.05)


@pytest.mark.parametrize(("noise", "tolerance"), [(10, 0.02), (50, 0.08)])
@pytest.mark.parametrize("fwhm", [2.0, 3.0, 6.0])
def test_width_of_noisy_stars(rng, fwhm, noise, tolerance):
    image, x, y = stars_of(rng, fwhm, noise=noise, n=60)
    assert estimate_fwhm(image, x, y, fwhm) == pytest.approx(fwhm, rel=tolerance)


def test_width_is_that_of_the_stars_if_half_of_them_have_neighbours(rng):
    image, x, y = stars_of(rng, 3.0, noise=5)
    blend = np.arange(len(x)) % 2 == 0
    angle, distance = rng.uniform(0, 2 * np.pi, len(x)), rng.uniform(1.5, 6, len(x))
    neighbours = x + distance * np.cos(angle), y + distance * np.sin(angle)
    image = gpuphot.place_psf_stamps(image, 3.0, *(v[blend] for v in neighbours), 8000.0)
    assert estimate_fwhm(image, x, y, 4.5) == pytest.approx(3, rel=0.02)


def test_width_is_that_of_the_stars_if_half_of_the_objects_are_galaxies(rng):
    image, x, y = stars_of(rng, 3.0, noise=5)
    image = gpuphot.place_psf_stamps(image, 6.0, x[::2], y[::2], 50000.0)
    assert estimate_fwhm(image, x, y, 4.5) == pytest.approx(3, rel=0.02)


@pytest.mark.parametrize("pixels", [[(0, 0)], [(0, 0), (0, 1)], [(0, 0), (1, 1), (0, 1), (1, 0)]])
def test_cosmic_rays_have_no_width(rng, pixels):
    image, x, y = stars_of(rng, 3.0, noise=5)
    column, row = np.rint(x).astype(int), np.rint(y).astype(int)
    hit = np.arange(len(x)) % 5 > 0
    stamp = np.abs(rng.normal(0, 0.1, (*image.shape,)))
    image = np.where(np.isin(np.arange(image.shape[1]) // image.shape[0], np.flatnonzero(hit)),
                     stamp, image)  # fmt: skip
    for dy, dx in pixels:
        image[row[hit] + dy, column[hit] + dx] = 5e4
    assert estimate_fwhm(image, x, y, 3.0) == pytest.approx(3, rel=0.02)
    assert np.isnan(estimate_fwhm(image, x[hit], y[hit], 3.0))


def test_saturated_stars_do_not_matter_if_they_are_masked_or_few(rng):
    image, x, y = stars_of(rng, 4.0)
    flat = np.minimum(image, 300)
    assert estimate_fwhm(flat, x, y, 4.0) > 4.4
    masked = np.where(flat == 300, np.nan, flat)
    assert np.isnan(estimate_fwhm(masked, x, y, 4.0))
    some = image.copy()
    some[:, : image.shape[1] // 2] = flat[:, : image.shape[1] // 2]
    assert estimate_fwhm(some, x, y, 4.0) == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize("value", [np.nan, -np.inf, -1e9, 0.0])
def test_pixels_without_a_value_do_not_count(rng, value):
    image, x, y = stars_of(rng, 5.0)
    column, row = np.rint(x).astype(int), np.rint(y).astype(int)
    image[row + 2, column - 1] = value
    image[row[::3], column[::3]] = value
    image[row[1::3] + 3, column[1::3]] = np.nan
    assert estimate_fwhm(image, x, y, 5.0) == pytest.approx(5, rel=0.03)


def test_stars_whose_box_is_cut_are_left_out(rng):
    image, x, y = stars_of(rng, 4.0, n=3)
    height, width = image.shape
    far = [0.0, -0.4, width - 1.0, width + 30, -1e9, 1e30, np.nan, 20, 20, np.nan]
    beside = [20.0, 20, 20, 20, 20, 20, 20, height - 1, np.nan, np.nan]
    expected = estimate_fwhm(image, x, y, 4.0)
    assert estimate_fwhm(image, np.append(x, far), np.append(y, beside), 4.0) == expected
    assert np.isnan(estimate_fwhm(image, np.array(far), np.array(beside), 4.0))


def test_one_star_is_enough(rng):
    image, x, y = stars_of(rng, 3.0, n=1)
    assert estimate_fwhm(image, x, y, 3.0) == pytest.approx(3, rel=0.01)


@pytest.mark.parametrize("value", [0.0, -5.0, 7.0, np.nan])
def test_a_constant_image_has_no_width(value):
    positions = np.array([10.0, 20.0])
    assert np.isnan(estimate_fwhm(np.full((40, 40), value), positions, positions, 3.0))


def test_no_stars_have_no_width():
    assert np.isnan(estimate_fwhm(np.ones((40, 40)), np.array([]), np.array([]), 3.0))


def test_an_image_smaller_than_the_box_has_no_width():
    assert np.isnan(estimate_fwhm(np.ones((3, 60)), np.array([30.0]), np.array([1.0]), 3.0))


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 7.0, 1e30])
def test_width_does_not_depend_on_the_unit_of_the_image(rng, factor):
    image, x, y = stars_of(rng, 3.0, 3.5, noise=10)
    expected = estimate_fwhm(image, x, y, 3.0)
    assert estimate_fwhm(image * factor, x, y, 3.0) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", ["i2", "i4", "u2", ">i4", "f4", ">f4"])
def test_width_in_images_of_all_kinds(rng, dtype):
    image, x, y = stars_of(rng, 3.0)
    given = np.rint(image * 30).astype(dtype)
    given.setflags(write=False)
    assert estimate_fwhm(given, x, y, 3.0) == pytest.approx(3, rel=0.01)


def test_width_does_not_depend_on_the_order_of_the_stars(rng):
    image, x, y = stars_of(rng, 3.0, noise=30)
    order = rng.permutation(len(x))
    expected = estimate_fwhm(image, x, y, 3.0)
    assert estimate_fwhm(image, x[order], y[order], 3.0) == pytest.approx(expected, rel=1e-12)


def test_every_object_has_its_width_or_none(rng):
    image, x, y = stars_of(rng, 3.0, noise=5)
    image = gpuphot.place_psf_stamps(image, 6.0, x[::5], y[::5], 3e5)
    image[np.rint(y[1::5]).astype(int), np.rint(x[1::5]).astype(int)] = np.nan
    widths = measure_widths(image, np.append(x, np.nan), np.append(y, 0.0), 4.0)
    expected = np.where(np.arange(26) % 5 == 0, 6.0, 3.0)
    expected[1::5], expected[-1] = np.nan, np.nan
    np.testing.assert_allclose(widths, expected, rtol=0.1)
    chosen = have_width_of_stars(image, np.append(x, np.nan), np.append(y, 0.0), 4.0)
    np.testing.assert_array_equal(chosen, expected == 3)


def test_nothing_has_the_width_of_stars_where_there_are_none(rng):
    positions = np.array([20.0, 30.0])
    assert not have_width_of_stars(np.zeros((50, 50)), positions, positions, 3.0).any()
    assert len(have_width_of_stars(np.zeros((50, 50)), np.array([]), np.array([]), 3.0)) == 0


# Which stars


def found_on(rng, n):
    """A table as measurements of detected objects are, all stars in the middle and clean."""
    return Table(
        {
            "x": rng.uniform(50, SHAPE[1] - 50, n),
            "y": rng.uniform(50, SHAPE[0] - 50, n),
            "flux": rng.permutation(np.arange(n) + 1.0),
            "fluxerr": np.full(n, 0.05),
            "flags": np.zeros(n, int),
            "sep_flag": np.zeros(n, int),
        }
    )


def test_suitable_stars_are_between_the_median_and_the_brightest(rng):
    found = found_on(rng, 1000)
    chosen = np.sort(found["flux"][suitable_stars(found, SHAPE, 10)])
    np.testing.assert_array_equal(chosen, np.arange(501, 981))


@pytest.mark.parametrize("name", ["flags", "sep_flag"])
def test_flagged_objects_are_not_suitable(rng, name):
    found = found_on(rng, 200)
    found[name][::2] = 1
    suitable = suitable_stars(found, SHAPE, 10)
    assert not suitable[::2].any()
    assert suitable[1::2].any()


def test_suitable_stars_keep_their_distance_from_every_edge(rng):
    found = found_on(rng, 400)
    found["x"], found["y"] = rng.uniform(0, SHAPE[1] - 1, 400), rng.uniform(0, SHAPE[0] - 1, 400)
    chosen = found[suitable_stars(found, SHAPE, 70)]
    assert chosen["x"].min() > 70
    assert chosen["x"].max() < SHAPE[1] - 70
    assert chosen["y"].min() > 70
    assert chosen["y"].max() < SHAPE[0] - 70


def test_objects_without_flux_or_position_are_not_suitable(rng):
    found = found_on(rng, 200)
    found["flux"][::3] = np.nan
    found["x"][1::3] = np.nan
    suitable = suitable_stars(found, SHAPE, 10)
    assert not suitable[::3].any()
    assert not suitable[1::3].any()
    assert suitable.any()


def test_brightest_stars_are_at_most_a_hundred_and_sorted(rng):
    found = found_on(rng, 1000)
    before = found.copy()
    stars = brightest_stars(found, SHAPE, 10)
    np.testing.assert_array_equal(stars["flux"], np.arange(980, 880, -1))
    assert all((found[name] == before[name]).all() for name in found.colnames)


def test_few_stars_are_all_used_but_for_the_flagged_and_the_faint(rng):
    found = found_on(rng, 12)
    found["x"][0] = 1.0
    found["sep_flag"][1] = 1
    found["flags"][2], found["flux"][3], found["flux"][4] = 0x200, -1.0, np.nan
    found["fluxerr"][5] = 0.2 * found["flux"][5]
    stars = brightest_stars(found, SHAPE, 10)
    assert set(stars["flux"]) == set(np.delete(np.asarray(found["flux"]), [2, 3, 4, 5]))
    assert (np.diff(stars["flux"]) < 0).all()


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_stars_are_stars(rng, n):
    assert len(brightest_stars(found_on(rng, n), SHAPE, 10)) == n


def test_only_flagged_objects_give_no_stars(rng):
    found = found_on(rng, 30)
    found["flags"] = 1
    assert len(brightest_stars(found, SHAPE, 10)) == 0


# Hidden stars


PSF = make_psf(3.0)


def hidden_in(data, x, y, flux, psf=PSF, threshold=3.0, bad=None, backend="numpy"):
    bad = np.zeros(data.shape, bool) if bad is None else bad
    x, y, flux = (np.atleast_1d(np.asarray(v, float)) for v in (x, y, flux))
    return detect_hidden(
        data, bad, psf, x, y, flux, threshold=threshold, bg_size=64, backend=backend
    )


@pytest.mark.parametrize("fainter", [3, 5])
def test_a_star_hidden_by_a_bright_one_is_found(rng, backend, fainter):
    angle = rng.uniform(0, 2 * np.pi)
    x, y = 60 + 4.5 * np.cos(angle), 50 + 4.5 * np.sin(angle)
    data = gpuphot.place_psf_stamps(
        rng.normal(0, 3, (100, 120)), PSF, [60, x], [50, y], [30000, 30000 / fainter]
    )
    hidden = hidden_in(data, 60, 50, 30000, backend=backend)
    distance = np.hypot(hidden["x"] - x, hidden["y"] - y)
    assert distance.min() < 0.5
    assert len(hidden) <= 2


def test_hardly_anything_is_found_where_the_model_is_right(rng):
    field = scattered(rng, 300)
    hidden = hidden_in(field.image - SKY, field.x, field.y, field.flux, threshold=4.0)
    assert len(hidden) <= 3


def test_nothing_is_found_within_one_fwhm_of_a_known_star(rng):
    field = scattered(rng, 300)
    wrong = field.flux * rng.uniform(0.5, 1.2, len(field.flux))
    hidden = hidden_in(field.image - SKY, field.x, field.y, wrong)
    for row in hidden:
        assert np.hypot(field.x - row["x"], field.y - row["y"]).min() > 3


def test_stars_that_are_not_known_are_found_and_those_without_flux_hide_nothing_else(rng):
    field = scattered(rng, 60, faintest=1e4)
    known = np.arange(60) % 2 == 0
    flux = np.where(known, field.flux, np.nan)
    away = np.where(known, field.x, np.nan)
    hidden = hidden_in(field.image - SKY, away, field.y, flux)
    _, star = match(field, hidden)
    nearest = [np.sort(np.hypot(field.x - x, field.y - y))[1] for x, y in zip(field.x, field.y)]  # noqa: B905
    alone = ~known & (np.array(nearest) > 6) & (np.abs(field.x - 110) < 105)
    alone &= np.abs(field.y - 100) < 95
    assert np.isin(np.flatnonzero(alone), star).mean() > 0.9


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_known_star_has_a_position(rng, value):
    field = scattered(rng, 20, faintest=1e4)
    nowhere = np.full(20, value)
    hidden = hidden_in(field.image - SKY, nowhere, nowhere, nowhere)
    assert len(match(field, hidden)[0]) > 10
    assert len(hidden_in(field.image - SKY, [], [], [])) == len(hidden)


def test_nothing_above_the_threshold_is_an_empty_table(rng):
    data = rng.normal(0, 1, (80, 90))
    hidden = hidden_in(data, 40, 40, 1e-3, threshold=1e3)
    assert len(hidden) == 0
    assert {"x", "y", "a", "b", "theta", "peak", "sep_flag"} == set(hidden.colnames)


def test_nothing_is_found_where_the_image_is_masked(rng):
    data = gpuphot.place_psf_stamps(rng.normal(0, 3, (80, 90)), PSF, [30, 60], [40, 40], 30000.0)
    bad = np.zeros(data.shape, bool)
    bad[:, 45:] = True
    hidden = hidden_in(np.where(bad, np.nan, data), [], [], [], bad=bad)
    assert len(hidden) == 1
    assert hidden["x"][0] == pytest.approx(30, abs=0.2)
