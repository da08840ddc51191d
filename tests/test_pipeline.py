"""One FITS file in, a table and pictures out: `measure_file`, on its own and in processes."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.io.fits.verify import VerifyError
from astropy.table import Table

from gpuphot import FileError, FileReport, Flag, measure_file, measure_image

from .conftest import FRESH_SEED
from .psfs import make_psf, write_psf_file
from .starfield import (
    EXPOSURE,
    FWHM,
    GAIN,
    SATURATION,
    SHAPE,
    make_header,
    make_star_field,
    make_wcs_header,
    sky_of,
)

pytest.importorskip("sep_x")

OF_HEADER = {"gain": GAIN, "saturation": SATURATION, "exposure": EXPOSURE}


@pytest.fixture(autouse=True)
def _default_backend(monkeypatch):
    monkeypatch.delenv("GPUPHOT_BACKEND", raising=False)


@pytest.fixture(scope="module")
def field():
    return make_star_field(FRESH_SEED)


@pytest.fixture(scope="module")
def image(tmp_path_factory, field):
    path = tmp_path_factory.mktemp("images") / "field.fits"
    fits.writeto(path, field.pixels, make_header() + make_wcs_header())
    return path


@pytest.fixture
def catalog(tmp_path, field):
    path = tmp_path / "stars.csv"
    Table({"x": field.x, "y": field.y}).write(path)
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.ecsv"


def write_image(path, pixels, **header):
    fits.writeto(path, pixels, make_header(**header))
    return path


def assert_columns_equal(table, expected):
    for name in expected.colnames:
        np.testing.assert_array_equal(table[name], expected[name], err_msg=name)


def assert_refused(error, match, directory, *args, **options):
    """An error in one sentence, and no file that was not there before."""
    before = set(directory.rglob("*"))
    with pytest.raises(error, match=match) as caught:
        measure_file(*args, **options)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert set(directory.rglob("*")) == before


# The report


def test_report_tells_what_was_done(image, out):
    report = measure_file(str(image), str(out), method="psf")
    table = Table.read(out)
    assert (report.image, report.table, report.pictures) == (image, out, ())
    assert report.n_measured == len(table) > 40
    assert report.n_flagged == np.count_nonzero(table["flags"])
    assert report.notes[:3] == (
        "gain 1.5 (GAIN of the header)",
        "saturation 60000 (SATURATE of the header)",
        "exposure 30 (EXPTIME of the header)",
    )
    assert report.notes[3].endswith(" objects detected at 3 sigma")
    with pytest.raises(FrozenInstanceError):
        report.n_measured = 0


def test_flagged_objects_are_counted(image, catalog, out):
    report = measure_file(image, out, catalog=catalog, saturation=2000.0)
    flags = np.asarray(Table.read(out)["flags"])
    assert report.n_flagged == np.count_nonzero(flags & Flag.MASKED) > 0


def test_notes_leave_out_what_the_caller_gave(image, catalog, out):
    report = measure_file(image, out, catalog=catalog, gain=2.0, saturation=0, exposure=0, fwhm=3)
    assert report.notes == ()
    expected = measure_image(fits.getdata(image), Table.read(catalog), gain=2.0, fwhm=3).table
    assert_columns_equal(Table.read(out), expected)


def test_notes_are_said_to_the_log_too(image, out):
    said = []
    report = measure_file(image, out, verbose=said.append)
    assert set(report.notes[3:]) <= set(said)


def test_everything_can_be_pickled(image, out):
    report = measure_file(image, out)
    assert pickle.loads(pickle.dumps(report)) == report
    assert isinstance(report, FileReport)
    assert pickle.loads(pickle.dumps(measure_file)) is measure_file
    error = pickle.loads(pickle.dumps(FileError("cannot read a.fits: it is empty")))
    assert isinstance(error, FileError)
    assert str(error) == "cannot read a.fits: it is empty"


def test_pictures_are_told(tmp_path, image, out, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda _, path, **__: Path(path).write_text("drawn")
    )
    report = measure_file(image, out, method="psf", pictures=True)
    names = ["field", "errors", "growth", "residual"]
    assert report.pictures == tuple(tmp_path / f"out-{name}.png" for name in names)
    assert set(tmp_path.iterdir()) == {out, *report.pictures}


def test_without_a_good_star_only_some_pictures_are_drawn(tmp_path, image, out, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda _, path, **__: Path(path).write_text("drawn")
    )
    (tmp_path / "far.csv").write_text("x,y\n-500,-500\n")
    report = measure_file(image, out, catalog=tmp_path / "far.csv", pictures=True)
    assert [path.name for path in report.pictures] == ["out-field.png", "out-errors.png"]


# The table


def test_table_is_that_of_measure_image_with_positions_on_the_sky(image, out):
    measure_file(image, out, method="deblended", aper=1.2, psf_degree=1)
    pixels = fits.getdata(image)
    options = {"method": "deblended", "aper": 1.2, "psf_degree": 1}
    expected = measure_image(pixels, **OF_HEADER, **options).table
    table = Table.read(out)
    assert_columns_equal(table, expected)
    for suffix in ("", "_psf"):
        x, y = table[f"x{suffix}"], table[f"y{suffix}"]
        for name, angles in zip(("ra", "dec"), sky_of(make_wcs_header(), x, y), strict=True):
            np.testing.assert_allclose(table[name + suffix], angles, rtol=0, atol=1e-9)
            assert str(table[name + suffix].unit) == "deg"


def test_sky_positions_of_the_catalogue_stay(tmp_path, image, field, out):
    ra, dec = sky_of(make_wcs_header(), field.x, field.y)
    Table({"ra": ra, "dec": dec, "x": 0 * ra}).write(tmp_path / "sky.csv")
    measure_file(image, out, catalog=tmp_path / "sky.csv")
    table = Table.read(out)
    np.testing.assert_array_equal(table["ra"], ra)
    np.testing.assert_allclose(table["x"], field.x, atol=1e-6)
    np.testing.assert_array_equal(table["x_1"], 0)


@pytest.mark.parametrize(
    ("columns", "arguments"),
    [
        (("X_IMAGE", "Y_IMAGE", 1), {}),
        (("a", "b", 0), {"x_column": "a", "y_column": "b"}),
        (("a", "b", 1), {"x_column": "a", "y_column": "b", "one_based": True}),
        (("x", "y", 1), {"one_based": True}),
    ],
)
def test_catalogue_arguments(tmp_path, image, field, out, columns, arguments):
    x, y, first = columns
    Table({x: field.x + first, y: field.y + first}).write(tmp_path / "cat.fits")
    measure_file(image, out, catalog=str(tmp_path / "cat.fits"), **arguments)
    np.testing.assert_allclose(Table.read(out)["x"], field.x, atol=1e-9)


def test_meta_tells_the_observation_and_the_width_of_the_stars(image, out):
    measure_file(image, out)
    meta = Table.read(out).meta
    assert (meta["OBJECT"], meta["GAIN"], meta["IMAGE"]) == ("Made up", GAIN, "field.fits")
    assert meta["FWHM"] == pytest.approx(FWHM, rel=0.05)


def test_without_coordinates_there_are_no_sky_positions(tmp_path, field, out):
    measure_file(write_image(tmp_path / "bare.fits", field.pixels), out)
    assert not {"ra", "dec"} & set(Table.read(out).colnames)


@pytest.mark.parametrize("dtype", [">f8", "uint16", "int16", "int32", "uint8"])
def test_pixels_of_any_type(tmp_path, field, out, dtype):
    """Unsigned ones are stored with an offset, which astropy takes off."""
    limits = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else np.finfo(dtype)
    pixels = np.clip(field.pixels, max(0, limits.min), limits.max).astype(dtype)
    measure_file(write_image(tmp_path / "image.fits", pixels), out)
    assert_columns_equal(Table.read(out), measure_image(pixels, **OF_HEADER).table)


def test_overwrite_is_asked_for(tmp_path, image, out):
    out.write_text("precious")
    assert_refused(FileError, f"cannot write {out}: it exists", tmp_path, image, out)
    assert out.read_text() == "precious"
    measure_file(image, out, overwrite=True)
    assert len(Table.read(out)) > 40
    assert list(tmp_path.iterdir()) == [out]


def test_image_is_never_overwritten(tmp_path, field):
    path = write_image(tmp_path / "image.fits", field.pixels)
    (tmp_path / "link.fits").symlink_to(path)
    for output in (path, tmp_path / "link.fits"):
        assert_refused(FileError, "it is the image", tmp_path, path, output, overwrite=True)
    np.testing.assert_array_equal(fits.getdata(path), field.pixels)


# What the header says


@pytest.mark.parametrize(
    ("bunit", "unit"),
    [
        ("adu", "adu"),
        ("ADU", None),  # Not as the FITS standard writes it
        ("electron", "electron"),
        ("electron/s", "electron / s"),
        ("count", "ct"),
        ("MJy/sr", "MJy / sr"),
        ("furlongs", None),
        ("e-/s/pix", None),
        ("", None),
        ("1", None),
        (5, None),
        (True, None),
    ],
)
def test_unit_of_the_pixels_is_that_of_the_fluxes(tmp_path, field, catalog, out, bunit, unit):
    path = write_image(tmp_path / "image.fits", field.pixels, BUNIT=bunit)
    measure_file(path, out, catalog=catalog, method="deblended")
    table = Table.read(out)
    for name in ("flux", "fluxerr", "flux_psf", "flux_psf_err", "flux_ap_raw"):
        assert (table[name].unit and str(table[name].unit)) == unit, name
    for name in ("mag", "magerr", "fracflux", "x", "y", "chi2_psf"):
        assert table[name].unit is None, name


@pytest.mark.parametrize("bunit", ["adu", "electron/s"])
@pytest.mark.parametrize("method", ["aperture", "optimal", "sep", "psf", "deblended"])
def test_unit_changes_no_number(tmp_path, field, out, method, bunit):
    gain, exposure = (GAIN, EXPOSURE) if bunit == "adu" else (EXPOSURE, None)
    saturation = SATURATION if bunit == "adu" else None
    path = write_image(tmp_path / "image.fits", field.pixels, BUNIT=bunit)
    measure_file(path, out, method=method)
    expected = measure_image(
        field.pixels, method=method, gain=gain, saturation=saturation, exposure=exposure
    )
    assert_columns_equal(Table.read(out), expected.table)


def test_magnitudes_are_not_linear_pixels(tmp_path, field, out):
    path = write_image(tmp_path / "image.fits", field.pixels, BUNIT="mag")
    assert_refused(ValueError, "image must be in a linear unit, got 'mag'", tmp_path, path, out)


def test_keyword_that_cannot_be_parsed_is_passed_over(tmp_path, field, out):
    path = write_image(tmp_path / "image.fits", field.pixels, BUNIT="adu")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"BUNIT   = 'adu     '", b"BUNIT   = 'adu ''''x"))
    with pytest.raises(VerifyError):
        fits.getval(path, "BUNIT")
    measure_file(path, out)
    assert Table.read(out)["flux"].unit is None


def test_rates_have_their_exposure_in_them(tmp_path, field, catalog, out):
    """Its level of saturation is in counts; the gain is that of a second's counts."""
    path = write_image(tmp_path / "rate.fits", field.pixels, BUNIT="electron/s", SATURATE=2000.0)
    report = measure_file(path, out, catalog=catalog)
    assert report.notes[0] == "gain 30 (BUNIT = electron/s and EXPTIME of the header)"
    assert not any(note.startswith(("exposure", "saturation")) for note in report.notes)
    table = Table.read(out)
    np.testing.assert_allclose(table["mag"], -2.5 * np.log10(table["flux"].value), rtol=1e-12)
    assert not np.any(table["flags"])


def test_exposure_that_is_given_counts_for_rates_too(tmp_path, field, catalog, out):
    path = write_image(tmp_path / "rate.fits", field.pixels, BUNIT="electron/s")
    measure_file(path, out, catalog=catalog, exposure=10.0)
    table = Table.read(out)
    expected = -2.5 * np.log10(table["flux"].value / 10)
    np.testing.assert_allclose(table["mag"], expected, rtol=1e-12)


def test_electrons_have_gain_1(tmp_path, field, catalog, out):
    path = write_image(tmp_path / "electrons.fits", field.pixels, BUNIT="electron")
    report = measure_file(path, out, catalog=catalog)
    assert report.notes[0] == "gain 1 (BUNIT = electron of the header)"
    expected = measure_image(
        field.pixels, Table.read(catalog), gain=1.0, saturation=SATURATION, exposure=EXPOSURE
    )
    assert_columns_equal(Table.read(out), expected.table)


@pytest.mark.parametrize(
    "header",
    [
        {"GAIN": None, "EXPTIME": None, "SATURATE": None},
        {"GAIN": "unknown", "EXPTIME": -1.0, "SATURATE": 0},
    ],
)
def test_header_that_says_nothing_usable(tmp_path, field, out, header):
    path = write_image(tmp_path / "image.fits", field.pixels, **header)
    report = measure_file(path, out)
    assert report.notes[0].endswith("objects detected at 3 sigma")
    assert_columns_equal(Table.read(out), measure_image(field.pixels).table)


# Errors


def test_errors_of_files_name_them(tmp_path, image, out):
    missing, empty = tmp_path / "missing", tmp_path / "empty"
    empty.write_bytes(b"")
    reason = "No such file or directory"
    for arguments, match in (
        ({"image": missing}, f"cannot read {missing}: {reason}"),
        ({"image": empty}, f"cannot read {empty}: it is empty"),
        ({"image": tmp_path}, f"cannot read {tmp_path}: Is a directory"),
        ({"output": missing / "out.csv"}, f"cannot write {missing / 'out.csv'}: {reason}"),
        ({"output": tmp_path}, f"cannot write {tmp_path}: "),
        ({"output": missing}, f"cannot write {missing}: the suffix ''"),
        ({"catalog": missing}, f"cannot use {missing}: {reason}"),
        ({"catalog": image}, f"cannot use {image}: it holds no table"),
        ({"mask": missing}, f"cannot read {missing}: {reason}"),
        ({"err": empty}, f"cannot read {empty}: it is empty"),
        ({"bg": str(missing)}, f"cannot read {missing}: {reason}"),
        ({"weight": empty}, f"cannot read {empty}: it is empty"),
        ({"ext": "SCI"}, f"cannot read {image}: it has no extension 'SCI'"),
    ):
        arguments = {"image": image, "output": out, **arguments}
        assert_refused(FileError, match, tmp_path, **arguments)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"method": "magic"}, ValueError, "method must be one of"),
        ({"aper": -1.0}, ValueError, "aper must be a positive number"),
        ({"magic": 1}, TypeError, "magic"),
        ({"image": None}, TypeError, None),
        ({"err": -1.0}, ValueError, "err must be a file or a positive number"),
        ({"err": 0}, ValueError, "err must be a file or a positive number"),
        ({"bg": float("nan")}, ValueError, "bg must be a file or a finite number"),
        ({"err": 5.0, "weight": "w.fits"}, ValueError, "weight and err exclude each other"),
        ({"x_column": "a"}, ValueError, "x_column has no effect without catalog"),
        ({"dec_column": "a"}, ValueError, "dec_column has no effect without catalog"),
        ({"one_based": True}, ValueError, "one_based has no effect without catalog"),
        ({"threshold": 1e9}, ValueError, "image must have objects to detect"),
        ({"backend": "abacus"}, ValueError, "backend must be one of"),
    ],
)
def test_errors_of_arguments_are_those_of_measure_image(
    tmp_path, image, out, options, error, match
):
    arguments = {"image": image, "output": out, **options}
    assert_refused(error, match, tmp_path, **arguments)


@pytest.mark.parametrize("name", ["err", "mask", "bg", "weight"])
def test_plane_of_another_shape_is_named(tmp_path, image, out, name):
    fits.writeto(tmp_path / "plane.fits", np.ones((3, 4)))
    match = r"cannot read .*plane.fits: it has 3 x 4 pixels .* 140 x 160"
    arguments = {name: tmp_path / "plane.fits"}
    assert_refused(FileError, match, tmp_path, image, out, **arguments)


def test_psf_may_be_a_file(tmp_path, image, out):
    psf = tmp_path / "model.psf"
    write_psf_file(psf, make_psf(25, 25, 1.0, 0))
    measure_file(image, out, method="psf", psf=psf)
    expected = measure_image(fits.getdata(image), method="psf", psf=psf, **OF_HEADER)
    assert_columns_equal(Table.read(out), expected.table)


def test_failure_while_drawing_takes_the_table_along(tmp_path, image, out, monkeypatch):
    def fail(*_, **__):
        raise ValueError("no ink")

    monkeypatch.setattr("gpuphot.plot.plot_field", fail)
    assert_refused(FileError, f"cannot write {out}: no ink", tmp_path, image, out, pictures=True)


# Processes


def measure_night(images, directory, run):
    """Measure images with a function like `map`; returns the reports and the bytes of tables."""
    directory.mkdir()
    tables = [directory / f"{image.stem}.ecsv" for image in images]
    reports = list(run(measure_file, images, tables))
    return reports, [table.read_bytes() for table in tables]


def test_processes_write_the_tables_of_a_serial_run(tmp_path, field):
    images = [
        write_image(tmp_path / f"{n}.fits", field.pixels[: SHAPE[0] - 20 * n], BUNIT="adu")
        for n in range(3)
    ]
    serial, tables = measure_night(images, tmp_path / "serial", map)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        parallel, same_tables = measure_night(images, tmp_path / "parallel", pool.map)
    assert same_tables == tables
    for ours, theirs in zip(serial, parallel, strict=True):
        assert (ours.image, ours.n_measured, ours.notes) == (
            theirs.image,
            theirs.n_measured,
            theirs.notes,
        )


def test_errors_come_back_from_processes(tmp_path):
    missing = tmp_path / "missing.fits"
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        future = pool.submit(measure_file, missing, tmp_path / "out.csv")
        with pytest.raises(FileError, match=f"cannot read {missing}: No such file"):
            future.result()
