"""measure_objects: the table it returns."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from astropy import units as u
from astropy.table import MaskedColumn, QTable, Table
from astropy.utils.masked import Masked

import gpuphot
from gpuphot import Flag

from .psfs import make_psf
from .scenes import make_scene

MEASURED = ["bg_local", "npix_aper", "bg_fluxerr", "flux", "fluxerr", "mag", "magerr"]
OPTIMAL = ["npix_optimal", "chi2_optimal", "norm_optimal"]
GROUPS = ["group_id", "group_size"]
FITTED = [*MEASURED[:5], *OPTIMAL, *GROUPS, *MEASURED[5:]]
INTEGERS = ["flags", "npix_optimal", *GROUPS]
FLAT = np.full((60, 80), 3.0)


@pytest.fixture
def measure(backend):
    """measure_objects on the backend under test, on a flat image of known noise."""

    def call(obj, image=FLAT, **options):
        options = {"bg": 0.0, "err": 1.0, "aper": 4.0, **options}
        return gpuphot.measure_objects(obj, image, backend=backend, **options)

    return call


@pytest.fixture
def table():
    return Table({"name": ["a", "b", "c"], "x": [20.0, 40.5, 60.2], "y": [30.0, 30.5, 20.9]})


def test_columns_and_dtypes(measure, table):
    result = measure(table, bkgann=(6, 9), centroid_iter=1)
    assert result.colnames == ["name", "x", "y", "x_orig", "y_orig", "flags", *MEASURED]
    assert result["flags"].dtype == np.int64
    assert all(result[name].dtype == np.float64 for name in ("x", "y", *MEASURED))
    assert all(result[name].info.description for name in ("flags", *MEASURED))
    assert measure(table).colnames == ["name", "x", "y", "flags", *MEASURED]


@pytest.mark.parametrize("n", [0, 3])
def test_columns_and_dtypes_of_optimal_extraction(measure, table, n):
    """Also of a table without rows, and of one that filters have left without rows."""
    options = {"optimal": True, "fwhm": 2.0, "aper": 2.0}
    result = measure(table[:n], **options)
    assert result.colnames == ["name", "x", "y", "flags", *FITTED]
    alone = measure(table[:n], group_sources=False, **options)
    assert alone.colnames == [name for name in result.colnames if name not in GROUPS]
    nothing = measure(table[:n], sn=1e9, keep_negative=False, **options)
    assert len(nothing) == 0
    by_width = measure(table[:n], **{**options, "fwhm": lambda x, y: x * 0 + 2.0})
    for each in (result, alone, nothing, by_width, measure(table[:n], bkgann=(3, 5), **options)):
        for name in each.colnames[3:]:
            assert each[name].dtype == (np.int64 if name in INTEGERS else np.float64), name
            assert each[name].info.description
    moved = measure(table[:n], centroid_iter=1, centroid_method="psf", **options)
    assert moved.colnames == ["name", "x", "y", "x_orig", "y_orig", "flags", *FITTED]


def test_values_on_a_flat_image(measure, table):
    area = np.pi * 16
    result = measure(table, bkgann=(6, 9), err=2.0)
    np.testing.assert_allclose(result["flux"], 0, atol=1e-12)
    np.testing.assert_allclose(result["bg_local"], 3, rtol=1e-15)
    result = measure(table, err=2.0)
    np.testing.assert_allclose(result["flux"], 3 * area, rtol=1e-14)
    np.testing.assert_allclose(result["fluxerr"], 2 * np.sqrt(area), rtol=1e-14)
    np.testing.assert_allclose(result["npix_aper"], area, rtol=1e-14)
    np.testing.assert_allclose(result["mag"], -2.5 * np.log10(3 * area), rtol=1e-14)
    np.testing.assert_allclose(
        result["magerr"], 2.5 / np.log(10) * 2 / 3 / np.sqrt(area), rtol=1e-14
    )
    assert not np.any(result["bg_local"])
    assert not np.any(result["bg_fluxerr"])
    assert not np.any(result["flags"])


def test_local_background_keeps_its_fraction(measure, table):
    """The reference truncates it to an integer."""
    result = measure(table, image=np.full((60, 80), 0.9), bkgann=(6, 9))
    np.testing.assert_allclose(result["bg_local"], 0.9, rtol=1e-15)
    np.testing.assert_allclose(result["flux"], 0, atol=1e-12)


def test_rows_that_cannot_be_measured_do_not_cost_the_others(measure):
    mask = np.zeros(FLAT.shape, bool)
    mask[40:, 50:] = True
    x = MaskedColumn([20, np.nan, 1e6, -5.0, 70, 30, 40], mask=[0, 0, 0, 0, 0, 1, 0])
    table = Table({"x": x, "y": [30.0, 30, 30, 30, 52, 30, np.inf]})
    for order in (0, 1, 2):
        result = measure(table, mask=mask, bkgann=(5.0, 7.0), bkg_order=order)
        bad = [False, True, True, True, True, True, True]
        assert np.isnan(result["flux"]).tolist() == bad
        assert np.isnan(result["fluxerr"]).tolist() == bad
        assert np.isnan(result["mag"][1:]).all()
        assert (np.asarray(result["flags"]) & Flag.INVALID != 0).tolist() == bad
        assert result["flux"][0] == pytest.approx(0, abs=1e-9)
        assert np.isnan(result["bg_local"]).tolist() == [False, True, True, False, True, True, True]


def test_masked_and_cut_apertures(measure):
    mask = np.zeros(FLAT.shape, bool)
    mask[30, 22] = True
    result = measure(Table({"x": [20.0, 0.0], "y": [30.0, 30.0]}), mask=mask)
    assert result["flags"].tolist() == [Flag.MASKED, 0]
    assert result["npix_aper"][0] == pytest.approx(np.pi * 16)
    assert result["npix_aper"][1] < np.pi * 16


def test_existing_columns_of_optimal_extraction_are_replaced_where_they_stand(measure, table):
    for name in (*GROUPS, *OPTIMAL):
        table[name] = np.float32([7, 8, 9])
    result = measure(table, optimal=True, psf=2.5)
    assert result.colnames[: len(table.colnames)] == table.colnames
    fresh = measure(table["name", "x", "y"], optimal=True, psf=2.5)
    for name in (*GROUPS, *OPTIMAL):
        assert result[name].dtype == (np.int64 if name in INTEGERS else np.float64)
        np.testing.assert_array_equal(result[name], fresh[name])
    again = measure(result, optimal=True, psf=2.5, group_sources=False)
    assert again.colnames == result.colnames
    np.testing.assert_array_equal(again["group_id"], result["group_id"])


def test_existing_columns_are_replaced_where_they_stand(measure, table):
    table["mag"] = [1, 2, 3]
    table.add_column(np.array([1, 2, 3], np.uint8), name="flags", index=0)
    table["flux"] = np.float32([1, 2, 3])
    table["bg_local"] = [7, 7, 7]
    mask = np.zeros(FLAT.shape, bool)
    mask[30, 20] = True
    result = measure(table, mask=mask)
    assert result.colnames[: len(table.colnames)] == table.colnames
    assert result["flags"].dtype == np.int64
    assert result["flags"].tolist() == [0x201, 2, 3]
    for name in ("flux", "mag", "bg_local"):
        assert result[name].dtype == np.float64
    assert not np.any(result["bg_local"])


def test_quantity_and_masked_quantity_columns(measure, table):
    expected = measure(table)
    quantities = QTable(table)
    quantities["x"] = quantities["x"] * u.pix
    quantities["flux"] = [1, 2, 3] * u.Jy
    result = measure(quantities, centroid_iter=1)
    assert result["x"].unit == u.pix
    np.testing.assert_array_equal(result["flux"], measure(table, centroid_iter=1)["flux"])
    quantities["x"] = Masked(quantities["x"], mask=[False, True, False])
    result = measure(quantities)
    assert np.isnan(result["flux"]).tolist() == [False, True, False]
    assert result["flux"][0] == expected["flux"][0]


@pytest.mark.parametrize("dtype", [int, np.uint8, ">i2", np.float32, ">f8"])
def test_positions_of_any_dtype(measure, rng_image, dtype):
    table = Table({"x": np.array([20, 40, 61], dtype), "y": np.array([30, 31, 20], dtype)})
    floats = Table({"x": [20.0, 40, 61], "y": [30.0, 31, 20]})
    expected = measure(floats, rng_image, centroid_iter=2)
    result = measure(table, rng_image, centroid_iter=2)
    for name in ("x", "y", *MEASURED):
        np.testing.assert_array_equal(result[name], expected[name])
    assert result["x_orig"].dtype == table["x"].dtype


@pytest.fixture
def rng_image():
    return np.random.default_rng(5).normal(10, 5, FLAT.shape)


def test_astropy_masked_arrays_contribute_their_masks(measure, table, rng_image):
    mask = np.random.default_rng(6).random(FLAT.shape) < 0.05
    expected = measure(table, rng_image, mask=mask, bkgann=(5, 9))
    for arguments in ({"image": Masked(rng_image, mask)}, {"mask": Masked(mask, mask)}):
        result = measure(table, **{"image": rng_image, "bkgann": (5, 9), **arguments})
        np.testing.assert_array_equal(result["flux"], expected["flux"])
        np.testing.assert_array_equal(result["flags"], expected["flags"])
    planes = Masked(np.ones(FLAT.shape), mask=np.ones(FLAT.shape, bool))
    assert np.isnan(measure(table, rng_image, bg=planes)["flux"]).all()


def test_columns_of_unusual_kinds(measure, table, rng_image):
    expected = measure(table, rng_image, centroid_iter=1)
    unusual = QTable(table)
    unusual["flags"] = [1, 2, 4] * u.one
    unusual["x"] = Masked(np.asarray(unusual["x"]), mask=[False] * 3)
    result = measure(unusual, rng_image, centroid_iter=1)
    np.testing.assert_array_equal(result["x"], expected["x"])
    assert result["flags"].tolist() == [1, 2, 4]
    table["flux"] = [1, 2, 3]
    table.add_index("flux")
    result = measure(table, rng_image)
    np.testing.assert_array_equal(result["flux"], measure(table["x", "y"], rng_image)["flux"])
    assert table.indices


def test_masked_image_contributes_its_mask(measure, table, rng_image):
    mask = np.random.default_rng(6).random(FLAT.shape) < 0.05
    other = np.random.default_rng(7).random(FLAT.shape) < 0.05
    masked = np.ma.MaskedArray(rng_image, mask)
    for name in ("flux", "flags", "bg_local"):
        np.testing.assert_array_equal(
            measure(table, masked, mask=other, bkgann=(5, 9))[name],
            measure(table, rng_image, mask=mask | other, bkgann=(5, 9))[name],
        )


def test_structured_array_instead_of_a_table(measure, table, rng_image):
    result = measure(table.as_array(), rng_image)
    np.testing.assert_array_equal(result["flux"], measure(table, rng_image)["flux"])


def test_empty_table_gets_all_columns_and_maps(measure, backend):
    empty = Table({"x": [], "y": []})
    image = make_scene(1).image
    options = {"bkgann": (5, 9), "centroid_iter": 2, "bg": None, "err": None}
    result, bg, err = measure(empty, image, get_bg=True, **options)
    assert len(result) == 0
    assert result.colnames == ["x", "y", "x_orig", "y_orig", "flags", *MEASURED]
    assert bg.shape == err.shape == image.shape


def test_get_bg_returns_the_estimate_and_the_noise_used(measure, table, rng_image):
    err = np.full(FLAT.shape, 5.0)
    _, bg, noise = measure(table, rng_image, bg=100.0, err=err, get_bg=True)
    assert noise is err
    assert abs(np.median(bg) - 10) < 1
    _, _, noise = measure(table, rng_image, err=None, gain=1.0, get_bg=True)
    assert noise.shape == FLAT.shape


def test_repeated_measurement_keeps_flags_and_replaces_original_positions(measure, rng_image):
    table = Table({"x": [20.0], "y": [30.0], "flags": [4]})
    once = measure(table, rng_image, centroid_iter=1)
    twice = measure(once, rng_image, centroid_iter=1)
    assert twice["flags"].tolist() == [4]
    assert twice["x_orig"].tolist() == once["x"].tolist()
    assert twice.colnames == once.colnames


def test_nothing_of_the_caller_is_modified(backend):
    scene = make_scene(3)
    bg, err = np.full(scene.image.shape, 1.0), np.full(scene.image.shape, 2.0)
    table = scene.table.copy()
    table["flags"], table["flux"] = 1, 2
    arguments = (table, scene.image, scene.mask, bg, err)
    before = copy.deepcopy(arguments)
    psf = make_psf(25, 25, 1.0, 2)
    planes = psf["data"].copy()
    for given in ({"bg": bg, "err": err}, {}, {"optimal": True, "psf": psf}):
        gpuphot.measure_objects(
            table, scene.image, mask=scene.mask, bkgann=(5, 9), centroid_iter=2, gain=1.0,
            get_bg=True, sn=3, backend=backend, **given,
        )  # fmt: skip
    np.testing.assert_array_equal(psf["data"], planes)
    for one, other in zip(arguments[1:], before[1:], strict=True):
        np.testing.assert_array_equal(one, other)
    assert table.colnames == before[0].colnames
    assert all(np.array_equal(table[name], before[0][name], equal_nan=True) for name in "xy")
    assert not table.meta


def test_result_shares_no_memory_with_the_table(measure, table):
    result = measure(table)
    result["x"][0] = -1
    result["name"][0] = "z"
    table.meta["list"] = [1]
    for options in ({}, {"keep_negative": False}):
        measure(table, **options).meta["list"].append(2)
    assert table.meta["list"] == [1]
    assert table["x"][0] == 20
    assert table["name"][0] == "a"


def test_filters(measure, rng_image):
    table = Table({"x": np.linspace(5, 75, 40), "y": np.full(40, 30.0)})
    everything = measure(table, rng_image - 10, err=3.0)
    positive = measure(table, rng_image - 10, err=3.0, keep_negative=False)
    assert 0 < len(positive) < 40
    assert len(positive) == np.sum(everything["flux"] > 0)
    assert len(measure(table, rng_image, err=3.0, sn=1e9)) == 0
    assert len(measure(table, rng_image, err=3.0, sn=0)) == 40


def test_filters_act_on_optimal_fluxes(measure, rng_image):
    """Groups keep their numbers and sizes if members are dropped."""
    table = Table({"x": np.linspace(8, 72, 40), "y": np.full(40, 30.0)})
    options = {"optimal": True, "psf": 2.5, "err": 3.0, "grouper_radius": 1.7}
    everything = measure(table, rng_image - 10, **options)
    positive = measure(table, rng_image - 10, keep_negative=False, **options)
    kept = np.asarray(everything["flux"]) > 0
    assert 0 < np.count_nonzero(kept) < 40
    significant = measure(table, rng_image - 10, sn=1.0, **options)
    magerr = np.asarray(everything["magerr"])
    for each, rows in ((positive, kept), (significant, kept & (magerr < 1))):
        assert 0 < len(each) == np.count_nonzero(rows)
        for name in each.colnames:
            np.testing.assert_array_equal(each[name], everything[name][rows])
    assert set(positive["group_size"]) == {40}


def test_meta_records_what_was_fitted(measure, table):
    def parameters(**options):
        return json.loads(measure(table, **options).meta["gpuphot"])["parameters"]

    recorded = parameters(optimal=True, psf=2.5, aper=3.0)
    assert recorded["optimal"] is recorded["group_sources"] is True
    assert recorded["grouper_radius"] == 6.0
    assert recorded["psf"] == 2.5
    recorded = parameters(fwhm=2.0, aper=1.5, optimal=np.True_, group_sources=0, grouper_radius=-1)
    assert (recorded["aper"], recorded["grouper_radius"]) == (3.0, 0.0)
    assert recorded["optimal"] is True
    assert recorded["group_sources"] is False
    assert recorded["psf"] is None
    assert parameters(psf=make_psf(25, 25, 1.0, 0))["psf"] == "<dict>"


def test_meta_records_how_the_table_was_made(measure, backend, table, tmp_path):
    table.meta["observer"] = "me"
    result = measure(
        table, bkgann=np.array([5, 9]), fwhm=lambda x, y: 2.0, gain=np.inf, aper=np.longdouble(2)
    )
    record = json.loads(result.meta["gpuphot"])
    assert record["version"] == gpuphot.__version__
    assert record["backend"] == gpuphot.resolve_backend(backend).name
    assert record["device"]
    assert record["parameters"]["aper"] == 4
    assert record["parameters"]["bkgann"] == [10, 18]
    assert record["parameters"]["gain"] == "inf"
    assert result.meta["observer"] == "me"
    for suffix in ("fits", "ecsv"):
        result.write(tmp_path / f"table.{suffix}")
        meta = Table.read(tmp_path / f"table.{suffix}").meta
        assert json.loads({k.lower(): v for k, v in meta.items()}["gpuphot"]) == record


def test_verbose_prints_or_calls(measure, table, capsys):
    messages = []
    measure(table, verbose=messages.append, bkgann=(5, 9), centroid_iter=2, bg=None)
    assert any("3 objects" in message for message in messages)
    assert capsys.readouterr().out == ""
    measure(table, verbose=True)
    assert "Aperture" in capsys.readouterr().out
    for grouped, how in ((False, "each on its own"), (True, "grouped")):
        measure(table, verbose=messages.append, optimal=True, psf=2.5, group_sources=grouped)
        assert any("Optimal" in message and how in message for message in messages)
    measure(table)
    assert capsys.readouterr().out == ""


def test_images_smaller_than_a_window(measure):
    for shape in ((1, 1), (1, 30), (3, 2)):
        image = np.ones(shape)
        table = Table({"x": [0.0], "y": [0.0]})
        fitted = measure(Table({"x": [0.0, 1.0], "y": [0.0, 0.0]}), image, optimal=True, psf=0.2)
        assert fitted["flags"].tolist() == [Flag.NO_FIT] * 2
        result = measure(table, image, bkgann=(1, 4), centroid_iter=2)
        assert np.isfinite(result["npix_aper"][0])
        result = measure(table, image, bg=None, err=None)
        assert result["flux"][0] == pytest.approx(0, abs=1e-12)
