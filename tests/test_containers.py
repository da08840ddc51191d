"""Images, planes and catalogues in the containers of other packages give what plain arrays give."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.nddata import (
    CCDData,
    InverseVariance,
    NDData,
    NDDataRef,
    StdDevUncertainty,
    UnknownUncertainty,
    VarianceUncertainty,
)
from astropy.table import Column, MaskedColumn, QTable, Table
from astropy.utils.masked import Masked

import gpuphot
from gpuphot import Flag
from gpuphot.detect import detect_objects

SHAPE = 70, 80
X, Y = np.array([20.25, 40.5, 61.0]), np.array([30.5, 25.0, 44.75])
FLUXES = {
    "bg_local", "bg_fluxerr", "flux", "fluxerr", "flux_ap_raw", "flux_model", "flux_total_model",
    "flux_neighbour_err",
}  # fmt: skip


class Planes:
    """Read-only pixels of all kinds."""

    def __init__(self, rng):
        stars = gpuphot.place_psf_stamps(np.full(SHAPE, 100.0), 3.0, X, Y, 5000.0)
        self.image = rng.normal(stars, 3)
        self.mask = rng.random(SHAPE) < 0.02
        self.bg = rng.normal(100, 0.5, SHAPE)
        self.err = rng.uniform(2, 4, SHAPE)
        for plane in vars(self).values():
            plane.setflags(write=False)


@pytest.fixture
def planes(rng):
    return Planes(rng)


def table():
    return Table({"x": X, "y": Y})


def by_objects(image, **options):
    return gpuphot.measure_objects(table(), image, bkgann=(6, 10), **options)


def by_sep(image, **options):
    return gpuphot.measure_objects_sep(table(), image, bkgann=(6, 10), **options)


def by_deblending(image, **options):
    fluxes = {"flux_seed": np.full(3, 4000.0), "flux_psf": np.full(3, 5000.0)}
    return gpuphot.measure_aperture_deblended(
        image, X, Y, 3, 3.0, flux_psf_err=np.ones(3), diagnostics=True, **fluxes, **options
    )


MEASURE = {"objects": by_objects, "sep": by_sep, "deblended": by_deblending}


def assert_same(result, expected, unit=None):
    """To the last bit, and the unit is where it belongs."""
    assert result.colnames == expected.colnames
    for name in expected.colnames:
        values = getattr(result[name], "value", result[name])
        np.testing.assert_array_equal(values, expected[name], name)
        if name not in ("x", "y", "x_orig", "y_orig"):
            assert result[name].info.unit == (unit if name in FLUXES else None), name


def on_disk(image, folder, **keywords):
    path = folder / "image.fits"
    fits.writeto(path, np.asarray(image))
    return fits.getdata(path, **keywords)


def memory_map(image, folder):
    image.tofile(folder / "image.raw")
    return np.memmap(folder / "image.raw", image.dtype, "r", shape=image.shape)


# What it is, the same in plain arrays (arguments that are used along), and the unit of the fluxes.
IMAGES = {
    "read-only": (lambda p, _: p.image, (), None),
    "big-endian": (lambda p, _: p.image.astype(">f8"), (), None),
    "list": (lambda p, _: p.image.tolist(), (), None),
    "memory map": (lambda p, folder: memory_map(p.image, folder), (), None),
    "FITS memory map": (lambda p, folder: on_disk(p.image, folder, memmap=True), (), None),
    "FITS": (lambda p, folder: on_disk(p.image, folder, memmap=False), (), None),
    "DataFrame": (lambda p, _: pd.DataFrame(p.image), (), None),
    "numpy.ma": (lambda p, _: np.ma.MaskedArray(p.image, p.mask), ("mask",), None),
    "numpy.ma without mask": (lambda p, _: np.ma.MaskedArray(p.image), (), None),
    "Masked": (lambda p, _: Masked(p.image, p.mask), ("mask",), None),
    "Quantity": (lambda p, _: p.image << u.adu, (), u.adu),
    "Quantity, an unknown unit": (
        lambda p, _: p.image << u.Unit("fnord", parse_strict="silent"),
        (),
        u.Unit("fnord", parse_strict="silent"),
    ),
    "Quantity, a number": (lambda p, _: p.image << u.one, (), None),
    "Quantity, surface brightness": (lambda p, _: p.image << u.MJy / u.sr, (), u.MJy / u.sr),
    "Masked Quantity": (lambda p, _: Masked(p.image << u.adu, p.mask), ("mask",), u.adu),
    "Quantity in numpy.ma": (
        lambda p, _: np.ma.MaskedArray(p.image << u.adu, p.mask), ("mask",), u.adu,
    ),
    "Column": (lambda p, _: Column(p.image, unit="Jy"), (), u.Jy),
    "NDData": (lambda p, _: NDData(p.image), (), None),
    "NDData of numpy.ma": (
        lambda p, _: NDData(np.ma.MaskedArray(p.image, p.mask)), ("mask",), None,
    ),
    "NDData of a Quantity": (lambda p, _: NDData(p.image << u.Jy, mask=p.mask), ("mask",), u.Jy),
    "NDData, a mask of integers": (lambda p, _: NDData(p.image, mask=2 * p.mask), ("mask",), None),
    "NDDataRef": (lambda p, _: NDDataRef(p.image, mask=p.mask, unit="ct"), ("mask",), u.ct),
    "CCDData": (
        lambda p, _: CCDData(
            p.image, mask=p.mask, unit="adu", uncertainty=StdDevUncertainty(p.err)
        ),
        ("mask", "err"),
        u.adu,
    ),
    "CCDData, a number": (lambda p, _: CCDData(p.image, unit=""), (), None),
    "CCDData, noise in another unit": (
        lambda p, _: CCDData(
            p.image, unit="Jy", uncertainty=StdDevUncertainty(p.err * 1000, unit="mJy")
        ),
        ("err in units of 1/1000",),
        u.Jy,
    ),
    "variances": (
        lambda p, _: NDData(p.image, unit="adu", uncertainty=VarianceUncertainty(p.err)),
        ("root of err",),
        u.adu,
    ),
    "inverse variances": (
        lambda p, _: NDData(p.image, unit="adu", uncertainty=InverseVariance(p.err)),
        ("root of 1 / err",),
        u.adu,
    ),
}  # fmt: skip
DERIVED = {
    "err in units of 1/1000": ("err", lambda err: u.mJy.to(u.Jy, err * 1000)),
    "root of err": ("err", np.sqrt),
    "root of 1 / err": ("err", lambda err: np.sqrt(1 / err)),
}


def in_plain_arrays(planes, names):
    options = {}
    for each in names:
        name, derive = DERIVED.get(each, (each, np.asarray))
        options[name] = derive(getattr(planes, name))
    return options


@pytest.mark.parametrize("measure", MEASURE)
@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.fresh_seed
def test_images(planes, tmp_path, kind, measure):
    make, used, unit = IMAGES[kind]
    options = {"backend": "numpy"}
    result = MEASURE[measure](make(planes, tmp_path), **options)
    plain = in_plain_arrays(planes, used)
    assert_same(result, MEASURE[measure](planes.image, **plain, **options), unit)


@pytest.mark.parametrize("kind", ["CCDData", "Masked Quantity", "inverse variances", "numpy.ma"])
@pytest.mark.fresh_seed
def test_images_on_both_backends(planes, tmp_path, backend, kind):
    make, used, unit = IMAGES[kind]
    for measure in MEASURE.values():
        result = measure(make(planes, tmp_path), backend=backend)
        expected = measure(planes.image, **in_plain_arrays(planes, used), backend=backend)
        assert_same(result, expected, unit)


@pytest.mark.parametrize("kind", ["CCDData", "Masked Quantity", "FITS memory map", "numpy.ma"])
@pytest.mark.fresh_seed
def test_images_to_detect_on(planes, tmp_path, kind):
    make, used, unit = IMAGES[kind]
    mask = planes.mask if "mask" in used else None
    expected = detect_objects(planes.image, mask)
    result = detect_objects(make(planes, tmp_path), None)
    assert len(result) >= 3
    assert result["peak"].unit == unit
    for name in expected.colnames:
        np.testing.assert_array_equal(result[name], expected[name])


@pytest.mark.parametrize("kind", ["CCDData", "Masked Quantity", "FITS memory map", "numpy.ma"])
@pytest.mark.parametrize("degree", [0, 1])
@pytest.mark.fresh_seed
@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyUserWarning")
def test_images_to_make_a_psf_of(planes, tmp_path, kind, degree):
    make, used, _ = IMAGES[kind]
    mask = planes.mask if "mask" in used else None
    expected = gpuphot.create_psf_model(planes.image, table(), mask=mask, degree=degree)
    result = gpuphot.create_psf_model(make(planes, tmp_path), table(), degree=degree)
    np.testing.assert_array_equal(result.planes, expected.planes)


@pytest.mark.fresh_seed
def test_pixels_without_weight_count_as_masked_and_have_no_noise(planes):
    weight = 1 / planes.err**2
    unusable = planes.mask.copy()
    weight[unusable] = np.resize([0, -1, np.nan, np.inf], np.count_nonzero(unusable))
    image = NDData(planes.image, uncertainty=InverseVariance(weight))
    plain = {"mask": unusable, "err": np.where(unusable, np.nan, np.sqrt(1 / (1 / planes.err**2)))}
    for measure in MEASURE.values():
        assert_same(measure(image, backend="numpy"), measure(planes.image, **plain))
        explicit = measure(image, err=planes.err, backend="numpy")
        assert_same(explicit, measure(planes.image, mask=unusable, err=planes.err))
    found = detect_objects(image)
    np.testing.assert_array_equal(found["x"], detect_objects(planes.image, unusable)["x"])


@pytest.mark.fresh_seed
def test_masks_are_joined_and_the_given_noise_is_used(planes, rng):
    more = rng.random(SHAPE) < 0.02
    image = CCDData(planes.image, mask=planes.mask, unit="adu", uncertainty=StdDevUncertainty(1))
    for measure in MEASURE.values():
        expected = measure(planes.image, mask=planes.mask | more, err=planes.err, backend="numpy")
        for err in (planes.err, planes.err << u.adu, planes.err * 1000 << u.Unit("0.001 adu")):
            result = measure(image, mask=more, err=err, backend="numpy")
            for name in expected.colnames:
                np.testing.assert_allclose(result[name].value, expected[name], rtol=1e-13)


# Of bg and err: what it is, and what it is in plain arrays.
COMPANIONS = {
    "Quantity": lambda plane, mask: (plane << u.Jy, plane),
    "another unit": lambda plane, mask: (plane << u.mJy, u.mJy.to(u.Jy, plane)),
    "scalar Quantity": lambda plane, mask: (3 * u.Jy, 3.0),
    "scalar in another unit": lambda plane, mask: (3000 * u.mJy, 3000 * u.mJy.to(u.Jy)),
    "plain": lambda plane, mask: (plane, plane),
    "a number": lambda plane, mask: (plane << u.one, plane),
    "NDData": lambda plane, mask: (NDData(plane, unit="Jy"), plane),
    "CCDData": lambda plane, mask: (
        CCDData(plane, mask=mask, unit="mJy"),
        np.where(mask, np.nan, u.mJy.to(u.Jy, plane)),
    ),
    "numpy.ma": lambda plane, mask: (np.ma.array(plane, mask=mask), np.where(mask, np.nan, plane)),
    "Masked Quantity": lambda plane, mask: (
        Masked(plane << u.Jy, mask),
        np.where(mask, np.nan, plane),
    ),
}


@pytest.mark.parametrize("measure", MEASURE)
@pytest.mark.parametrize("kind", COMPANIONS)
@pytest.mark.parametrize("name", ["bg", "err"])
@pytest.mark.fresh_seed
def test_backgrounds_and_noise(planes, kind, measure, name):
    given, plain = COMPANIONS[kind](getattr(planes, name), planes.mask)
    measure = MEASURE[measure]
    expected = measure(planes.image, **{name: plain}, backend="numpy")
    result = measure(planes.image << u.Jy, **{name: given}, backend="numpy")
    assert_same(result, expected, u.Jy)


@pytest.mark.parametrize("measure", MEASURE)
@pytest.mark.parametrize("kind", [StdDevUncertainty, VarianceUncertainty, InverseVariance])
@pytest.mark.fresh_seed
def test_noise_may_be_an_uncertainty(planes, kind, measure):
    uncertainty = StdDevUncertainty(planes.err).represent_as(kind)
    result = MEASURE[measure](planes.image, err=uncertainty, backend="numpy")
    image = NDData(planes.image, uncertainty=uncertainty)
    assert_same(result, MEASURE[measure](image, backend="numpy"))


@pytest.mark.parametrize(
    "make",
    [
        lambda mask: mask.astype(int),
        lambda mask: NDData(mask),
        lambda mask: NDData(np.zeros(SHAPE), mask=mask),
        lambda mask: CCDData(mask.astype(np.uint8), unit=""),
        lambda mask: np.ma.array(np.zeros(SHAPE, bool), mask=mask),
        lambda mask: mask << u.one,
    ],
    ids=["integers", "NDData", "mask of NDData", "CCDData", "numpy.ma", "a number"],
)
@pytest.mark.fresh_seed
def test_masks(planes, make):
    for measure in MEASURE.values():
        expected = measure(planes.image, mask=planes.mask, backend="numpy")
        assert_same(measure(planes.image, mask=make(planes.mask), backend="numpy"), expected)


@pytest.mark.parametrize("measure", [gpuphot.measure_objects, gpuphot.measure_objects_sep])
@pytest.mark.fresh_seed
def test_maps_have_the_unit_of_the_image(planes, measure):
    options = {"get_bg": True, "backend": "numpy"}
    _, level, noise = measure(table(), planes.image, **options)
    assert (type(level), type(noise)) == (np.ndarray, np.ndarray)
    _, *maps = measure(table(), planes.image << u.adu, **options)
    for result, expected in zip(maps, (level, noise), strict=True):
        assert isinstance(result, u.Quantity)
        assert result.unit == u.adu
        np.testing.assert_array_equal(result.value, expected)
    image = CCDData(planes.image, unit="adu", uncertainty=StdDevUncertainty(planes.err))
    _, result, noise = measure(table(), image, **options)
    np.testing.assert_array_equal(result, maps[0])
    np.testing.assert_array_equal(noise, planes.err << u.adu)
    assert not np.shares_memory(noise, image.uncertainty.array)
    assert measure(table(), image, err=planes.err, **options)[2] is planes.err


@pytest.mark.fresh_seed
def test_the_noise_of_the_image_is_recorded(planes):
    for measure in MEASURE.values():
        image = NDData(planes.image, uncertainty=StdDevUncertainty(planes.err))
        assert '"err": "<StdDevUncertainty>"' in measure(image).meta["gpuphot"]
        assert '"err": 3' in measure(image, err=3).meta["gpuphot"]


# Catalogues


def records():
    array = np.zeros(3, [("id", "i4"), ("x", ">f8"), ("name", "U3"), ("y", "f4")])
    array["x"], array["y"], array["name"], array["id"] = X, Y, ["a", "b", "c"], [7, 8, 9]
    array.setflags(write=False)
    return array


def from_fits(folder, memmap=True):
    Table({"id": [7, 8, 9], "x": X, "y": Y}).write(folder / "catalogue.fits")
    return fits.getdata(folder / "catalogue.fits", memmap=memmap)


CATALOGUES = {
    "Table": lambda _: table(),
    "Table with a mask": lambda _: Table(table(), masked=True),
    "Table in pixels": lambda _: Table({"x": X << u.pix, "y": Column(Y, unit="pixel")}),
    "Table in an unknown unit": lambda _: Table(
        {"x": Column(X, unit=u.Unit("PIXELS", parse_strict="silent")), "y": Y}
    ),
    "Table of Quantities": lambda _: QTable({"x": X << u.pix, "y": Y << u.pix}),
    "QTable without units": lambda _: QTable({"x": X, "y": Y}),
    "QTable of numbers": lambda _: QTable({"x": X << u.one, "y": Y << u.one}),
    "structured array": lambda _: records(),
    "part of the columns": lambda _: records()[["y", "x"]],
    "every other row": lambda _: np.repeat(records(), 2)[::2],
    "recarray": lambda _: records().view(np.recarray),
    "numpy.ma records": lambda _: np.ma.array(records()),
    "Masked records": lambda _: Masked(records()),
    "FITS_rec": from_fits,
    "FITS_rec in memory": lambda folder: from_fits(folder, memmap=False),
    "rows of FITS_rec": lambda folder: from_fits(folder)[:3],
    "DataFrame": lambda _: pd.DataFrame({"x": X, "y": Y, "name": ["a", "b", None]}),
    "DataFrame with an index": lambda _: pd.DataFrame({"x": X, "y": Y}, index=list("cab")),
    "DataFrame, nullable": lambda _: pd.DataFrame(
        {"x": pd.array(X, dtype="Float64"), "y": pd.array(Y, dtype="Float32")}
    ),
    "DataFrame, arrow": lambda _: pd.DataFrame({"x": X, "y": Y}).convert_dtypes(
        dtype_backend="pyarrow"
    ),
    "DataFrame, numbered columns": lambda _: pd.DataFrame({"x": X, 0: 1, "y": Y}),
    "DataFrame, times and categories": lambda _: pd.DataFrame(
        {"x": X, "y": Y, "t": pd.to_datetime("2026-01-01"), "c": pd.Categorical(["a", "b", "a"])}
    ),
    "DataFrame, rows selected": lambda _: pd.DataFrame({"x": np.r_[X, 1], "y": np.r_[Y, 1]})[:3],
}


@pytest.mark.parametrize("measure", [gpuphot.measure_objects, gpuphot.measure_objects_sep])
@pytest.mark.parametrize("kind", CATALOGUES)
@pytest.mark.fresh_seed
def test_catalogues(planes, tmp_path, measure, kind):
    catalogue = CATALOGUES[kind](tmp_path)
    before = repr(catalogue)
    options = {"fwhm": 3.0, "aper": 1.0, "centroid_iter": 2, "backend": "numpy"}
    expected = measure(table(), planes.image, **options)
    result = measure(catalogue, planes.image << u.adu, **options)
    assert type(result) is (QTable if isinstance(catalogue, QTable) else Table)
    assert_same(result[expected.colnames], expected, u.adu)
    assert repr(catalogue) == before
    names = (
        list(catalogue.dtype.names)
        if isinstance(catalogue, np.ndarray)
        else [str(name) for name in getattr(catalogue, "colnames", None) or catalogue.columns]
    )
    assert [name for name in result.colnames if name in names] == names


@pytest.mark.parametrize("kind", ["QTable", "FITS_rec", "DataFrame, nullable", "structured array"])
@pytest.mark.fresh_seed
def test_catalogues_on_both_backends(planes, tmp_path, backend, kind):
    make = CATALOGUES.get(kind, CATALOGUES["Table of Quantities"])
    expected = gpuphot.measure_objects(table(), planes.image, backend=backend)
    result = gpuphot.measure_objects(make(tmp_path), planes.image, backend=backend)
    assert_same(result[expected.colnames], expected)


@pytest.mark.parametrize("kind", CATALOGUES)
@pytest.mark.fresh_seed
def test_catalogues_to_make_a_psf_of(planes, tmp_path, kind):
    expected = gpuphot.create_psf_model(planes.image, table(), degree=1)
    result = gpuphot.create_psf_model(planes.image, CATALOGUES[kind](tmp_path), degree=1)
    np.testing.assert_array_equal(result.planes, expected.planes)


@pytest.mark.fresh_seed
def test_fluxes_of_a_qtable_are_quantities_and_positions_stay_in_pixels(planes):
    catalogue = QTable({"x": X << u.pix, "y": Y << u.pix, "flux": [1, 2, 3] << u.Jy})
    result = gpuphot.measure_objects(
        catalogue, CCDData(planes.image, unit="adu"), centroid_iter=3, bkgann=(6, 9)
    )
    for name in ("x", "y", "x_orig", "y_orig"):
        assert result[name].unit == u.pix
        assert isinstance(result[name], u.Quantity)
    for name in ("flux", "fluxerr", "bg_local", "bg_fluxerr"):
        assert result[name].unit == u.adu
        assert isinstance(result[name], u.Quantity)
    np.testing.assert_array_equal(result["x_orig"].value, X)
    assert catalogue["flux"].unit == u.Jy
    assert isinstance(result["mag"], Column)


MISSING = {
    "numpy.ma records": lambda: np.ma.array(
        records(), mask=[(0, 0, 0, 0), (0, 1, 0, 0), (0, 0, 0, 0)]
    ),
    "Masked Quantity": lambda: QTable({"x": Masked(X << u.pix, [0, 1, 0]), "y": Y << u.pix}),
    "MaskedColumn": lambda: Table({"x": X, "y": MaskedColumn(Y, mask=[0, 1, 0])}),
    "NaN in FITS": lambda: fits.BinTableHDU(Table({"x": [X[0], np.nan, X[2]], "y": Y})).data,
    "DataFrame with NaN": lambda: pd.DataFrame({"x": [X[0], None, X[2]], "y": Y}),
    "DataFrame with NA": lambda: pd.DataFrame(
        {"x": pd.array([X[0], pd.NA, X[2]], dtype="Float64"), "y": Y}
    ),
    "DataFrame with NA, arrow": lambda: pd.DataFrame(
        {"x": X, "y": pd.array([Y[0], pd.NA, Y[2]], dtype="double[pyarrow]")}
    ),
}


@pytest.mark.parametrize("kind", MISSING)
@pytest.mark.fresh_seed
def test_rows_without_a_position_are_not_measured(planes, kind):
    result = gpuphot.measure_objects(MISSING[kind](), planes.image, backend="numpy")
    expected = gpuphot.measure_objects(table(), planes.image, backend="numpy")
    assert result["flags"].tolist() == [0, Flag.INVALID, 0]
    assert np.isnan(result["flux"]).tolist() == [False, True, False]
    np.testing.assert_array_equal(result["flux"][::2], expected["flux"][::2])


def test_integers_that_stand_for_nothing_in_fits_are_missing():
    columns = [
        fits.Column("x", "J", array=[20, -99], null=-99, unit="pixel"),
        fits.Column("y", "I", array=np.array([30, 40000], np.uint16), bzero=32768),
        fits.Column("flags", "I", array=[4, -1], null=-1),
        fits.Column("flux", "E", array=[1, 2], unit="no unit at all"),
    ]
    data = fits.BinTableHDU.from_columns(columns).data
    result = gpuphot.measure_objects(data, np.ones(SHAPE), bg=0, err=1, backend="numpy")
    assert result["flags"].tolist() == [4, Flag.INVALID]
    assert result["x"].unit == u.pix
    assert data["x"].tolist() == [20, -99]


def test_flags_of_a_data_frame_are_kept():
    frame = pd.DataFrame({"x": X, "y": Y, "flags": pd.array([1, pd.NA, 2], dtype="Int64")})
    result = gpuphot.measure_objects(frame, np.ones(SHAPE), bg=0, err=1, backend="numpy")
    assert result["flags"].tolist() == [1, 0, 2]


# Vectors


def in_tables(x, y, seed, fitted, error):
    columns = {"x": x, "y": y, "seed": seed, "psf": fitted, "err": error}
    in_units = {name: v << (u.pix if name in "xy" else u.Jy) for name, v in columns.items()}
    frame = pd.DataFrame(columns)
    return {
        "Table": Table(columns),
        "masked Table": Table(columns, masked=True),
        "Table with units": Table(in_units),
        "QTable": QTable(in_units),
        "masked QTable": QTable({name: Masked(values) for name, values in in_units.items()}),
        "QTable in another unit": QTable(
            in_units | {name: in_units[name].to(u.mJy) for name in ("seed", "psf", "err")}
        ),
        "structured array": Table(columns).as_array(),
        "DataFrame": frame,
        "DataFrame, nullable": frame.convert_dtypes(),
        "DataFrame, arrow": frame.convert_dtypes(dtype_backend="pyarrow"),
    }


@pytest.mark.fresh_seed
def test_columns_to_be_deblended(planes, rng, backend):
    vectors = X, Y, rng.uniform(4000, 5000, 3), rng.uniform(5000, 6000, 3), np.ones(3)
    for kind, catalogue in in_tables(*vectors).items():
        x, y, seed, fitted, error = (catalogue[name] for name in ("x", "y", "seed", "psf", "err"))
        result, expected = (
            gpuphot.measure_aperture_deblended(
                image, x, y, 3, 3.0, diagnostics=True, backend=backend,
                flux_seed=seed, flux_psf=fitted, flux_psf_err=error,
            )
            for image, x, y, seed, fitted, error in (
                (planes.image << u.Jy, x, y, seed, fitted, error),
                (planes.image, *vectors),
            )
        )  # fmt: skip
        if "another" not in kind:
            assert_same(result, expected, u.Jy)
        else:
            np.testing.assert_allclose(result["flux"], expected["flux"], rtol=1e-13)


def test_missing_entries_of_a_series_are_no_stars():
    x = pd.Series(pd.array([20, pd.NA, 60], dtype="Int64"), index=[5, 6, 7])
    result = gpuphot.measure_aperture_deblended(
        IMAGE, x, pd.Index(Y), 3, 3.0, flux_seed=pd.Series([1.0, 1, np.nan]),
        flux_psf=pd.Series(X), propagate_neighbour_errors=False, backend="numpy",
    )  # fmt: skip
    assert np.isnan(result["flux"]).tolist() == [False, True, True]


# Rendering


@pytest.mark.fresh_seed
def test_light_has_the_unit_of_the_flux(planes, backend):
    expected = gpuphot.render_psf_image(3.0, X, Y, 5000.0, SHAPE, backend=backend)
    in_pixels = X << u.pix, Column(Y, unit="pix")
    for flux in (5000 * u.Jy, np.full(3, 5000) << u.Jy, Column(np.full(3, 5000.0), unit="Jy")):
        light = gpuphot.render_psf_image(3.0, *in_pixels, flux, SHAPE, backend=backend)
        assert light.unit == u.Jy
        np.testing.assert_array_equal(light.value, expected)
    expected = gpuphot.place_psf_stamps(planes.image, 3.0, X, Y, 5000.0, backend=backend)
    for image in (planes.image << u.Jy, NDData(planes.image, unit="Jy", mask=planes.mask)):
        for flux in (5000.0, 5000 * u.Jy, 5 * u.kJy, pd.Series([5000.0] * 3), [5] * 3 << u.kJy):
            placed = gpuphot.place_psf_stamps(image, 3.0, *in_pixels, flux, backend=backend)
            assert placed.unit == u.Jy
            np.testing.assert_allclose(placed.value, expected, rtol=1e-13)
    plain = gpuphot.place_psf_stamps(NDData(planes.image), 3.0, X, Y, 5000.0, backend=backend)
    assert type(plain) is np.ndarray
    np.testing.assert_array_equal(plain, expected)


# What is refused

IMAGE = np.ones(SHAPE)
FRAME = pd.DataFrame({"x": X, "y": Y})
REFUSED = {
    "image cube": ({"image": NDData(np.ones((2, 5, 5)))}, ValueError, r"2-D .*\(2, 5, 5\)"),
    "image of text": ({"image": NDData(np.array([["a"]]))}, TypeError, "image must be .*numbers"),
    "image complex": ({"image": IMAGE * 1j << u.Jy}, TypeError, "image must be .*complex"),
    "image in magnitudes": ({"image": IMAGE << u.mag}, ValueError, "image must be in a linear"),
    "image in AB magnitudes": ({"image": IMAGE << u.ABmag}, ValueError, "image must .*mag.AB"),
    "image in dB": ({"image": CCDData(IMAGE, unit="dB")}, ValueError, "image must be .*dB"),
    "image of Quantities": ({"image": [[1 * u.Jy, 2 * u.Jy]]}, TypeError, "image must be .*list"),
    "image HDU": ({"image": fits.PrimaryHDU(IMAGE)}, TypeError, "image must be .*PrimaryHDU"),
    "image with a mask of another shape": (
        {"image": NDData(IMAGE, mask=np.ones((2, 2), bool))},
        ValueError,
        r"the mask of image must .*shape \(2, 2\)",
    ),
    "image with noise of another shape": (
        {"image": NDData(IMAGE, uncertainty=StdDevUncertainty(np.ones((2, 2))))},
        ValueError,
        r"the uncertainty of image must .*shape \(2, 2\)",
    ),
    "noise of an unknown kind": (
        {"image": NDData(IMAGE, uncertainty=UnknownUncertainty(IMAGE))},
        TypeError,
        "the uncertainty of image must be a StdDev.* or err an array, got UnknownUncertainty",
    ),
    "no noise": (
        {"image": NDData(IMAGE, uncertainty=StdDevUncertainty(None))},
        TypeError,
        "the uncertainty of image must be .*NoneType",
    ),
    "err of an unknown kind": ({"err": UnknownUncertainty(IMAGE)}, TypeError, "err must be a Std"),
    "bg in another unit": (
        {"image": IMAGE << u.adu, "bg": 1 * u.Jy},
        ValueError,
        "bg must be in units of 'adu', got the unit 'Jy'",
    ),
    "bg with a mask of another shape": (
        {"bg": NDData(IMAGE, mask=np.ones((2, 2), bool))},
        ValueError,
        r"the mask of bg must .*shape \(2, 2\)",
    ),
    "err in another unit": (
        {"image": CCDData(IMAGE, unit="adu"), "err": IMAGE << u.Jy},
        ValueError,
        "err must be in units of 'adu', got the unit 'Jy'",
    ),
    "err in an unknown unit": (
        {"image": IMAGE << u.adu, "err": IMAGE << u.Unit("fnord", parse_strict="silent")},
        ValueError,
        "err must be in units of 'adu', got the unit 'fnord'",
    ),
    "bg with a unit": ({"bg": IMAGE << u.Jy}, ValueError, "bg must be without unit, as image is"),
    "err with a unit": ({"err": CCDData(IMAGE, unit="Jy")}, ValueError, "err must be without unit"),
    "mask with a unit": ({"mask": IMAGE << u.Jy}, TypeError, "mask must be without unit"),
    "mask CCDData": ({"mask": CCDData(IMAGE, unit="adu")}, TypeError, "mask must .*adu"),
    "aper in pixels": ({"aper": 3 * u.pix}, TypeError, "aper must be a positive number"),
    "gain with a unit": ({"gain": 2 * u.electron / u.adu}, TypeError, "gain must be"),
    "frame without x": ({"obj": FRAME[["y"]]}, ValueError, r"'x' and 'y', got only \['y'\]"),
    "frame with two x": (
        {"obj": pd.concat([FRAME, FRAME], axis=1)}, ValueError, "obj must have columns of diff",
    ),
    "frame with names of two levels": (
        {"obj": pd.concat({"a": FRAME}, axis=1)}, ValueError, "'x' and 'y', got only",
    ),
    "frame of text": ({"obj": FRAME.astype(str)}, TypeError, "'x' of obj must hold numbers"),
    "frame of objects": ({"obj": FRAME.astype(object)}, TypeError, "'x' of obj must hold numbers"),
    "frame with flags of text": ({"obj": FRAME.assign(flags="a")}, TypeError, "'flags' of obj"),
    "series": ({"obj": FRAME["x"]}, TypeError, "obj must be .* or a pandas DataFrame .*Series"),
    "row": ({"obj": records()[0]}, TypeError, "obj must be an astropy Table"),
    "one record": ({"obj": np.array(records()[0])}, TypeError, "obj must be an astropy Table"),
    "records without x": ({"obj": records()[["id", "y"]]}, ValueError, r"got only \['id', 'y'\]"),
    "table row": ({"obj": table()[0]}, TypeError, "obj must be .*Row"),
    "FITS HDU": ({"obj": fits.BinTableHDU(table())}, TypeError, "obj must be .*BinTableHDU"),
    "QTable in degrees": (
        {"obj": QTable({"x": X << u.deg, "y": Y << u.deg})},
        ValueError,
        "'x' of obj must be in pixels, got the unit 'deg'",
    ),
    "Table in percent": ({"obj": Table({"x": X, "y": Y << u.percent})}, ValueError, "'y' .*'%'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_message_that_names_the_argument(case):
    options, error, message = REFUSED[case]
    arguments = {"obj": table(), "image": IMAGE, "backend": "numpy"} | options
    for measure in (gpuphot.measure_objects, gpuphot.measure_objects_sep):
        with pytest.raises(error, match=message) as caught:
            measure(**arguments)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": X << u.deg}, "x must be in pixels, got the unit 'deg'"),
        ({"y": Column(Y, unit="mm")}, "y must be in pixels, got the unit 'mm'"),
        ({"flux_seed": X << u.Jy}, "flux_seed must be in units of 'adu', got the unit 'Jy'"),
        ({"flux_psf": Column(X, unit="Jy")}, "flux_psf must be in units of 'adu'"),
        ({"flux_psf_err": Masked(X << u.pix)}, "flux_psf_err must be in units of 'adu'"),
        ({"image": IMAGE, "flux_psf": X << u.Jy}, "flux_psf must be without unit, as image is"),
        ({"x": pd.Series([1.0, 2.0])}, r"y must be a 1-D array of 2 numbers"),
    ],
)
def test_columns_that_cannot_be_deblended(options, message):
    arguments = {
        "image": IMAGE << u.adu, "x": X, "y": Y, "flux_seed": X, "flux_psf": X, "flux_psf_err": X,
        "aper": 3, "psf": 3.0, "backend": "numpy",
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        gpuphot.measure_aperture_deblended(**arguments | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"obj": QTable({"x": X << u.deg, "y": Y})}, "'x' of obj must be in pixels"),
        ({"obj": FRAME.rename(columns={"x": "X"})}, r"'x' and 'y', got only \['X', 'y'\]"),
        ({"obj": Table({"x": X, "y": Y, "fwhm": X << u.arcsec})}, "'fwhm' of obj must be in pix"),
        ({"neighbors_obj": FRAME}, "neighbors_obj must have columns 'x' and 'y' and 'flux'"),
    ],
)
def test_catalogues_that_make_no_psf(options, message):
    with pytest.raises(ValueError, match=message):
        gpuphot.create_psf_model(**{"image": IMAGE, "obj": FRAME} | options)


def test_noise_of_an_unknown_kind_is_in_nobodys_way():
    image = NDData(IMAGE, uncertainty=UnknownUncertainty(IMAGE))
    result = gpuphot.measure_objects(table(), image, err=1, backend="numpy")
    assert np.isfinite(result["flux"]).all()
    gpuphot.place_psf_stamps(image, 3.0, X, Y, 1.0, backend="numpy")


def test_pandas_is_loaded_by_nobody():
    code = (
        "import sys, numpy as np, gpuphot\n"
        "from astropy.table import Table\n"
        "t = Table({'x': [9.0], 'y': [9.0]})\n"
        "gpuphot.measure_objects(t, np.ones((20, 20)), backend='numpy')\n"
        "print([name for name in ('pandas', 'pyarrow') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "[]", answer.stderr
