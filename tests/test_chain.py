"""`measure_image`: from an image to the fluxes of its stars, as one would do it by hand."""

from __future__ import annotations

import json
import math
from functools import cache

import numpy as np
import pytest
from astropy import units as u
from astropy.nddata import CCDData, NDData, StdDevUncertainty
from astropy.table import Table, vstack

import gpuphot
from gpuphot import Flag, measure_image, measure_objects, measure_objects_sep
from gpuphot.chain import METHODS
from gpuphot.detect import detect_objects
from gpuphot.stars import (
    brightest_stars,
    detect_hidden,
    estimate_fwhm,
    have_width_of_stars,
)  # fmt: skip

from .fields import GAIN, SKY, enclosed, expose, isolated, make_psf, match, scattered
from .psfs import make_psf as make_psfex
from .psfs import write_psf_file

pytestmark = pytest.mark.fresh_seed

PSF = make_psf(3.0)
SMALL = make_psf(3.0, extent=3.0)
WITH_FITS = ("psf", "deblended")
SHAPE = 200, 220


def measure(image, **options):
    return measure_image(image, **{"backend": "numpy", **options})


@cache
def make_field(seed):
    return scattered(np.random.default_rng(seed), 130)


@pytest.fixture
def field(seed):
    return make_field(seed)


def assert_same(table, expected):
    """The same columns in the same order, to the last bit, but for what says how they came."""
    assert table.colnames == expected.colnames
    for name in table.colnames:
        np.testing.assert_array_equal(table[name], expected[name], err_msg=name)
        assert table[name].dtype == expected[name].dtype
        assert table[name].unit == expected[name].unit


# What it does is what one would do by hand


class ByHand:
    """The steps before the fluxes, with the functions that `measure_image` calls."""

    def __init__(self, image, gain=None, oversampling=None):
        self.image = image
        self.gain = gain
        self.found = detect_objects(image)
        self.seeds, self.bg, self.err = measure_objects(
            self.found, image, 3.0, gain=gain, get_bg=True, backend="numpy"
        )
        self.data = image - self.bg
        width = np.median(self.seeds["a"]) * 2 * math.sqrt(2 * math.log(2))
        stars = brightest_stars(self.seeds, image.shape, 2 * width)
        self.fwhm = estimate_fwhm(self.data, np.array(stars["x"]), np.array(stars["y"]), width)
        size = 2 * math.ceil(3 * self.fwhm) + 1
        stars = brightest_stars(self.seeds, image.shape, size / 2)
        positions = np.array(stars["x"]), np.array(stars["y"])
        stars = stars[have_width_of_stars(self.data, *positions, self.fwhm)]
        self.psf = gpuphot.create_psf_model(
            self.data, stars, self.fwhm, size=size, oversampling=oversampling,
            degree=2 if len(stars) >= 50 else 1, neighbors_obj=self.seeds,
            subtract_background=True,
        )  # fmt: skip

    def sky(self):
        return {"gain": self.gain, "backend": "numpy"}

    def known(self):
        return {"bg": self.bg, "err": self.err, "backend": "numpy"}

    def fits(self, objects):
        return measure_objects_sep(objects, self.image, psf=self.psf, **self.known())

    def with_hidden(self, objects):
        fits = self.fits(objects)
        hidden = detect_hidden(
            self.data, np.zeros(self.data.shape, bool), self.psf,
            *(np.asarray(fits[name]) for name in ("x_psf", "y_psf", "flux")),
            threshold=3.0, bg_size=64, backend="numpy",
        )  # fmt: skip
        moved = objects.copy()
        for name in ("x", "y"):
            near = np.isfinite(fits["x_psf"]) & (fits["flags"] & Flag.LARGE_SHIFT == 0)
            moved[name] = np.where(near, fits[f"{name}_psf"], objects[name])
        return vstack([moved, hidden])

    def deblend(self, objects):
        plain = measure_objects(objects, self.image, 1.0, fwhm=self.fwhm, **self.known())
        fits = self.fits(objects)
        good = np.isfinite(fits["x_psf"]) & np.isfinite(fits["flux"]) & (fits["flux"] > 0)
        return gpuphot.measure_aperture_deblended(
            self.image,
            np.where(good, fits["x_psf"], plain["x"]),
            np.where(good, fits["y_psf"], plain["y"]),
            1.0, self.psf, fwhm=self.fwhm, flux_seed=np.where(good, fits["flux"], plain["flux"]),
            flux_psf=fits["flux"], flux_psf_err=fits["fluxerr"], aperture_correction="none",
            overlap_subpixel=5, diagnostics=True, **self.known(),
        )  # fmt: skip


@pytest.mark.parametrize("gain", [None, GAIN])
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_the_same_by_hand(field, method, passes, gain):
    result = measure(field.image, method=method, passes=passes, gain=gain)
    by_hand = ByHand(field.image, gain, 1 if method in WITH_FITS else None)
    objects, psf = by_hand.found, by_hand.psf
    if passes == 2 and method in WITH_FITS:
        objects = by_hand.with_hidden(objects)
    radii = {"aper": 1.0, "fwhm": by_hand.fwhm}
    if method == "aperture":
        expected = measure_objects(objects, field.image, **radii, **by_hand.sky())
    elif method == "optimal":
        expected = measure_objects(
            objects, field.image, 1.5, fwhm=by_hand.fwhm, psf=psf, optimal=True, **by_hand.sky()
        )
    elif method == "sep":
        expected = measure_objects_sep(objects, field.image, **radii, **by_hand.sky())
    elif method == "psf":
        expected = by_hand.fits(objects)
    else:
        deblended, fits = by_hand.deblend(objects), by_hand.fits(objects)
        for name in deblended.colnames:
            if name not in ("x", "y", "flags"):
                np.testing.assert_array_equal(result.table[name], deblended[name], err_msg=name)
        np.testing.assert_array_equal(result.table["flags"], fits["flags"] | deblended["flags"])
        for name, fitted in {
            "x_psf": "x_psf", "y_psf": "y_psf", "flux_psf": "flux", "flux_psf_err": "fluxerr",
        }.items():  # fmt: skip
            np.testing.assert_array_equal(result.table[name], fits[fitted], err_msg=name)
        expected = None
    if expected is not None:
        assert_same(result.table, expected)
    assert result.fwhm == by_hand.fwhm
    np.testing.assert_array_equal(result.background, by_hand.bg)
    np.testing.assert_array_equal(result.noise, by_hand.err)
    if method in ("aperture", "sep"):
        assert result.psf is None
    else:
        np.testing.assert_array_equal(result.psf.planes, psf.planes)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_modified_and_nothing_is_random(field, method):
    obj = Table({"x": field.x, "y": field.y})
    before = obj.copy()
    planes = {
        "mask": np.zeros(SHAPE, bool), "bg": np.full(SHAPE, SKY), "err": np.full(SHAPE, 11.0),
    }  # fmt: skip
    for plane in planes.values():
        plane.setflags(write=False)
    first, second = (measure(field.image, obj=obj, method=method, **planes) for _ in range(2))
    assert_same(first.table, second.table)
    assert_same(obj, before)
    assert obj.meta == before.meta


# The two backends


@pytest.mark.parametrize("method", METHODS)
def test_the_backends_agree(rng, backend, method):
    small = scattered(rng, 25, shape=(100, 110))
    options = {"method": method, "psf": SMALL, "passes": 1}
    result = measure(small.image, **options, backend=backend)
    expected = measure(small.image, **options)
    assert json.loads(result.table.meta["gpuphot"])["backend"] == backend
    assert len(result.table) == len(expected.table)
    error = expected.table["fluxerr"]
    difference = np.abs(result.table["flux"] - expected.table["flux"]) / error
    # Fits stop when they have converged, within that of each other.
    assert np.nanmax(difference) < (0.02 if method in WITH_FITS else 1e-6)
    np.testing.assert_array_equal(result.table["flags"], expected.table["flags"])
    if backend == "numpy":
        assert_same(result.table, expected.table)


# Fluxes are right


def ratios(field, table, name="flux"):
    """Measured fluxes of bright stars in units of the true ones."""
    row, star = match(field, table)
    bright = field.flux[star] > 1e4
    return np.asarray(table[name])[row[bright]] / field.flux[star[bright]]


@pytest.mark.parametrize("beta", [2.5, 3.5])
@pytest.mark.parametrize("method", METHODS)
def test_fluxes_of_isolated_stars(rng, method, beta):
    field = isolated(rng, psf=make_psf(3.0, beta))
    result = measure(field.image, method=method, gain=GAIN)
    ratio = ratios(field, result.table)
    assert len(ratio) > 25
    expected = 1.0
    if method not in ("optimal", "psf"):
        expected = enclosed(result.fwhm / 3.0, beta)
    # What lies outside the PSF's stamp is lost to the fits, and the fainter the wings the less.
    tolerance = 0.02 if beta > 3 else 0.06
    assert np.median(ratio) == pytest.approx(expected, rel=tolerance)
    assert 1.4826 * np.median(np.abs(ratio - np.median(ratio))) < 0.02
    assert np.percentile(np.abs(ratio / np.median(ratio) - 1), 90) < 0.1


@pytest.mark.parametrize("fwhm", [2.5, 3.0, 5.0])
def test_fits_of_the_model_that_is_made_are_good(rng, fwhm):
    """Of bright Gaussian stars, which have no light beyond the stamp of the model."""
    psf = make_psf(fwhm, None)
    field = isolated(rng, step=48, psf=psf, faintest=1e4, brightest=3e4)
    table = measure(field.image, method="psf", gain=GAIN).table
    row, star = match(field, table)
    assert len(row) == len(field.x)
    assert np.median(table["flux"][row] / field.flux[star]) == pytest.approx(1, abs=0.01)
    assert np.median(table["chi2_psf"][row]) < 1.3


def test_deblended_pairs_are_less_biased_than_plain_ones(rng):
    grid = isolated(rng, n_side=8, faintest=3e4, brightest=6e4)
    separation, angle = 3.0 * rng.uniform(1.5, 3, 64), rng.uniform(0, 2 * np.pi, 64)
    pairs = np.arange(64) % 2 == 0
    x = np.append(grid.x, (grid.x + separation * np.cos(angle))[pairs])
    y = np.append(grid.y, (grid.y + separation * np.sin(angle))[pairs])
    flux = np.append(grid.flux, (grid.flux * rng.uniform(0.3, 1, 64))[pairs])
    field = expose(rng, PSF, x, y, flux, grid.image.shape)
    result = measure(field.image, method="deblended", aper=1.5, gain=GAIN)
    table, inside = result.table, enclosed(result.r_aper / 3.0, 3.5)
    row, star = match(field, table)
    in_pair = (star >= 64) | (star % 2 == 0)
    assert in_pair.sum() > 55
    deblended, plain = (
        np.median((table[name][row] / field.flux[star])[in_pair]) / inside - 1
        for name in ("flux", "flux_ap_raw")
    )
    assert abs(deblended) < 0.02
    assert plain > 2 * abs(deblended)
    assert np.median(table["fracflux"][row][~in_pair]) > 0.99
    assert np.median(table["fracflux"][row][in_pair]) < 0.98


@pytest.mark.parametrize("method", METHODS)
def test_errors_are_the_scatter(rng, method):
    field = isolated(rng, n_side=10, step=30, faintest=3e3, brightest=2e4)
    obj = Table({"x": field.x, "y": field.y})
    table = measure(field.image, obj=obj, method=method, gain=GAIN, psf=SMALL).table
    factor = np.median(table["flux"] / field.flux)
    pulls = (table["flux"] - factor * field.flux) / table["fluxerr"]
    assert 1.4826 * np.median(np.abs(pulls)) == pytest.approx(1, abs=0.35)


# Which objects


@pytest.mark.parametrize("method", WITH_FITS)
def test_more_passes_find_more_stars_of_a_crowd(rng, method):
    field = scattered(rng, 570, shape=(300, 320), faintest=300, brightest=1e5)
    results = [measure(field.image, method=method, passes=n, gain=GAIN) for n in (1, 2, 3)]
    matches = [match(field, r.table, 1.0) for r in results]
    n_found = [len(np.unique(star)) for _, star in matches]
    assert n_found[1] > 1.2 * n_found[0]
    assert n_found[2] > 1.02 * n_found[1]
    for (row, _), result in zip(matches, results, strict=True):
        fitted = np.isfinite(result.table["x_psf"])
        assert len(row) > 0.9 * np.count_nonzero(fitted)
    bright = field.flux > 3000
    assert np.isin(np.flatnonzero(bright), matches[2][1]).mean() > 0.9
    # Those of the first pass come first.
    np.testing.assert_allclose(
        results[1].table["x"][: len(results[0].table)], results[0].table["x"], atol=1.01
    )


@pytest.mark.parametrize("method", ["aperture", "optimal", "sep"])
def test_passes_are_for_fits_only(field, method):
    assert_same(
        measure(field.image, method=method, passes=3).table,
        measure(field.image, method=method, passes=1).table,
    )


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_the_catalogue_stay_where_they_are(rng, field, method):
    obj = Table({"name": [f"star {i}" for i in range(130)], "x": field.x, "y": field.y})
    obj.meta["telescope"] = "made up"
    bad = np.arange(0, 130, 13)
    obj["x"][bad[::2]], obj["y"][bad[1::2]] = np.nan, np.inf
    table = measure(field.image, obj=obj, method=method, psf=SMALL, passes=3).table
    assert list(table["name"]) == list(obj["name"])
    assert table.meta["telescope"] == "made up"
    np.testing.assert_array_equal(table["x"], obj["x"])
    assert np.isnan(table["flux"][bad]).all()
    assert np.isnan(table["mag"][bad]).all()
    assert (table["flags"][bad] & Flag.INVALID == Flag.INVALID).all()
    good = np.delete(np.arange(130), bad)
    assert np.isfinite(table["flux"][good]).mean() > (0.8 if method == "optimal" else 0.97)

    order = rng.permutation(130)
    permuted = measure(field.image, obj=obj[order], method=method, psf=SMALL).table
    difference = np.abs(permuted["flux"] - table["flux"][order])
    tolerance = 0.02 if method in WITH_FITS else 1e-6
    assert not (difference > tolerance * table["fluxerr"][order]).any()


@pytest.mark.parametrize("before", METHODS)
@pytest.mark.parametrize("method", METHODS)
def test_a_result_may_be_the_next_catalogue(field, method, before):
    obj = Table({"x": field.x, "y": field.y})[:20]
    first = measure(field.image, obj=obj, method=before, psf=SMALL).table
    again = measure(field.image, obj=first, method=method, psf=SMALL).table
    expected = measure(field.image, obj=obj, method=method, psf=SMALL).table
    for name in expected.colnames:
        if name != "flags":
            np.testing.assert_array_equal(again[name], expected[name], err_msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_catalogue_gives_an_empty_table(field, method):
    empty = measure(field.image, obj=Table({"x": [], "y": []}), method=method)
    full = measure(field.image, obj=Table({"x": field.x, "y": field.y}), method=method)
    assert len(empty.table) == 0
    assert empty.table.colnames == full.table.colnames


@pytest.mark.parametrize("method", METHODS)
def test_a_catalogue_without_positions(field, method):
    obj = Table({"x": [np.nan, 5.0], "y": [3.0, np.nan]})
    table = measure(field.image, obj=obj, method=method).table
    assert np.isnan(table["flux"]).all()
    assert (table["flags"] & Flag.INVALID == Flag.INVALID).all()


def test_flags_of_the_catalogue_are_kept(field):
    obj = Table({"x": field.x, "y": field.y, "flags": np.full(130, 4)})
    for method in METHODS:
        table = measure(field.image, obj=obj, method=method, psf=SMALL).table
        assert (table["flags"] & 4 == 4).all(), method


@pytest.mark.parametrize("method", ["aperture", "optimal", "sep", "psf"])
def test_filters_drop_rows_and_say_so(field, method):
    every, some = (measure(field.image, method=method, sn=sn) for sn in (None, 30))
    dropped = len(every.table) - len(some.table)
    assert dropped > 0
    assert some.notes[-1] == f"{dropped} objects dropped by the filters"


# Widths, models and radii


@pytest.mark.parametrize("method", ["aperture", "optimal", "sep", "deblended"])
def test_radii_in_pixels_are_those_in_fwhm(field, method):
    in_fwhm = measure(field.image, method=method, fwhm=3.0, aper=2.0, psf=SMALL)
    in_pixels = measure(field.image, method=method, fwhm=3.0, aper=6.0, psf=SMALL, in_pixels=True)
    assert in_fwhm.r_aper == in_pixels.r_aper == pytest.approx(6.0, rel=1e-15)
    np.testing.assert_allclose(in_pixels.table["flux"], in_fwhm.table["flux"], rtol=1e-9)


@pytest.mark.parametrize("method", ["aperture", "optimal", "sep"])
def test_annulus(field, method):
    options = {"method": method, "fwhm": 3.0, "psf": SMALL}
    plain, in_fwhm, in_pixels = (
        measure(field.image, **options, **change)
        for change in (
            {}, {"bkgann": (3, 5)}, {"bkgann": (9.0, 15.0), "aper": 3.0, "in_pixels": True},
        )
    )  # fmt: skip
    assert not np.array_equal(plain.table["flux"], in_fwhm.table["flux"])
    if method == "optimal":
        in_fwhm = measure(field.image, **options, bkgann=(3, 5), aper=1.0)
    np.testing.assert_allclose(in_pixels.table["flux"], in_fwhm.table["flux"], rtol=1e-6)


def test_the_annulus_of_sep_may_be_a_disc(field):
    assert measure(field.image, method="sep", bkgann=(0, 5)).r_aper > 0
    with pytest.raises(ValueError, match="bkgann must be a positive number, got 0"):
        measure(field.image, method="aperture", bkgann=(0, 5))


@pytest.mark.parametrize("method", ["aperture", "optimal", "sep", "deblended"])
def test_radii_in_pixels_do_not_depend_on_a_width_that_varies(field, method):
    def fwhm(x, y):
        return 3.0 + 0.5 * (x - 110) / 110

    options = {"method": method, "psf": SMALL, "aper": 4.0, "in_pixels": True}
    table = measure(field.image, fwhm=fwhm, **options).table
    centre = fwhm(*(np.array((n - 1) / 2) for n in SHAPE[::-1]))
    expected = measure(field.image, fwhm=float(centre), **options).table
    np.testing.assert_allclose(table["flux"], expected["flux"], rtol=1e-9)


def test_apertures_in_pixels_need_no_width(rng):
    noise = rng.normal(100, 3, SHAPE)
    obj = Table({"x": [50.0], "y": [60.0]})
    result = measure(noise, obj=obj, aper=4.0, bkgann=(6, 9), in_pixels=True)
    assert result.fwhm is None
    assert result.psf is None
    assert result.r_aper == 4.0
    expected = measure_objects(obj, noise, 4.0, (6, 9), backend="numpy")
    assert_same(result.table, expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_given_width_is_used(field, method):
    number = measure(field.image, method=method, fwhm=3.5)
    function = measure(field.image, method=method, fwhm=lambda x, y: 3.5 + 0 * x)
    assert number.fwhm == function.fwhm == 3.5
    np.testing.assert_allclose(number.table["flux"], function.table["flux"], rtol=1e-9)
    assert not any("FWHM of" in note for note in number.notes)


@pytest.mark.parametrize("method", ["optimal", "psf", "deblended"])
def test_a_model_in_any_form(field, tmp_path, method):
    made = make_psfex(25, 25, 1.0, 0)
    path = tmp_path / "made.psf"
    write_psf_file(path, made)
    tables = [
        measure(field.image, method=method, psf=psf).table
        for psf in (made, path, str(path), gpuphot.load_psf(path))
    ]
    for table in tables[1:]:
        np.testing.assert_allclose(table["flux"], tables[0]["flux"], rtol=1e-5)
    number = measure(field.image, method=method, psf=3.0)
    assert number.fwhm == 3.0
    assert_same(number.table, measure(field.image, method=method, psf=np.float64(3)).table)


@pytest.mark.parametrize("method", ["psf", "deblended"])
def test_a_model_without_a_width_gets_that_of_the_stars(field, method):
    known = make_psfex(25, 25, 1.0, 0)
    unknown = {key: value for key, value in known.items() if key != "fwhm"}
    fwhm = float(known["fwhm"])
    result = measure(field.image, method=method, psf=unknown, fwhm=fwhm)
    assert result.psf.fwhm == fwhm
    assert_same(result.table, measure(field.image, method=method, psf=known).table)
    estimated = measure(field.image, method=method, psf=unknown)
    assert estimated.psf.fwhm == estimated.fwhm


@pytest.mark.parametrize("method", ["aperture", "sep"])
def test_apertures_take_the_width_of_a_model(field, method):
    result = measure(field.image, method=method, psf=SMALL)
    assert result.fwhm == 3.0
    assert result.psf is None
    assert_same(result.table, measure(field.image, method=method, fwhm=3.0).table)


@pytest.mark.parametrize(("n_side", "degree"), [(2, None), (6, 1), (13, 2)])
def test_degree_of_the_model_follows_the_number_of_stars(rng, n_side, degree):
    field = isolated(rng, n_side, step=30, faintest=5e3, brightest=5e4)
    result = measure(field.image, method="optimal")
    if degree is None:
        assert result.psf.planes is None
        assert "PSF: a Gaussian" in result.notes[-1]
    else:
        assert result.psf.degree == degree
        assert f"PSF model of degree {degree} from" in result.notes[-1]
    assert result.psf.fwhm == result.fwhm


def test_degree_of_the_model_that_is_asked_for(field):
    assert measure(field.image, method="optimal", psf_degree=3).psf.degree == 3


@pytest.mark.parametrize("fwhm", [1.6, 2.0, 4.5, 7.0])
@pytest.mark.parametrize("method", ["optimal", "psf"])
def test_stars_of_all_widths(rng, method, fwhm):
    psf = make_psf(fwhm)
    field = isolated(rng, 6, int(10 * fwhm + 12), psf, faintest=2e4, brightest=2e5)
    result = measure(field.image, method=method, gain=GAIN)
    assert 0.97 < result.fwhm / fwhm < 1.12
    assert np.median(ratios(field, result.table)) == pytest.approx(1, abs=0.03)


# Pixels


@pytest.mark.parametrize("method", METHODS)
def test_background_and_noise_as_numbers_planes_and_rows(field, method):
    number, plane, row = (
        measure(field.image, method=method, bg=bg, err=err, psf=SMALL)
        for bg, err in (
            (SKY, 11.0),
            (np.full(SHAPE, SKY), np.full(SHAPE, 11.0)),
            (np.full(SHAPE[1], SKY), np.full((SHAPE[0], 1), 11.0)),
        )
    )
    for other in (plane, row):
        assert_same(other.table, number.table)
    for result in (number, plane, row):
        assert result.background.shape == result.noise.shape == SHAPE
        assert (result.background == SKY).all()
        assert (result.noise == 11).all()


@pytest.mark.parametrize("method", METHODS)
def test_gain_makes_errors_of_bright_stars_larger(field, method):
    obj = Table({"x": field.x, "y": field.y})
    plain, poisson = (
        measure(field.image, obj=obj, method=method, gain=gain, psf=SMALL).table
        for gain in (None, GAIN)
    )
    inside = (np.abs(field.x - 110) < 100) & (np.abs(field.y - 100) < 90)
    bright = (field.flux > 2e4) & inside
    assert (poisson["fluxerr"][bright] > 1.2 * plain["fluxerr"][bright]).mean() > 0.9


@pytest.mark.parametrize("method", METHODS)
def test_saturated_pixels_are_masked(field, method):
    limit = np.percentile(field.image, 99.8)
    result = measure(field.image, method=method, saturation=limit)
    np.testing.assert_array_equal(result.mask, field.image >= limit)
    masked = measure(field.image, method=method, mask=field.image >= limit)
    assert_same(result.table, masked.table)
    for off in (None, 0, 0.0):
        assert not measure(field.image, method=method, saturation=off).mask.any()


@pytest.mark.parametrize("method", METHODS)
def test_what_is_masked_has_no_influence(rng, field, method):
    mask = rng.random(SHAPE) < 0.01
    results = [
        measure(np.where(mask, value, field.image), method=method, mask=mask, gain=GAIN)
        for value in (np.nan, np.inf, 1e4, 1e12, -1e12)
    ]
    for result in results:
        np.testing.assert_array_equal(result.mask, mask)
        assert np.isfinite(result.noise).all()
        assert result.fwhm == results[0].fwhm
        np.testing.assert_array_equal(result.table["x"], results[0].table["x"])
        if method != "aperture":  # Masked pixels do count in these sums
            np.testing.assert_allclose(result.table["flux"], results[0].table["flux"], rtol=1e-12)
    assert results[0].fwhm == pytest.approx(3.1, rel=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_exposure_shifts_magnitudes_only(field, method):
    plain, divided = (
        measure(field.image, method=method, exposure=exposure).table for exposure in (None, 40)
    )
    np.testing.assert_allclose(divided["mag"], plain["mag"] + 2.5 * np.log10(40), atol=1e-13)
    assert "exposure" in divided["mag"].description
    for name in plain.colnames:
        if name != "mag":
            np.testing.assert_array_equal(divided[name], plain[name])
    assert_same(measure(field.image, method=method, exposure=0).table, plain)


CONTAINERS = {
    "quantity": lambda image, mask: image * u.adu,
    "ma": lambda image, mask: np.ma.MaskedArray(image, mask),
    "NDData": lambda image, mask: NDData(
        image, mask=mask, unit=u.adu, uncertainty=StdDevUncertainty(np.full(SHAPE, 11.0))
    ),
    "CCDData": lambda image, mask: CCDData(image, mask=mask, unit=u.adu),
}


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("method", METHODS)
def test_containers(rng, field, method, kind):
    mask = rng.random(SHAPE) < 0.005
    image = CONTAINERS[kind](field.image, mask)
    options = {"mask": mask} if kind != "quantity" else {}
    if kind == "NDData":
        options["err"] = 11.0
    result = measure(image, method=method)
    expected = measure(field.image, method=method, **options)
    unit = None if kind == "ma" else u.adu
    for name in expected.table.colnames:
        np.testing.assert_array_equal(result.table[name], expected.table[name], err_msg=name)
    for name in ("flux", "fluxerr", "flux_psf", "flux_psf_err", "peak"):
        if name in result.table.colnames:
            assert result.table[name].unit == unit
    assert result.fwhm == expected.fwhm
    assert type(result.background) is type(result.noise) is np.ndarray


@pytest.mark.parametrize("method", METHODS)
def test_planes_with_units(field, method):
    planes = {"bg": np.full(SHAPE, SKY), "err": np.full(SHAPE, 11.0)}
    expected = measure(field.image, method=method, passes=1, **planes)
    with_units = {name: plane / 1e3 * u.Unit("1000 adu") for name, plane in planes.items()}
    result = measure(field.image * u.adu, method=method, passes=1, **with_units)
    np.testing.assert_allclose(result.table["flux"], expected.table["flux"], rtol=1e-6)
    np.testing.assert_allclose(result.background, SKY, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["u2", "i2", "f4", ">i2", ">f8"])
@pytest.mark.parametrize("method", METHODS)
def test_images_of_all_kinds(field, method, dtype):
    image = np.clip(np.rint(field.image), 0, 30000).astype(dtype)
    result = measure(image, method=method)
    expected = measure(image.astype(float), method=method)
    np.testing.assert_allclose(result.table["flux"], expected.table["flux"], rtol=1e-5)
    assert result.fwhm == pytest.approx(expected.fwhm, rel=1e-9)


def test_views_and_lists(field):
    expected = measure(field.image).table
    fortran, list_ = np.asfortranarray(field.image), field.image.tolist()
    strided = np.repeat(np.repeat(field.image, 2, axis=0), 2, axis=1)[::2, ::2]
    for image in (fortran, list_, strided):
        assert_same(measure(image).table, expected)


# Difficult fields


@pytest.mark.parametrize("n", [1, 3, 12])
@pytest.mark.parametrize("method", METHODS)
def test_fields_of_few_stars(rng, method, n):
    x, y = 30 + 40 * np.arange(n) % 160 + rng.uniform(-2, 2, n), 30 + 45 * (np.arange(n) // 4)
    field = expose(rng, make_psf(3.0, None), x, y, np.full(n, 3e4), SHAPE)
    result = measure(field.image, method=method)
    ratio = ratios(field, result.table)
    assert len(ratio) == n
    assert result.fwhm == pytest.approx(3, rel=0.05)
    total = 1 if method in ("psf", "optimal") else 1 - 2.0 ** (-4 * (result.fwhm / 3) ** 2)
    assert np.median(ratio) == pytest.approx(total, abs=0.04)


def test_half_the_stars_are_saturated(rng):
    field = scattered(rng, 130, faintest=3e4, brightest=3e6)
    limit = np.median(field.flux) / 15
    image = np.minimum(field.image, limit)
    result = measure(image, saturation=limit)
    assert result.fwhm == pytest.approx(3.1, rel=0.06)
    for method in METHODS:
        assert len(measure(image, method=method, saturation=limit, gain=GAIN).table) > 40


@pytest.mark.parametrize("method", METHODS)
def test_a_steep_background(rng, method):
    field = isolated(rng, faintest=2e4)
    row, column = np.indices(field.image.shape) / 288
    image = field.image + 2000 * column + 1500 * row**2
    result = measure(image, method=method, gain=GAIN)
    expected = 1 if method in ("psf", "optimal") else enclosed(result.fwhm / 3.0, 3.5)
    assert np.median(ratios(field, result.table)) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_the_level_of_the_sky_does_not_matter(field, method):
    expected, negative = (
        measure(field.image + level, method=method, passes=1) for level in (0.0, -1024.0)
    )
    assert len(expected.table) == len(negative.table)
    error = np.where(expected.table["fluxerr"] > 0, expected.table["fluxerr"], np.nan)
    difference = (negative.table["flux"] - expected.table["flux"]) / error
    assert np.nanpercentile(np.abs(difference), 95) < 0.05


@pytest.mark.parametrize("method", METHODS)
def test_an_extremely_crowded_field(rng, method):
    field = scattered(rng, 800, shape=(120, 130))
    result = measure(field.image, method=method, gain=GAIN)
    assert 2.5 < result.fwhm < 7  # Hardly any star stands alone
    assert np.isfinite(result.table["flux"]).mean() > 0.8


@pytest.mark.parametrize("method", METHODS)
def test_cosmic_rays_do_not_change_the_width(rng, method):
    field = isolated(rng, faintest=2e4)
    image = field.image.copy()
    image[rng.integers(0, 288, 200), rng.integers(0, 288, 200)] += 10 ** rng.uniform(3, 4.5, 200)
    clean, hit = (measure(each, method=method, gain=GAIN) for each in (field.image, image))
    assert hit.fwhm == pytest.approx(clean.fwhm, rel=0.02)
    assert np.median(ratios(field, hit.table)) == pytest.approx(
        np.median(ratios(field, clean.table)), abs=0.03
    )


def test_galaxies_do_not_change_the_width(rng):
    field = isolated(rng, faintest=1e4)
    x, y = rng.uniform(10, 278, (2, 40))
    image = gpuphot.place_psf_stamps(field.image, make_psf(8.0, 2.5), x, y, 8e4)
    assert measure(image).fwhm == pytest.approx(measure(field.image).fwhm, rel=0.03)


# What is said


@pytest.mark.parametrize("method", METHODS)
def test_notes_tell_what_was_decided(field, method, capsys):
    messages = []
    result = measure(field.image, method=method, verbose=messages.append)
    assert result.notes[0].endswith("objects detected at 3 sigma")
    assert result.notes[1].startswith(f"FWHM of {result.fwhm:.2f} pixels from ")
    assert set(result.notes) <= set(messages)
    assert capsys.readouterr().out == ""
    measure(field.image, method=method, verbose=True)
    assert result.notes[0] in capsys.readouterr().out


def test_stars_as_the_model_fits_them(field):
    for method in METHODS:
        result = measure(field.image, method=method)
        stars = result.modelled_stars()
        if method in ("aperture", "sep"):
            assert stars is None
            continue
        names = ("x", "y", "flux") if method == "optimal" else ("x_psf", "y_psf", "flux")
        if method == "deblended":
            names = ("x_psf", "y_psf", "flux_psf")
        for values, name in zip(stars, names, strict=True):
            np.testing.assert_array_equal(values, result.table[name])


# Bad input

STAR = gpuphot.place_psf_stamps(
    np.random.default_rng(0).normal(100, 3, (80, 90)), 3.0, [40, 20, 60], [40, 50, 20], 2e4
)


def fail(x, y):
    raise RuntimeError("no width here")


REFUSED = {
    "method": ({"method": "magic"}, ValueError, "method must be one of 'aperture'.*got 'magic'"),
    "method None": ({"method": None}, ValueError, "method must be one of"),
    "option": ({"radius": 3}, TypeError, "radius does not go with method='aperture'"),
    "option of another method": (
        {"method": "psf", "bkg_order": 1},
        TypeError,
        "bkg_order does not go with method='psf': measure_objects_sep does not take it",
    ),
    "option that is set here": ({"optimal": True}, TypeError, "optimal does not go with"),
    "bkgann of fits": (
        {"method": "psf", "bkgann": (3, 5)},
        ValueError,
        "bkgann has no effect with method='psf'",
    ),
    "bkgann of deblending": (
        {"method": "deblended", "bkgann": (3, 5)},
        ValueError,
        "bkgann has no effect with method='deblended'",
    ),
    "aper of fits": ({"method": "psf", "aper": 2}, ValueError, "aper has no effect with"),
    "aper negative": ({"aper": -1}, ValueError, "aper must be a positive number, got -1"),
    "aper zero": ({"aper": 0, "in_pixels": True}, ValueError, "aper must be .*got 0"),
    "aper NaN": ({"aper": np.nan}, ValueError, "aper must be a positive number, got nan"),
    "aper string": ({"aper": "3"}, TypeError, "aper must be a positive number, got '3'"),
    "aper huge": ({"aper": 1e300}, ValueError, "aper must be a radius that pixels can have"),
    "bkgann one": ({"bkgann": (3,)}, ValueError, "bkgann must be two radii .*got \\(3,\\)"),
    "bkgann number": ({"bkgann": 3}, ValueError, "bkgann must be two radii .*got 3"),
    "bkgann strings": ({"bkgann": "ab"}, ValueError, "bkgann must be two radii .*got 'ab'"),
    "bkgann reversed": (
        {"bkgann": (5, 3), "in_pixels": True},
        ValueError,
        "bkgann must have an outer radius above the inner one, got \\(5, 3\\)",
    ),
    "in_pixels": ({"in_pixels": np.ones(2)}, TypeError, "in_pixels must be True or False"),
    "threshold zero": ({"threshold": 0}, ValueError, "threshold must be a positive number, got 0"),
    "threshold NaN": ({"threshold": np.nan}, ValueError, "threshold must be .*got nan"),
    "threshold string": ({"threshold": "3"}, TypeError, "threshold must be .*got '3'"),
    "threshold far too high": (
        {"threshold": 1e9},
        ValueError,
        r"image must have objects to detect, found none at threshold=1e\+09$",
    ),
    "passes zero": ({"passes": 0}, ValueError, "passes must be an integer of at least 1, got 0"),
    "passes fraction": ({"passes": 1.5}, TypeError, "passes must be an integer .*got 1.5"),
    "psf_degree zero": (
        {"method": "psf", "psf_degree": 0},
        ValueError,
        "psf_degree must be an integer of at least 1, got 0",
    ),
    "psf_degree negative": ({"psf_degree": -1}, ValueError, "psf_degree must be .*got -1"),
    "psf_degree fraction": ({"psf_degree": 1.5}, TypeError, "psf_degree must be .*got 1.5"),
    "saturation negative": ({"saturation": -1}, ValueError, "saturation must be .*got -1"),
    "saturation NaN": ({"saturation": np.nan}, ValueError, "saturation must be .*got nan"),
    "saturation array": ({"saturation": np.ones(2)}, TypeError, "saturation must be a number"),
    "saturation of everything": (
        {"saturation": 1e-9},
        ValueError,
        "image must have objects to detect, found none",
    ),
    "exposure negative": ({"exposure": -1}, ValueError, "exposure must be .*got -1"),
    "exposure NaN": ({"exposure": np.nan}, ValueError, "exposure must be .*got nan"),
    "fwhm negative": ({"fwhm": -3}, ValueError, "fwhm must be a positive number, got -3"),
    "fwhm string": ({"fwhm": "3"}, TypeError, "fwhm must be a positive number, got '3'"),
    "fwhm that fails": ({"fwhm": fail}, TypeError, "fwhm must .*RuntimeError: no width here"),
    "psf zero": ({"psf": 0}, ValueError, "the FWHM of psf must be a positive number, got 0"),
    "psf list": ({"psf": [3]}, TypeError, "psf must be a PSFModel.*got list"),
    "psf missing": ({"psf": "/nowhere/x.psf"}, OSError, "/nowhere/x.psf"),
    "threshold too high for the width": (
        {"obj": Table({"x": [9.0], "y": [9.0]}), "threshold": 1e9},
        ValueError,
        "found none at threshold=.*; give fwhm",
    ),
    "gain": ({"gain": -1}, ValueError, "gain must be a positive number or None, got -1"),
    "bg_size": ({"bg_size": 0}, ValueError, "bg_size must be an integer of at least 1, got 0"),
    "backend": ({"backend": "torch"}, ValueError, "backend must be one of numpy, cupy"),
    "mask": ({"mask": np.ones(3)}, ValueError, "mask must be .*got shape \\(3,\\)"),
    "all masked": ({"mask": True}, ValueError, "image must have objects to detect"),
    "bg": ({"bg": "sky"}, TypeError, "bg must be an array of real numbers, got 'sky'"),
    "err": ({"err": np.ones((2, 2))}, ValueError, "err must be .*got shape \\(2, 2\\)"),
    "obj": ({"obj": [1, 2]}, TypeError, "obj must be an astropy Table.*got list"),
    "obj without y": ({"obj": Table({"x": [1.0]})}, ValueError, "obj must have columns"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    options, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        measure(STAR, **options)


NO_OBJECTS = "image must have objects to detect, found none"
IMAGES = {
    "3-D": (np.ones((2, 9, 9)), ValueError, "image must be a 2-D array.*got shape \\(2, 9, 9\\)"),
    "1-D": (np.ones(9), ValueError, "image must be a 2-D array"),
    "empty": (np.ones((0, 9)), ValueError, "image must be a 2-D array with at least one pixel"),
    "None": (None, TypeError, "image must be an array of real numbers, got NoneType"),
    "string": ("image.fits", TypeError, "image must be an array of real numbers"),
    "complex": (np.ones((9, 9), complex), TypeError, "image must be an array of real numbers"),
    "NaN": (np.full((80, 90), np.nan), ValueError, NO_OBJECTS),
    "constant": (np.full((80, 90), 7.0), ValueError, NO_OBJECTS),
    "zeros": (np.zeros((80, 90), np.uint16), ValueError, NO_OBJECTS),
    "5 x 5": (np.arange(25.0).reshape(5, 5), ValueError, NO_OBJECTS),
    "1 x 1": (np.ones((1, 1)), ValueError, NO_OBJECTS),
    "1 x 300": (STAR.ravel()[None, :300], ValueError, NO_OBJECTS),
    "300 x 1": (STAR.ravel()[:300, None], ValueError, NO_OBJECTS),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", IMAGES)
def test_images_that_are_refused(case, method):
    image, kind, message = IMAGES[case]
    with pytest.raises(kind, match=message):
        measure(image, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_an_image_without_a_star_that_has_a_width(rng, method):
    image = rng.normal(100, 3, (80, 90))
    image[20:24:3, 30:70:10] += 5e4  # Single pixels
    with pytest.raises(ValueError, match="fwhm must be given, for the image has no star"):
        measure(image, method=method)
    assert np.isfinite(measure(image, method=method, fwhm=1.2).table["flux"]).any()


@pytest.mark.parametrize("backend", ["cupy"], indirect=True)
@pytest.mark.parametrize("name", ["image", "mask", "bg", "err"])
def test_arrays_on_a_device_are_refused(ops, backend, name):
    arguments = {"image": STAR, name: ops.to_device(STAR)}
    with pytest.raises(TypeError, match=f"{name} must be an array on the host"):
        measure(**arguments, backend=None)
