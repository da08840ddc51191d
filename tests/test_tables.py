"""Catalogues in, tables out: every format and kind of position, and nothing half-written."""

from __future__ import annotations

import errno
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Column, MaskedColumn, QTable, Table
from astropy.wcs import WCS

from gpuphot.sky import pixel_to_sky, sky_to_pixel
from gpuphot.tables import all_or_nothing, check_output, check_suffix, read_catalog, write_table

X = np.array([20.25, 50.75, 80.0])
Y = np.array([30.0, 60.5, 90.75])
FORMATS = [".fits", ".fits.gz", ".FITS", ".ecsv", ".csv", ".vot", ".votable", ".xml", ".parquet",
           ".pq", ".hdf5", ".txt", ".dat", ".tex", ".html"]  # fmt: skip
WITH_UNITS = [".fits", ".ecsv", ".vot", ".votable", ".xml", ".parquet", ".pq", ".hdf5"]
WITH_META = [".fits", ".ecsv", ".parquet", ".hdf5"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "stars.ecsv"


@pytest.fixture
def wcs():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.crval = 150.0, -0.5
    wcs.wcs.crpix = 50.0, 50.0
    wcs.wcs.cdelt = -1e-4, 1e-4
    return wcs


@pytest.fixture
def sky(wcs):
    return pixel_to_sky(wcs, X, Y)


def table(**columns):
    return Table({"x": X, "y": Y, **columns})


def needs(suffix):
    if suffix == ".hdf5":
        pytest.importorskip("h5py")
    if suffix == ".html":
        pytest.importorskip("bs4")


def assert_positions(found, atol=1e-9):
    for name, expected in (("x", X), ("y", Y)):
        assert found[name].dtype == np.float64
        np.testing.assert_allclose(np.asarray(found[name]), expected, rtol=0, atol=atol)


def refused(path, match, error=ValueError, **options):
    """One sentence says what is wrong, without the path."""
    with pytest.raises(error, match=match) as caught:
        read_catalog(path, **options)
    assert str(path) not in str(caught.value)
    return str(caught.value)


# Formats


@pytest.mark.parametrize("suffix", FORMATS)
def test_table_comes_back_in_every_format(tmp_path, suffix):
    needs(suffix)
    path = tmp_path / f"out{suffix}"
    columns = {"flux": [1.5, np.nan, -3e-7], "flags": [0, 1, 512], "name": ["a", "bb", "c d"]}
    written = table(**columns)
    write_table(written, path)
    found = read_catalog(path)
    assert found.colnames == written.colnames
    assert_positions(found)
    for name in ("flux", "flags"):
        values = np.ma.filled(np.ma.asarray(found[name]).astype(float), np.nan)
        np.testing.assert_array_equal(values, written[name])
    assert list(found["name"]) == columns["name"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [s for s in FORMATS if s != ".tex"])
def test_missing_values_come_back(tmp_path, suffix):
    needs(suffix)
    path = tmp_path / f"out{suffix}"
    n = MaskedColumn([1, 2, 3], mask=[False, True, False])
    write_table(table(n=n), path)
    assert read_catalog(path)["n"].tolist() == [1, None, 3]


@pytest.mark.parametrize("suffix", WITH_UNITS)
def test_units_and_descriptions_come_back_where_the_format_can(tmp_path, suffix):
    needs(suffix)
    path = tmp_path / f"out{suffix}"
    write_table(
        table(ra=Column([1.0, 2, 3], unit="deg"), mag=Column([1.0, 2, 3], unit="mag")), path
    )
    found = read_catalog(path)
    assert (found["ra"].unit, found["mag"].unit) == (u.deg, u.mag)


@pytest.mark.parametrize("suffix", WITH_META)
def test_record_of_the_measurement_comes_back_where_the_format_can(tmp_path, suffix):
    needs(suffix)
    path = tmp_path / f"out{suffix}"
    record = json.dumps({"function": "measure_objects", "parameters": {"bg": "x" * 300}})
    written = table()
    written.meta = {"gpuphot": record, "OBJECT": "M13"}
    write_table(written, path)
    meta = {key.lower(): value for key, value in read_catalog(path).meta.items()}
    assert (meta["gpuphot"], meta["object"]) == (record, "M13")


@pytest.mark.parametrize("suffix", [s for s in FORMATS if s != ".tex"])
def test_what_a_format_cannot_hold_is_left_out_silently(tmp_path, suffix):
    needs(suffix)
    written = table(size=Column([1.0, 2, 3], unit=u.Unit("furlong", parse_strict="silent")))
    written.meta = {"comments": ["one"], "a_long_keyword": 1, "nested": {"a": [1]}, "EXTNAME": "T",
                    "nan": float("nan"), "NAXIS2": 7, "with = and\nbreak": 1}  # fmt: skip
    before = written.copy()
    write_table(written, tmp_path / f"out{suffix}")
    assert_positions(read_catalog(tmp_path / f"out{suffix}"))
    assert written.colnames == before.colnames
    assert written.meta.keys() == before.meta.keys()


@pytest.mark.parametrize("suffix", FORMATS)
def test_table_without_rows_keeps_its_columns(tmp_path, suffix):
    needs(suffix)
    if suffix in (".tex", ".txt", ".dat", ".html"):
        pytest.skip("without rows, these are no tables for astropy")
    path = tmp_path / f"out{suffix}"
    write_table(table()[:0], path)
    assert Table.read(path, format="parquet" if suffix in (".parquet", ".pq") else None).colnames


@pytest.mark.parametrize("suffix", WITH_UNITS)
def test_quantities_are_columns_with_units(tmp_path, suffix):
    needs(suffix)
    path = tmp_path / f"out{suffix}"
    write_table(QTable({"x": X * u.pix, "y": Y * u.pix, "ra": [1, 2, 3] * u.deg}), path)
    found = read_catalog(path)
    assert_positions(found)
    assert (found["x"].unit, found["ra"].unit) == (u.pix, u.deg)


@pytest.mark.parametrize("suffix", [".csv", ".ecsv", ".txt"])
def test_compressed_text_is_read(tmp_path, suffix):
    write_table(table(), tmp_path / f"stars{suffix}")
    packed = tmp_path / f"stars{suffix}.gz"
    packed.write_bytes(gzip.compress((tmp_path / f"stars{suffix}").read_bytes()))
    assert_positions(read_catalog(packed))


@pytest.mark.parametrize("suffix", [".cat", ".txt", ".dat", ""])
@pytest.mark.parametrize(
    "text",
    [
        "# x y\n20.25 30\n50.75 60.5\n80 90.75\n",
        "x y\n20.25 30\n50.75 60.5\n80 90.75\n",
        "x,y\n20.25,30\n50.75,60.5\n80,90.75\n",
        "x\ty\n20.25\t30\n50.75\t60.5\n80\t90.75\n",
    ],
)
def test_text_is_guessed(tmp_path, suffix, text):
    path = tmp_path / f"stars{suffix}"
    path.write_text(text)
    assert_positions(read_catalog(path))


def test_parquet_of_other_programs_is_read(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": X, "y": Y, "name": ["a", None, "c"], "n": [1, None, 3]})
    frame["n"] = frame["n"].astype("Int64")
    frame.index = [7, 8, 9]
    frame.to_parquet(tmp_path / "stars.parquet")
    found = read_catalog(tmp_path / "stars.parquet")
    assert_positions(found)
    assert found["n"].tolist() == [1, None, 3]
    assert found["name"][0] == "a"


@pytest.mark.parametrize("kind", ["LDAC_OBJECTS", "OBJECTS"])
def test_fits_catalogue_of_sextractor_is_read(tmp_path, kind):
    path = tmp_path / "sex.cat"
    card = fits.Column("Field Header Card", "400A", array=["SIMPLE = T"])
    columns = [
        fits.Column(name, "1E", unit="pixel", array=values + 1)
        for name, values in (("X_IMAGE", X), ("Y_IMAGE", Y))
    ]
    hdus = [fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns, name=kind)]
    if kind == "LDAC_OBJECTS":
        hdus.insert(1, fits.BinTableHDU.from_columns([card], name="LDAC_IMHEAD"))
    fits.HDUList(hdus).writeto(path)
    assert_positions(read_catalog(path), atol=1e-5)
    fits.HDUList([*hdus, *hdus[1:]]).writeto(path, overwrite=True)
    if kind == "LDAC_OBJECTS":
        refused(path, "2 catalogues called LDAC_OBJECTS")


@pytest.mark.parametrize("suffix", FORMATS)
def test_strings_of_any_length_of_a_votable_can_be_written(tmp_path, suffix):
    needs(suffix)
    names = np.array(["Gaia DR3 1", "b", "c d"], dtype=object)
    described = MaskedColumn(names, mask=[False, False, True], description="designation")
    Table({"x": X, "y": Y, "name": described}).write(tmp_path / "in.vot", format="votable")
    catalog = read_catalog(tmp_path / "in.vot")
    assert catalog["name"].description == "designation"
    write_table(catalog, tmp_path / f"out{suffix}")
    assert list(read_catalog(tmp_path / f"out{suffix}")["name"][:2]) == ["Gaia DR3 1", "b"]


def test_text_catalogue_of_sextractor_is_read(tmp_path):
    path = tmp_path / "sex.cat"
    rows = "".join(f"{x + 1:9.4f} {y + 1:9.4f}\n" for x, y in zip(X, Y, strict=True))
    path.write_text(
        "#   1 X_IMAGE    Object position along x    [pixel]\n"
        "#   2 Y_IMAGE    Object position along y    [pixel]\n" + rows
    )
    assert_positions(read_catalog(path))


# Files that are not right


def test_missing_file_and_directory_are_errors_of_the_system(tmp_path):
    for name in ("a.fits", "a.csv", "a.dat", "a.parquet", "a"):
        with pytest.raises(FileNotFoundError):
            read_catalog(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        read_catalog(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_file_that_may_not_be_read_is_an_error_of_the_system(path):
    write_table(table(), path)
    path.chmod(0)
    with pytest.raises(PermissionError):
        read_catalog(path)


@pytest.mark.parametrize("name", ["stars.dat", "stars.cat", "stars"])
@pytest.mark.parametrize(
    "content",
    [
        b"Dear colleague,\nthe stars, you ask?\n\n  They are many\n",
        b"\x89PNG\r\n\x1a\n\0\0\xff" * 9,
    ],
)
def test_file_in_no_table_format_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "no table format")


@pytest.mark.parametrize("suffix", [".csv", ".ecsv", ".fits", ".vot", ".parquet", ".dat", ".xml"])
@pytest.mark.parametrize("content", [b"", b"\0\xff" * 99, b"<html>sorry</html>"])
def test_file_that_is_not_what_its_suffix_says_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"stars{suffix}"
    path.write_bytes(content)
    refused(path, ".", error=(ValueError, OSError))


@pytest.mark.parametrize("suffix", [".fits", ".vot", ".parquet", ".fits.gz"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_table_is_refused(tmp_path, suffix, share):
    path = tmp_path / f"stars{suffix}"
    long = np.arange(5000.0)
    write_table(Table({"x": long, "y": long}), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, "truncated" if "fits" in suffix else ".", error=(ValueError, OSError))


def test_fits_file_without_table_is_refused(tmp_path):
    fits.writeto(tmp_path / "image.fits", np.ones((4, 5)))
    refused(tmp_path / "image.fits", "it holds no table")


@pytest.mark.parametrize("name", ["a.fits", "a.FIT", "a.fts", "a.fits.gz"])
def test_file_called_fits_that_is_not_is_refused(tmp_path, name):
    (tmp_path / name).write_text("x,y\n1,2\n")
    refused(tmp_path / name, "it is not a FITS file")


@pytest.mark.parametrize("library", ["pyarrow", "pandas"])
def test_missing_library_of_parquet_is_named_when_it_is_read(tmp_path, monkeypatch, library):
    write_table(table(), tmp_path / "stars.parquet")
    monkeypatch.setitem(sys.modules, library, None)
    refused(tmp_path / "stars.parquet", f"pip install {library}$", error=ImportError)


# Positions in pixels


@pytest.mark.parametrize(
    ("names", "options", "shift"),
    [
        (("x", "y"), {}, 0),
        (("x", "y"), {"one_based": True}, 1),
        (("X_IMAGE", "Y_IMAGE"), {}, 1),
        (("XWIN_IMAGE", "YWIN_IMAGE"), {}, 1),
        (("X_IMAGE", "Y_IMAGE"), {"one_based": True}, 1),
        (("X_IMAGE", "Y_IMAGE"), {"x_column": "X_IMAGE", "y_column": "Y_IMAGE"}, 1),
        (("XPSF_IMAGE", "YPSF_IMAGE"), {"x_column": "XPSF_IMAGE", "y_column": "YPSF_IMAGE"}, 1),
        (("col", "row"), {"x_column": "col", "y_column": "row"}, 0),
        (("col", "row"), {"x_column": "col", "y_column": "row", "one_based": True}, 1),
        (("col", "y"), {"x_column": "col"}, 0),
        (("x", "row"), {"y_column": "row", "one_based": True}, 1),
    ],
)
@pytest.mark.parametrize("kind", [float, ">f8", np.float32, np.longdouble])
def test_positions_count_from_0(path, names, options, shift, kind):
    if kind is np.longdouble:
        kind, path = np.float64, path.with_suffix(".fits")
    values = [np.asarray(values + shift, kind) for values in (X, Y)]
    write_table(Table([["a", "b", "c"], *values], names=["name", *names]), path)
    found = read_catalog(path, **options)
    assert found.colnames == ["name", "x", "y"]
    assert_positions(found, atol=1e-5)


def test_integers_and_masked_positions_become_floats_and_nan(path):
    x = MaskedColumn([1, 2, 3], mask=[False, True, False])
    write_table(Table({"x": x, "y": [4, 5, 6]}), path)
    found = read_catalog(path)
    np.testing.assert_array_equal(np.asarray(found["x"]), [1, np.nan, 3])
    assert found["y"].dtype == np.float64


def test_unit_and_description_of_positions_stay(path):
    write_table(table(), path)
    x = Column(X + 1, unit="pix", description="along rows")
    write_table(Table({"X_IMAGE": x, "Y_IMAGE": Y + 1}), path)
    found = read_catalog(path)["x"]
    assert (found.unit, found.description) == (u.pix, "along rows")


def test_x_and_y_come_before_others(path, wcs):
    write_table(table(X_IMAGE=X + 9, Y_IMAGE=Y + 9, ra=X, dec=Y), path)
    assert_positions(read_catalog(path, wcs))


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        (["a", "b"], {}, ["no column 'x' or 'ra'", "--x-column", "--ra-column", "are: a, b"]),
        (["x", "b"], {}, ["no column 'y'", "--y-column", "are: x, b"]),
        (["b", "y"], {}, ["no column 'x'", "--x-column"]),
        (["X_IMAGE", "b"], {}, ["no column 'Y_IMAGE'", "--y-column"]),
        (["ra", "b"], {}, ["no column 'dec'", "--dec-column"]),
        (["b", "DEJ2000"], {}, ["no column 'raj2000'", "--ra-column"]),
        (["ra", "dec"], {"one_based": True}, ["no column 'x'"]),
        (["x", "y"], {"x_column": "X"}, ["no column 'X' (see --x-column)", "are: x, y"]),
        (["x", "y"], {"y_column": "Y"}, ["no column 'Y' (see --y-column)"]),
        (["a", "y"], {"y_column": "y"}, ["no column 'x' (see --x-column)"]),
        (["ra", "dec"], {"ra_column": "RA"}, ["no column 'RA' (see --ra-column)"]),
        (["ra", "b"], {"ra_column": "ra"}, ["no column 'dec' (see --dec-column)"]),
        (["ra", "dec"], {"dec_column": "b"}, ["no column 'b' (see --dec-column)"]),
        (["x", "y", "X"], {"x_column": "X"}, ["'X' cannot become 'x'", "another column 'x'"]),
        (["x", "y"], {"x_column": "x", "ra_column": "x"}, ["do not go with --ra-column"]),
        (["x", "y"], {"one_based": True, "dec_column": "y"}, ["do not go with --ra-column"]),
        ([], {}, ["its columns are: none"]),
    ],
)
def test_columns_that_are_not_there_are_named_with_their_option(path, wcs, columns, options, words):
    path = path.with_suffix(".csv")
    path.write_text("".join(",".join(row) + "\n" for row in (columns, ["1"] * len(columns))))
    message = refused(path, ".", wcs=wcs, **options)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "values", [["left", "up", "c"], [True, False, True], [[1.0, 2], [3, 4], [5, 6]], [1j, 2, 3]]
)
def test_positions_that_are_not_numbers_are_refused(path, values):
    write_table(Table({"x": values, "y": Y}), path)
    refused(path, "'x' does not hold numbers, as --x-column must; its columns are: x, y")
    refused(path, "'x' does not hold numbers", x_column="x")


# Positions on the sky


@pytest.mark.parametrize(
    "names",
    [
        ("ra", "dec"), ("RA", "DEC"), ("Ra", "Dec"), ("RAJ2000", "DEJ2000"), ("RA_ICRS", "DE_ICRS"),
        ("_RAJ2000", "_DEJ2000"), ("ALPHA_J2000", "DELTA_J2000"),
        ("ALPHAWIN_J2000", "DELTAWIN_J2000"), ("raMean", "decMean"),
    ],
)  # fmt: skip
def test_sky_positions_are_found_under_the_names_of_catalogues(path, wcs, sky, names):
    write_table(Table([["a", "b", "c"], *sky], names=["name", *names]), path)
    found = read_catalog(path, wcs)
    assert found.colnames == ["x", "y", "name", *names]
    assert_positions(found, atol=1e-6)
    np.testing.assert_array_equal(found[names[0]], sky[0])


@pytest.mark.parametrize(
    "options",
    [
        {"ra_column": "alpha", "dec_column": "delta"},
        {"ra_column": "alpha"},
        {"dec_column": "delta"},
    ],
)
def test_sky_positions_are_in_the_columns_asked_for(path, wcs, sky, options):
    names = {"alpha": sky[0], "delta": sky[1], "ra": sky[0] + 1, "dec": sky[1]}
    if "ra_column" not in options:
        names["ra"] = sky[0]
    write_table(Table(names), path)
    assert_positions(read_catalog(path, wcs, **options), atol=1e-6)


def test_options_of_the_sky_go_before_pixels_which_get_a_number(path, wcs, sky):
    old = {"x": X + 7, "y": Y + 7, "x_1": X + 8}
    write_table(Table({**old, "ra": sky[0], "dec": sky[1]}), path)
    found = read_catalog(path, wcs, ra_column="ra", dec_column="dec")
    assert found.colnames == ["x", "y", "x_2", "y_2", "x_1", "ra", "dec"]
    assert_positions(found, atol=1e-6)
    np.testing.assert_array_equal(found["x_2"], X + 7)


@pytest.mark.parametrize("unit", ["deg", "rad", "arcsec", "hourangle", "degrees", None])
def test_unit_of_the_column_counts(path, wcs, sky, unit):
    in_unit = u.Unit(unit) if unit not in ("degrees", None) else u.deg
    ra, dec = ((values * u.deg).to_value(in_unit) for values in sky)
    unit = u.Unit(unit, parse_strict="silent") if unit else None
    write_table(Table({"ra": Column(ra, unit=unit), "dec": Column(dec, unit=unit)}), path)
    assert_positions(read_catalog(path, wcs), atol=1e-6)


@pytest.mark.parametrize("unit", ["m", "mag", "furlong"])
def test_unit_that_is_no_angle_is_refused(path, wcs, unit):
    unit = u.Unit(unit, parse_strict="silent")
    write_table(Table({"ra": Column([1.0], unit=unit), "dec": [1.0]}), path)
    refused(path, f"'ra' is in '{unit}', but --ra-column must be an angle", wcs=wcs)


@pytest.mark.parametrize("suffix", [".ecsv", ".csv", ".fits", ".vot", ".parquet"])
@pytest.mark.parametrize(
    ("ra", "dec"),
    [
        (["10:00:00.0", "10:00:00.6"], ["-00:30:00", "-00:30:03.6"]),
        (["10 00 00.0", "10 00 00.6"], ["-00 30 00", "-00 30 03.6"]),
        (["10h00m00.0s", "10h00m00.6s"], ["-00d30m00s", "-0d30m3.6s"]),
        ([" 10:00:00", "10:0:0.6 "], ["-0:30:00", "-0:30:3.6"]),
    ],
)
def test_sexagesimal_strings_are_hours_and_degrees(tmp_path, wcs, suffix, ra, dec):
    path = tmp_path / f"stars{suffix}"
    write_table(Table({"ra": ra, "dec": dec}), path)
    found = read_catalog(path, wcs)
    np.testing.assert_allclose(found["x"], [49.0, 49.0 - 25.0], atol=2e-3)
    np.testing.assert_allclose(found["y"], [49.0, 39.0], atol=2e-3)


@pytest.mark.parametrize(
    "text",
    [
        "10.5 20.5",
        "10:00",
        "north",
        "10:00:00:00",
        "10:61:00",
        "25:00:00",
        "10:00:61",
        "-",
        "1.5",
        "10d0m0s",
    ],
)
def test_strings_that_are_no_positions_are_refused(path, wcs, text):
    write_table(Table({"ra": ["10:00:00", text], "dec": ["-00:30:00", "-00:30:00"]}), path)
    refused(path, r"'ra' must hold .*'12:34:56.7' for --ra-column, got '", wcs=wcs)


def test_position_that_is_missing_or_not_on_the_image_plane_is_nan(path, wcs):
    ra = MaskedColumn([150.0, np.nan, 150.0, 330.0, 150.0], mask=[0, 0, 0, 0, 1])
    write_table(Table({"ra": ra, "dec": [-0.5, -0.5, -99.0, 0.5, -0.5]}), path)
    found = read_catalog(path, wcs)
    np.testing.assert_allclose(found["x"], [49.0, *[np.nan] * 4], atol=1e-6)
    np.testing.assert_array_equal(np.isnan(found["y"]), np.isnan(found["x"]))


def test_empty_string_is_a_missing_position(path, wcs):
    ra = MaskedColumn(["10:00:00", "", "10:00:00"], mask=[False, False, True])
    write_table(Table({"ra": ra, "dec": ["-00:30:00"] * 3}), path)
    np.testing.assert_allclose(read_catalog(path, wcs)["x"], [49.0, np.nan, np.nan], atol=1e-6)


@pytest.mark.fresh_seed
def test_sexagesimal_strings_are_those_of_astropy(path, wcs, rng):
    sky = SkyCoord(rng.uniform(149, 151, 50), rng.uniform(-2, 1, 50), unit="deg")
    names = ("ra", "dec")
    for style in ({"sep": ":"}, {"sep": " ", "pad": True}, {}):
        strings = [
            sky.ra.to_string("hour", precision=6, **style),
            sky.dec.to_string("deg", precision=6, alwayssign=True, **style),
        ]
        write_table(Table(strings, names=names), path)
        found = read_catalog(path, wcs)
        x, y = sky_to_pixel(wcs, sky.ra.deg, sky.dec.deg)
        np.testing.assert_allclose((found["x"], found["y"]), (x, y), rtol=0, atol=1e-4)


def test_strings_of_any_length_are_read(tmp_path, wcs):
    pandas = pytest.importorskip("pandas")
    columns = {"ra": ["10:00:00", "", "10:00:00.00"], "dec": ["-00:30:00"] * 3}
    objects = Table({name: np.array(values, dtype=object) for name, values in columns.items()})
    write_table(objects, tmp_path / "stars.vot")
    columns["ra"][1] = None
    pandas.DataFrame(columns).to_parquet(tmp_path / "stars.parquet")
    for name in ("stars.vot", "stars.parquet"):
        x = read_catalog(tmp_path / name, wcs)["x"]
        np.testing.assert_allclose(x, [49.0, np.nan, 49.0], atol=1e-6)


@pytest.mark.parametrize(
    ("reason", "words"),
    [("", "no celestial coordinates$"), ("CD is singular", ": CD is singular$")],
)
def test_sky_positions_without_world_coordinates_are_refused_with_the_reason(path, reason, words):
    write_table(Table({"RA": [1.0], "DEC": [1.0]}), path)
    refused(path, f"on the sky, in 'RA' and 'DEC', but .*{words}", wcs_problem=reason)


@pytest.mark.parametrize("options", [{}, {"ra_column": "ra"}])
def test_catalogue_without_rows_has_positions_of_no_row(path, wcs, options):
    write_table(Table({"ra": [1.0], "dec": [1.0]})[:0], path)
    found = read_catalog(path, wcs, **options)
    assert found.colnames == ["x", "y", "ra", "dec"]
    assert len(found) == 0


# Can it be written?


@pytest.mark.parametrize("name", ["out.fits", "OUT.FITS", "a.b.csv", Path("out.ecsv"), "o.parquet"])
def test_suffix_of_a_table_format_is_accepted(name):
    check_suffix(name)


@pytest.mark.parametrize("name", ["out", "out.png", "out.", "csv", "out.csv.gz", ".fitsy"])
def test_other_suffix_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="is not that of a table format; use for instance"):
        check_suffix(name)
    with pytest.raises(ValueError, match="is not that of a table format"):
        write_table(table(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("suffix", "library"), [(".parquet", "pyarrow"), (".hdf5", "h5py")])
def test_missing_library_of_a_format_is_named(tmp_path, monkeypatch, suffix, library):
    monkeypatch.setitem(sys.modules, library, None)
    for action in (check_suffix, lambda path: write_table(table(), path)):
        with pytest.raises(ImportError, match=f"pip install {library}$"):
            action(tmp_path / f"out{suffix}")


def test_output_is_checked_before_the_work(tmp_path):
    check_output(tmp_path / "out.csv", overwrite=False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out.csv").write_text("old")
    check_output(tmp_path / "out.csv", overwrite=True)
    assert (tmp_path / "out.csv").read_text() == "old"
    with pytest.raises(FileExistsError, match="--overwrite"):
        check_output(tmp_path / "out.csv", overwrite=False)
    with pytest.raises(ValueError, match="suffix"):
        check_output(tmp_path / "out.png", overwrite=True)
    with pytest.raises(FileNotFoundError):
        check_output(tmp_path / "no" / "out.csv", overwrite=True)
    with pytest.raises(NotADirectoryError):
        check_output(tmp_path / "out.csv" / "out.csv", overwrite=True)
    (tmp_path / "dir.csv").mkdir()
    with pytest.raises(IsADirectoryError):
        check_output(tmp_path / "dir.csv", overwrite=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_directory_that_may_not_be_written_to_is_an_error_of_the_system(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        check_output(tmp_path / "out.csv", overwrite=True)
    with pytest.raises(PermissionError):
        write_table(table(), tmp_path / "out.csv")
    tmp_path.chmod(0o700)


# All or nothing


def contents(directory):
    return {path.name: path.read_text() for path in directory.iterdir()}


def write_new(directory, *names):
    with all_or_nothing(directory) as scratch:
        for name in names:
            (scratch / name).write_text("new")


def test_files_appear_together_at_the_end(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "other").write_text("stays")
    with all_or_nothing(tmp_path) as scratch:
        (scratch / "a").write_text("new")
        (scratch / "b").write_text("new")
        assert (tmp_path / "a").read_text() == "old"
        assert not (tmp_path / "b").exists()
    assert contents(tmp_path) == {"a": "new", "b": "new", "other": "stays"}


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), SystemExit(1)]
)
def test_after_an_error_everything_is_as_before(tmp_path, error):
    (tmp_path / "a").write_text("old")

    def write_and_fail():
        with all_or_nothing(tmp_path) as scratch:
            (scratch / "a").write_text("new")
            raise error

    with pytest.raises(type(error)):
        write_and_fail()
    assert contents(tmp_path) == {"a": "old"}


@pytest.mark.parametrize("error", [PermissionError(errno.EPERM, "no"), KeyboardInterrupt()])
@pytest.mark.parametrize("n_calls", range(6))
def test_error_while_files_are_moved_puts_everything_back(tmp_path, monkeypatch, error, n_calls):
    for name in ("a", "c"):
        (tmp_path / name).write_text("old")
    replace, calls = Path.replace, []

    def fail_once(self, target):
        calls.append(self)
        if len(calls) == n_calls + 1:
            raise error
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_once)

    if n_calls < 5:
        with pytest.raises(type(error)):
            write_new(tmp_path, "a", "b", "c")
        assert contents(tmp_path) == {"a": "old", "c": "old"}
    else:
        write_new(tmp_path, "a", "b", "c")
        assert contents(tmp_path) == {"a": "new", "b": "new", "c": "new"}


def test_directory_in_the_place_of_a_file_stops_all(tmp_path):
    (tmp_path / "b").mkdir()
    with pytest.raises(IsADirectoryError):
        write_new(tmp_path, "a", "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_missing_directory_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError), all_or_nothing(tmp_path / "no"):
        pass


def test_written_files_have_the_permissions_of_any_other(tmp_path):
    (tmp_path / "plain").write_text("")
    write_table(table(), tmp_path / "out.csv")
    assert (tmp_path / "out.csv").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_disk_that_is_full_half_way_leaves_the_old_file(tmp_path):
    """For real: the system refuses to let a file of the process grow."""
    names = [f"out{suffix}" for suffix in (".csv", ".ecsv", ".fits", ".vot", ".txt", ".parquet")]
    for name in names:
        (tmp_path / name).write_text("old")
    code = (
        "import resource, sys\n"
        "import numpy as np\n"
        "from astropy.table import Table\n"
        "from gpuphot.tables import check_suffix, write_table\n"
        "check_suffix('out.parquet')\n"  # Imports pyarrow
        "values = np.random.default_rng(0).normal(size=(2, 5000))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        write_table(Table({'x': values[0], 'y': values[1]}), path)\n"
        "    except OSError as error:\n"
        "        print('refused')\n"
    )
    command = [sys.executable, "-B", "-c", code, *[str(tmp_path / name) for name in names]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "refused\n" * len(names), done.stderr
    assert contents(tmp_path) == dict.fromkeys(names, "old")


def test_disk_without_space_leaves_the_old_file(tmp_path, monkeypatch):
    out = tmp_path / "out.csv"
    out.write_text("old")

    def write_half(self, path, **options):
        path.write_text("x,y\n1,")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Table, "write", write_half)
    with pytest.raises(OSError, match="No space left"):
        write_table(table(), out)
    assert contents(tmp_path) == {out.name: "old"}


@pytest.mark.parametrize(
    ("suffix", "column"),
    [
        (".csv", np.ones((3, 2))),
        (".fits", Column([{}, [], None], dtype=object)),
        (".fits", ["ä", "b", "c"]),
        (".parquet", Column([{}, [1], None], dtype=object)),
    ],
)
def test_column_that_a_format_cannot_hold_leaves_the_old_file(tmp_path, suffix, column):
    out = tmp_path / f"out{suffix}"
    out.write_text("old")
    with pytest.raises(ValueError, match=r"."):
        write_table(table(odd=column), out)
    assert contents(tmp_path) == {out.name: "old"}


# Parquet and the end of the interpreter


def test_program_that_reads_parquet_ends_in_peace(tmp_path):
    path = tmp_path / "stars.parquet"
    write_table(table(), path)
    code = f"from gpuphot.tables import read_catalog; read_catalog({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
