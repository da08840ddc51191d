"""The command line, as a user meets it: files in, files and lines out."""

from __future__ import annotations

import errno
import gzip
import io
import os
import re
import subprocess
import sys
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import PackageNotFoundError
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from scipy.spatial import cKDTree

from gpuphot import Flag, PSFModel, __version__, load_psf, measure_image
from gpuphot.chain import ImagePhotometry
from gpuphot.cli import main
from gpuphot.cupy_backend import probe

from .conftest import FRESH_SEED
from .psfs import make_psf, write_psf_file
from .starfield import (
    EXPOSURE,
    FWHM,
    GAIN,
    N_ISOLATED,
    NOISE,
    SATURATION,
    SHAPE,
    SKY,
    make_header,
    make_star_field,
    make_wcs_header,
    sky_of,
)

pytest.importorskip("sep_x")

METHODS = ("aperture", "optimal", "sep", "psf", "deblended")
OF_HEADER = {"gain": GAIN, "saturation": SATURATION, "exposure": EXPOSURE}
DEMO_PICTURES = {"m13-field.png", "m13-gain.png"}


@pytest.fixture(autouse=True)
def _default_backend(monkeypatch):
    monkeypatch.delenv("GPUPHOT_BACKEND", raising=False)


@pytest.fixture(scope="module")
def field():
    return make_star_field(FRESH_SEED)


@pytest.fixture(scope="module")
def pixels(field):
    return field.pixels


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A directory for the inputs that tests share; what they write goes elsewhere."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def image(shared, pixels):
    """The star field with facts in its header, and with distorted world coordinates."""
    path = shared / "field.fits"
    fits.writeto(path, pixels, make_header() + make_wcs_header())
    return path


@pytest.fixture(scope="module")
def bare_image(shared, pixels):
    """The star field and nothing else."""
    path = shared / "bare.fits"
    fits.writeto(path, pixels)
    return path


@pytest.fixture(scope="module")
def catalog(shared, field):
    path = shared / "stars.csv"
    Table({"x": field.x, "y": field.y}).write(path)
    return path


@pytest.fixture(scope="module")
def psf_file(shared):
    path = shared / "model.psf"
    write_psf_file(path, make_psf(25, 25, 1.0, 0))
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.ecsv"


@pytest.fixture
def refuse(tmp_path, capsys):
    """Run what must fail: status 2, one line on stderr with these words, no file changed."""

    def refuse(*args, words=()):
        before = snapshot(tmp_path)
        assert run(*args) == 2
        assert_one_line_error(capsys, *words)
        assert snapshot(tmp_path) == before

    return refuse


def run(*args):
    return main([str(arg) for arg in args])


def snapshot(directory):
    """Everything in a directory, and what is in its files."""
    return {path: path.is_file() and path.read_bytes() for path in directory.rglob("*")}


def assert_one_line_error(capsys, *words):
    """Nothing on stdout; one line on stderr, with these words."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("gpuphot: error: ")
    assert captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err


def assert_columns_equal(table, expected, rtol=0.0):
    for name in expected.colnames:
        np.testing.assert_allclose(table[name], expected[name], rtol=rtol, atol=0, err_msg=name)


def nearest(table, field):
    """Row of the table for each star of the field."""
    tree = cKDTree(np.stack([table["x"], table["y"]], axis=1))
    distance, row = tree.query(np.stack([field.x, field.y], axis=1))
    assert np.max(distance) < 0.5
    return row


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


def hide_module(monkeypatch, *names):
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


# gpuphot


def test_without_command_prints_help(capsys):
    assert run() == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in ("demo", "measure", "info"))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("measure", [*METHODS, "--pictures", "(default: ecsv)", "file.fits[NAME]"]),
        ("demo", ["M13", "gpuphot-demo"]),
        ("info", ["--compile"]),
    ],
)
def test_help_lists_what_can_be_set(capsys, command, words):
    with pytest.raises(SystemExit, match="0"):
        run(command, "--help")
    printed = capsys.readouterr().out
    assert all(word in printed for word in words)


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit, match="0"):
        run("--version")
    assert capsys.readouterr().out == f"gpuphot {__version__}\n"


def test_module_runs_as_a_program():
    command = [sys.executable, "-m", "gpuphot.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"gpuphot {__version__}\n"


def test_import_loads_nothing_that_only_some_commands_need():
    code = (
        "import sys, gpuphot.cli\n"
        "heavy = {'sep_x', 'cupy', 'matplotlib', 'pandas', 'pyarrow'}\n"
        "print(heavy & {name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["conquer"], ["conquer"]),
        (["measure"], ["IMAGE"]),
        (["measure", "i.fits", "--method", "magic"], ["--method", "magic", "deblended"]),
        (["measure", "i.fits", "--aper", "big"], ["--aper", "big"]),
        (["measure", "i.fits", "--bkgann", "3"], ["--bkgann"]),
        (["measure", "i.fits", "--bkg-order", "3"], ["--bkg-order", "3"]),
        (["measure", "i.fits", "--passes", "1.5"], ["--passes", "1.5"]),
        (["measure", "i.fits", "--err", "e.fits", "--weight", "w.fits"], ["--err", "--weight"]),
        (["measure", "i.fits", "--backend", "abacus"], ["--backend", "abacus"]),
        (["measure", "i.fits", "--over"], ["--over"]),
        (["measure", "i.fits", "--detect"], ["--detect"]),
    ],
)
def test_usage_error_is_one_line_and_status_2(capsys, args, words):
    with pytest.raises(SystemExit, match="2"):
        run(*args)
    assert_one_line_error(capsys, *words)


# gpuphot measure: the methods

SHARE_IN_APERTURE = 0.9176
"""Of a star's light within its FWHM."""

COLUMNS = {
    "aperture": {"flux", "fluxerr", "mag", "magerr", "bg_local", "npix_aper"},
    "optimal": {"flux", "fluxerr", "npix_optimal", "chi2_optimal", "group_id"},
    "sep": {"flux", "fluxerr", "mag", "magerr"},
    "psf": {"flux", "fluxerr", "x_psf", "y_psf", "chi2_psf", "ra_psf", "dec_psf"},
    "deblended": {"flux", "fluxerr", "flux_psf", "flux_psf_err", "flux_ap_raw", "fracflux",
                  "x_psf", "y_psf", "ra_psf", "dec_psf"},
}  # fmt: skip


@pytest.fixture(scope="module", params=METHODS)
def measured(request, tmp_path_factory, image):
    """Of each method: its name, the table and what was printed."""
    out = tmp_path_factory.mktemp(request.param) / "out.ecsv"
    with redirect_stdout(io.StringIO()) as printed:
        assert run("measure", image, "--method", request.param, "-o", out) == 0
    return request.param, out, printed.getvalue()


def test_table_is_that_of_measure_image(measured, pixels):
    method, out, _ = measured
    expected = measure_image(pixels, method=method, **OF_HEADER).table
    table = Table.read(out)
    assert_columns_equal(table, expected)
    assert set(table.colnames) - set(expected.colnames) <= {"ra", "dec", "ra_psf", "dec_psf"}
    assert {"x", "y", "ra", "dec", "flags", *COLUMNS[method]} <= set(table.colnames)


def test_fluxes_are_the_true_ones(measured, field):
    """Of stars that stand alone within 8%, in the median 2%; fits and deblending in pairs, too."""
    method, out, _ = measured
    table = Table.read(out)
    share = 1.0 if method in ("optimal", "psf") else SHARE_IN_APERTURE
    row = nearest(table, field)
    flux = np.asarray(table["flux"])[row] / field.flux / share
    assert np.median(flux[:N_ISOLATED]) == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(flux[:N_ISOLATED], 1, atol=0.08)
    if method in ("psf", "deblended"):
        np.testing.assert_allclose(flux[N_ISOLATED:], 1, atol=0.05)
    if method == "deblended":
        plain = np.asarray(table["flux_ap_raw"])[row] / field.flux / share
        assert np.all(plain[N_ISOLATED:] > 1.02)
        assert np.all(table["fracflux"][row[N_ISOLATED:]] < 0.98)


def test_sky_positions_are_those_of_the_stars(measured, field):
    """With the distortion, which is more than a pixel at the edge."""
    method, out, _ = measured
    table = Table.read(out)
    row = nearest(table, field)
    header = make_wcs_header()
    sky = sky_of(header, table["x"], table["y"])
    for name, angles in zip(("ra", "dec"), sky, strict=True):
        np.testing.assert_allclose(table[name], angles, rtol=0, atol=1e-9)
        assert str(table[name].unit) == "deg"
    if method in ("psf", "deblended"):
        truth = sky_of(header, field.x, field.y)
        for name, angles in zip(("ra_psf", "dec_psf"), truth, strict=True):
            np.testing.assert_allclose(table[name][row], angles, rtol=0, atol=0.15 * 2e-4)


def test_summary_tells_what_was_measured_and_with_what(measured, image):
    method, out, printed = measured
    table = Table.read(out)
    first, *notes = printed.splitlines()
    n, n_flagged = len(table), np.count_nonzero(table["flags"])
    assert first == f"{image}: {n} objects measured, {n_flagged} flagged: {out}"
    assert notes[:3] == [
        "  gain 1.5 (GAIN of the header)",
        "  saturation 60000 (SATURATE of the header)",
        "  exposure 30 (EXPTIME of the header)",
    ]
    rest = "\n".join(notes[3:])
    assert re.search(r"^  \d+ objects detected at 3 sigma$", rest, re.MULTILINE)
    assert re.search(r"^  FWHM of [23]\.\d\d pixels from \d+ stars$", rest, re.MULTILINE)
    assert ("  PSF model of degree 1" in rest) == (method in ("optimal", "psf", "deblended"))
    assert ("more objects detected" in rest) == (method in ("psf", "deblended"))


def test_meta_holds_the_facts_of_the_observation(measured):
    meta = Table.read(measured[1]).meta
    facts = {"OBJECT": "Made up", "GAIN": GAIN, "EXPTIME": EXPOSURE, "SATURATE": SATURATION}
    assert {name: meta[name] for name in facts} == facts
    assert meta["IMAGE"] == "field.fits"
    assert meta["FWHM"] == pytest.approx(FWHM, rel=0.03)
    assert '"function": "measure_' in meta["gpuphot"]


# gpuphot measure: the options


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        (["--aper", "1.5", "--bkg-order", "1"], {"aper": 1.5, "bkg_order": 1}),
        (["--aper", "4", "--pixels"], {"aper": 4.0, "in_pixels": True}),
        (["--bkgann", "2.5", "4"], {"bkgann": (2.5, 4.0)}),
        (["--bkgann", "8", "12", "--pixels"], {"bkgann": (8.0, 12.0), "in_pixels": True}),
        (["--fwhm", "3.5", "--bg-size", "32"], {"fwhm": 3.5, "bg_size": 32}),
        (["--gain", "3", "--exposure", "60"], {"gain": 3.0, "exposure": 60.0}),
        (["--gain", "0", "--saturation", "0", "--exposure", "0"], dict.fromkeys(OF_HEADER)),
        (["--saturation", "2000"], {"saturation": 2000.0}),
        (["--bg", "100", "--err", "5"], {"bg": 100.0, "err": 5.0}),
        (["--centroid-iter", "2"], {"centroid_iter": 2}),
        (
            ["--centroid-iter", "1", "--centroid-method", "psf"],
            {"centroid_iter": 1, "centroid_method": "psf"},
        ),
        (["--sn", "150"], {"sn": 150.0}),
        (["--bg", "400", "--drop-negative"], {"bg": 400.0, "keep_negative": False}),
        (["--threshold", "30"], {"threshold": 30.0}),
        (["--backend", "numpy"], {"backend": "numpy"}),
        (["--method", "optimal", "--grouper-radius", "4"],
         {"method": "optimal", "grouper_radius": 4.0}),
        (["--method", "optimal", "--no-groups", "--psf-degree", "2"],
         {"method": "optimal", "group_sources": False, "psf_degree": 2}),
        (["--method", "sep", "--centroid-iter", "1", "--bkgann", "3", "5"],
         {"method": "sep", "centroid_iter": 1, "bkgann": (3.0, 5.0)}),
        (["--method", "psf", "--passes", "1"], {"method": "psf", "passes": 1}),
        (["--method", "psf", "--passes", "3", "--threshold", "5"],
         {"method": "psf", "passes": 3, "threshold": 5.0}),
        (["--method", "psf", "--no-groups", "--sn", "100"],
         {"method": "psf", "group_sources": False, "sn": 100.0}),
        (["--method", "deblended", "--aper", "1.2", "--psf-degree", "3"],
         {"method": "deblended", "aper": 1.2, "psf_degree": 3}),
    ],
)  # fmt: skip
def test_options_act_as_the_arguments_of_measure_image(image, pixels, out, options, arguments):
    assert run("measure", image, "-o", out, *options) == 0
    expected = measure_image(pixels, **{**OF_HEADER, **arguments}).table
    table = Table.read(out)
    assert len(table) == len(expected) > 0
    assert_columns_equal(table, expected)


@pytest.mark.parametrize("method", ["optimal", "psf", "deblended"])
def test_psf_model_is_read_from_a_file(image, pixels, psf_file, out, method):
    assert run("measure", image, "--method", method, "--psf", psf_file, "-o", out) == 0
    expected = measure_image(pixels, method=method, psf=load_psf(psf_file), **OF_HEADER).table
    assert_columns_equal(Table.read(out), expected)


@pytest.mark.parametrize(
    ("method", "options", "name"),
    [
        ("sep", ["--bkg-order", "1"], "--bkg-order"),
        ("sep", ["--grouper-radius", "3"], "--grouper-radius"),
        ("sep", ["--centroid-method", "psf"], "--centroid-method"),
        ("psf", ["--aper", "3"], "--aper"),
        ("psf", ["--bkgann", "3", "4"], "--bkgann"),
        ("psf", ["--bkg-order", "0"], "--bkg-order"),
        ("deblended", ["--bkgann", "3", "4"], "--bkgann"),
        ("deblended", ["--centroid-iter", "1"], "--centroid-iter"),
        ("deblended", ["--sn", "5"], "--sn"),
        ("deblended", ["--no-groups"], "--no-groups"),
        ("deblended", ["--drop-negative"], "--drop-negative"),
    ],
)
def test_option_that_does_not_go_with_the_method_is_named(
    refuse, image, out, method, options, name
):
    words = [f"{image}: {name} ", f"method='{method}'"]
    refuse("measure", image, "--method", method, *options, "-o", out, words=words)


@pytest.mark.parametrize(
    "options", [["--x-column", "X"], ["--dec-column", "DEC"], ["--one-based"]], ids=str
)
def test_option_of_catalogues_needs_a_catalogue(refuse, image, out, options):
    words = [f"{options[0]} has no effect without catalog"]
    refuse("measure", image, *options, "-o", out, words=words)


def test_verbose_prints_what_is_done(image, catalog, out, capsys):
    assert run("measure", image, "--catalog", catalog, "-o", out, "--verbose") == 0
    printed = capsys.readouterr().out
    assert "Measuring 48 objects with the " in printed
    assert "FWHM of" in printed.partition(f"{image}: ")[0]


def test_saturated_stars_are_flagged_and_no_others(image, field, catalog, out):
    options = ["--catalog", catalog, "--saturation", "2000", "--bg", SKY, "--err", NOISE]
    assert run("measure", image, *options, "-o", out) == 0
    flags = np.asarray(Table.read(out)["flags"])
    row, column = np.rint(field.y).astype(int), np.rint(field.x).astype(int)
    saturated = field.pixels[row, column] >= 2000
    assert 0 < np.count_nonzero(saturated) < len(flags)
    np.testing.assert_array_equal(flags, np.where(saturated, Flag.MASKED, 0))


@pytest.mark.parametrize(("options", "seconds"), [([], EXPOSURE), (["--exposure", "0"], 1.0)])
def test_magnitudes_are_those_of_the_flux_per_second(image, catalog, out, capsys, options, seconds):
    assert run("measure", image, "--catalog", catalog, *options, "-o", out) == 0
    table = Table.read(out)
    np.testing.assert_allclose(table["mag"], -2.5 * np.log10(table["flux"] / seconds), rtol=1e-12)
    assert ("exposure 30 (EXPTIME of the header)" in capsys.readouterr().out) == (not options)


def test_saturation_of_the_header_masks(tmp_path, pixels, catalog, out):
    path = tmp_path / "low.fits"
    fits.writeto(path, pixels, make_header(SATURATE=2000.0))
    assert run("measure", path, "--catalog", catalog, "-o", out) == 0
    assert np.any(Table.read(out)["flags"] == Flag.MASKED)


# gpuphot measure: images of all kinds


def whole_counts(pixels):
    return np.rint(pixels).astype(np.int16)


def write_gzipped(path, pixels):
    whole = io.BytesIO()
    fits.PrimaryHDU(pixels, make_header()).writeto(whole)
    path.write_bytes(gzip.compress(whole.getvalue()))


def write_in_tiles(path, pixels):
    hdu = fits.CompImageHDU(whole_counts(pixels), make_header(), compression_type="RICE_1")
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)


def write_extensions(path, pixels):
    """An observatory's file: facts in the primary header, the image in SCI, its errors in ERR."""
    hdus = [
        fits.PrimaryHDU(header=make_header()),
        fits.ImageHDU(pixels, name="SCI"),
        fits.ImageHDU(np.full(SHAPE, 4.0, np.float32), name="ERR"),
        fits.ImageHDU((pixels > 3000).astype(np.uint8), name="DQ"),
        fits.ImageHDU(np.where(pixels > 3000, 0, 1 / 16).astype(np.float32), name="WHT"),
        fits.ImageHDU(np.zeros((2, 3, 4)), name="CUBE"),
    ]
    fits.HDUList(hdus).writeto(path)


@pytest.mark.parametrize(
    ("name", "write", "prepare"),
    [
        ("night.fits.gz", write_gzipped, np.asarray),
        ("night.fits.fz", write_in_tiles, whole_counts),
        ("night.FITS", write_extensions, np.asarray),
    ],
)
def test_image_may_be_compressed_or_an_extension(tmp_path, pixels, name, write, prepare):
    write(tmp_path / name, pixels)
    assert run("measure", tmp_path / name, "-o", tmp_path / "tables") == 0
    expected = measure_image(prepare(pixels), **OF_HEADER).table
    assert_columns_equal(Table.read(tmp_path / "tables" / "night.ecsv"), expected)


@pytest.fixture(scope="module")
def extensions(shared, pixels):
    path = shared / "extensions.fits"
    write_extensions(path, pixels)
    return path


@pytest.mark.parametrize("ext", ["SCI", "sci", "1", "SCI,1"])
def test_extension_is_chosen_by_name_or_number(extensions, pixels, out, ext):
    assert run("measure", extensions, "--ext", ext, "-o", out) == 0
    assert_columns_equal(Table.read(out), measure_image(pixels, **OF_HEADER).table)


def test_several_images_in_a_file_are_a_choice_for_the_user(refuse, tmp_path, pixels, out):
    path = tmp_path / "mosaic.fits"
    chips = [fits.ImageHDU(pixels, name=name) for name in ("CHIP1", "CHIP2")]
    fits.HDUList([fits.PrimaryHDU(), *chips]).writeto(path)
    words = [f"cannot read {path}", "--ext", "1 (CHIP1), 2 (CHIP2)"]
    refuse("measure", path, "-o", out, words=words)
    assert run("measure", path, "--ext", "CHIP2", "-o", out) == 0


@pytest.mark.parametrize(
    ("options", "planes"),
    [
        (["--err", "{}[ERR]", "--mask", "{}[DQ]"], ["err", "mask"]),
        (["--err", "{}[2]", "--mask", "{}[3]"], ["err", "mask"]),
        (["--weight", "{}[WHT]"], ["weight", "mask"]),
        (["--mask", "{}[DQ]", "--bg", "{}[ERR]"], ["mask", "bg"]),
    ],
)
def test_planes_are_extensions_of_files(extensions, pixels, catalog, out, options, planes):
    options = [option.format(extensions) for option in options]
    assert run("measure", extensions, "--catalog", catalog, *options, "-o", out) == 0
    bad, fours = pixels > 3000, np.full(SHAPE, 4.0)
    known = {
        "err": {"err": fours},
        "bg": {"bg": fours},
        "mask": {"mask": bad},
        "weight": {"err": np.where(bad, np.nan, fours)},
    }
    arguments = {name: plane for each in planes for name, plane in known[each].items()}
    expected = measure_image(pixels, Table.read(catalog), **OF_HEADER, **arguments).table
    table = Table.read(out)
    assert_columns_equal(table, expected, rtol=1e-12)
    assert np.any(table["flags"] & Flag.MASKED)


def test_weight_and_mask_add_up(tmp_path, extensions, pixels, field, catalog, out):
    mask = np.zeros(SHAPE, np.uint8)
    mask[int(field.y[0]), int(field.x[0])] = 1
    fits.writeto(tmp_path / "mask.fits", mask)
    options = ["--weight", f"{extensions}[WHT]", "--mask", tmp_path / "mask.fits"]
    assert run("measure", extensions, "--catalog", catalog, *options, "-o", out) == 0
    flagged = np.asarray(Table.read(out)["flags"]) & Flag.MASKED != 0
    assert flagged[0]
    assert np.count_nonzero(flagged) > 1


# gpuphot measure: catalogues in, tables out

FORMATS = [".fits", ".ecsv", ".csv", ".vot", ".parquet"]
POSITIONS = {
    "pixels": lambda field: {"x": field.x, "y": field.y},
    "SExtractor": lambda field: {"X_IMAGE": field.x + 1, "Y_IMAGE": field.y + 1},
    "sky": lambda field: dict(
        zip(("RA", "DEC"), sky_of(make_wcs_header(), field.x, field.y), strict=True)
    ),
}


def write_catalog(path, table):
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow")
        pytest.importorskip("pandas")
    options = {"format": "votable"} if path.suffix == ".vot" else {}
    table.write(path, **options)


def read_output(path):
    return Table.read(path, **({"format": "votable"} if path.suffix == ".vot" else {}))


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_catalogue_and_table_may_be_in_any_format(tmp_path, image, field, suffix, positions):
    name = [f"star {n}" for n in range(len(field.x))]
    cat, out = tmp_path / f"cat{suffix}", tmp_path / f"out{suffix}"
    write_catalog(cat, Table({**POSITIONS[positions](field), "name": name}))
    assert run("measure", image, "--catalog", cat, "-o", out) == 0
    table = read_output(out)
    np.testing.assert_allclose(table["x"], field.x, atol=1e-6)
    np.testing.assert_allclose(table["y"], field.y, atol=1e-6)
    flux = np.asarray(table["flux"])[:N_ISOLATED] / field.flux[:N_ISOLATED]
    np.testing.assert_allclose(flux, SHARE_IN_APERTURE, atol=0.08)
    assert list(map(str, table["name"])) == name
    for column, angles in zip(
        ("ra", "dec"), sky_of(make_wcs_header(), field.x, field.y), strict=True
    ):
        column, other = (column.upper(), column) if positions == "sky" else (column, column.upper())
        np.testing.assert_allclose(table[column], angles, rtol=0, atol=1e-9)
        assert other not in table.colnames


@pytest.mark.parametrize("suffix", [".fits", ".ecsv"])
def test_facts_of_the_header_are_in_the_meta(image, catalog, tmp_path, suffix):
    out = tmp_path / f"out{suffix}"
    assert run("measure", image, "--catalog", catalog, "-o", out) == 0
    meta = Table.read(out).meta
    assert (meta["OBJECT"], meta["EXPTIME"], meta["GAIN"]) == ("Made up", EXPOSURE, GAIN)
    assert (meta["IMAGE"], meta["FWHM"]) == ("field.fits", pytest.approx(FWHM, rel=0.03))
    key = "GPUPHOT" if suffix == ".fits" else "gpuphot"
    assert '"function": "measure_objects"' in meta[key]


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        ({"px": 1, "py": 1}, ["--x-column", "px", "--y-column", "py", "--one-based"]),
        ({"px": 0, "py": 0}, ["--x-column", "px", "--y-column", "py"]),
        ({"x": 1, "y": 1}, ["--one-based"]),
    ],
)
def test_columns_of_positions_may_be_named(tmp_path, image, field, out, columns, options):
    cat = tmp_path / "cat.csv"
    values = zip(columns.items(), (field.x, field.y), strict=True)
    Table({name: axis + first for (name, first), axis in values}).write(cat)
    assert run("measure", image, "--catalog", cat, *options, "-o", out) == 0
    np.testing.assert_allclose(Table.read(out)["x"], field.x, atol=1e-9)


def test_columns_of_sky_positions_may_be_named(tmp_path, image, field, out):
    cat = tmp_path / "cat.csv"
    alpha, delta = sky_of(make_wcs_header(), field.x, field.y)
    Table({"alpha": alpha, "delta": delta, "x": field.x * 0}).write(cat)
    options = ["--ra-column", "alpha", "--dec-column", "delta"]
    assert run("measure", image, "--catalog", cat, *options, "-o", out) == 0
    np.testing.assert_allclose(Table.read(out)["y"], field.y, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_table_may_be_the_catalogue_of_the_next_image(tmp_path, image, pixels, out, method):
    """What is measured again is new; the meaning of the other columns is left to the user."""
    again, later = tmp_path / "again.ecsv", tmp_path / "later.fits"
    fits.writeto(later, 2 * pixels, make_header() + make_wcs_header())
    options = ["--method", method, "--catalog", out, "-o", again]
    assert run("measure", image, "--method", method, "-o", out) == 0
    assert run("measure", later, *options) == 0
    first, second = Table.read(out), Table.read(again)
    assert set(first.colnames) == set(second.colnames)
    expected = measure_image(2 * pixels, first["x", "y"], method=method, **OF_HEADER).table
    assert_columns_equal(second, expected)
    if method in ("psf", "deblended"):
        sky = sky_of(make_wcs_header(), second["x_psf"], second["y_psf"])
        np.testing.assert_allclose(second["ra_psf"], sky[0], rtol=0, atol=1e-9)
        np.testing.assert_allclose(second["dec_psf"], sky[1], rtol=0, atol=1e-9)


def test_catalogue_without_rows_gives_a_table_without_rows(tmp_path, image, out):
    cat = tmp_path / "cat.csv"
    cat.write_text("x,y\n")
    assert run("measure", image, "--catalog", cat, "-o", out) == 0
    assert len(Table.read(out)) == 0


def test_positions_off_the_image_are_flagged(tmp_path, image, out):
    cat = tmp_path / "cat.csv"
    cat.write_text("ra,dec\n150.1,2.2\n150.1,\n330.1,-2.2\n150.2,2.2\n")
    assert run("measure", image, "--catalog", cat, "-o", out) == 0
    flags = np.asarray(Table.read(out)["flags"])
    assert flags[0] == 0
    assert np.all(flags[1:] & Flag.INVALID)


def test_overwrite_replaces_the_output_and_leaves_nothing_else(tmp_path, image, catalog, out):
    out.write_text("old")
    assert run("measure", image, "--catalog", catalog, "-o", out, "--overwrite") == 0
    assert len(Table.read(out)) == 48
    assert list(tmp_path.iterdir()) == [out]


def test_default_output_is_the_current_directory(tmp_path, image, catalog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("measure", image, "--catalog", catalog) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["field.ecsv"]


# gpuphot measure: detection


def test_detection_ignores_masked_and_non_finite_pixels(tmp_path, field, out):
    path, mask_path = tmp_path / "image.fits", tmp_path / "mask.fits"
    pixels, mask = field.pixels.astype(">f8"), np.zeros(SHAPE, np.uint8)
    pixels[:40] = np.nan
    mask[100:] = 1
    fits.writeto(path, pixels)
    fits.writeto(mask_path, mask)
    assert run("measure", path, "--mask", mask_path, "-o", out) == 0
    y = np.asarray(Table.read(out)["y"])
    assert np.all((y > 35) & (y < 105))
    assert len(y) >= np.count_nonzero((field.y > 45) & (field.y < 95))


def test_filters_that_drop_everything_are_told(image, out, capsys):
    assert run("measure", image, "--sn", "1e9", "-o", out) == 0
    printed = capsys.readouterr().out
    assert "0 objects measured" in printed
    assert "objects dropped by the filters" in printed
    assert len(Table.read(out)) == 0


def test_threshold_that_overwhelms_sep_is_one_line(refuse, tmp_path, out):
    path = tmp_path / "noise.fits"
    fits.writeto(path, np.random.default_rng(3).normal(size=(900, 900)).astype(np.float32))
    words = ["threshold=0.001", "pixel buffer"]
    refuse("measure", path, "--threshold", "0.001", "-o", out, words=words)


def test_detection_without_sep_says_what_to_install(refuse, image, out, monkeypatch):
    hide_module(monkeypatch, "sep_x")
    refuse("measure", image, "-o", out, words=["pip install sep-x"])


# gpuphot measure: several images


@pytest.fixture
def night(tmp_path, field):
    """Three images of a night."""
    directory = tmp_path / "night"
    directory.mkdir()
    paths = [directory / f"{n}.fits" for n in range(3)]
    for n, path in enumerate(paths):
        fits.writeto(path, field.pixels[: 60 + 20 * n], make_header())
    return paths


def test_every_image_has_its_table_in_a_directory(tmp_path, field, night, capsys):
    tables = tmp_path / "a" / "b"
    assert run("measure", *night, "-o", tables, "--format", "fits") == 0
    assert {path.name for path in tables.iterdir()} == {"0.fits", "1.fits", "2.fits"}
    for n, path in enumerate(night):
        expected = measure_image(field.pixels[: 60 + 20 * n], **OF_HEADER).table
        assert_columns_equal(Table.read(tables / path.name), expected)
    captured = capsys.readouterr()
    firsts = [line for line in captured.out.splitlines() if not line.startswith(" ")]
    assert [line.partition(": ")[0] for line in firsts] == list(map(str, night))
    assert captured.err == ""


def test_suffix_of_the_tables_may_have_its_point(tmp_path, night):
    assert run("measure", night[0], "-o", tmp_path, "--format", ".csv") == 0
    assert (tmp_path / "0.csv").is_file()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_shown_on_a_terminal(tmp_path, night, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert run("measure", *night, "-o", tmp_path) == 0
    assert "3/3" in sys.stderr.getvalue()


def test_progress_is_not_shown_for_a_single_image(tmp_path, night, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert run("measure", night[0], "-o", tmp_path) == 0
    assert sys.stderr.getvalue() == ""


def test_bad_image_is_reported_and_the_others_measured(tmp_path, night, capsys):
    night[1].write_text("no image")
    tables = tmp_path / "tables"
    assert run("measure", *night, "-o", tables) == 2
    assert {path.name for path in tables.iterdir()} == {"0.ecsv", "2.ecsv"}
    captured = capsys.readouterr()
    assert captured.err == (
        f"gpuphot: error: cannot read {night[1]}: it is not a FITS file\n"
        "gpuphot: error: 1 of 3 images failed\n"
    )
    assert str(night[0]) in captured.out
    assert str(night[2]) in captured.out


def test_directory_is_not_left_behind_if_all_images_fail(tmp_path, capsys):
    missing = [tmp_path / name for name in ("a.fits", "b.fits")]
    assert run("measure", *missing, "-o", tmp_path / "new" / "tables") == 2
    assert capsys.readouterr().err.count("\n") == 3
    assert list(tmp_path.iterdir()) == []


def test_images_of_one_name_are_refused_before_any_work(refuse, tmp_path, night):
    again = tmp_path / "0.fits.gz"
    again.write_bytes(b"")
    words = [str(night[0]), str(again), str(tmp_path / "new" / "0.ecsv")]
    refuse("measure", *night, again, "-o", tmp_path / "new", words=words)


def test_table_for_several_images_is_refused(refuse, tmp_path, night):
    refuse("measure", *night, "-o", tmp_path / "all.csv", words=["all.csv is no directory"])


def test_file_in_place_of_the_directory_is_refused(refuse, tmp_path, night):
    (tmp_path / "tables").write_text("not for tables")
    words = [f"cannot make {tmp_path / 'tables'}", "File exists"]
    refuse("measure", *night, "-o", tmp_path / "tables", words=words)


def test_table_does_not_replace_its_own_image(refuse, night):
    options = ["-o", night[0].parent, "--format", "fits", "--overwrite"]
    refuse("measure", night[0], *options, words=[f"cannot write {night[0]}: it is the image"])


# gpuphot measure: pictures


def test_pictures_are_named_and_written(tmp_path, image, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out.csv"
    assert run("measure", image, "--method", "deblended", "--pictures", "-o", out) == 0
    names = [f"out-{name}.png" for name in ("field", "errors", "growth", "residual")]
    assert {path.name for path in tmp_path.iterdir()} == {"out.csv", *names}
    for name in names:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4:] == [f"  {tmp_path / name}" for name in names]


def test_pictures_without_matplotlib_are_one_line(refuse, image, catalog, out, monkeypatch):
    hide_module(monkeypatch, "matplotlib", "matplotlib.axes", "matplotlib.figure")
    words = ['pip install "gpuphot-survey[plot]"']
    refuse("measure", image, "--catalog", catalog, "--pictures", "-o", out, words=words)


def test_pictures_replace_none_without_overwrite(refuse, tmp_path, out):
    (tmp_path / "out-growth.png").write_text("precious")
    words = [f"cannot write {tmp_path / 'out-growth.png'}", "--overwrite"]
    refuse("measure", "no-such-image.fits", "--pictures", "-o", out, words=words)


def test_picture_that_fails_takes_its_table_along(refuse, image, catalog, out, monkeypatch):
    pytest.importorskip("matplotlib")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", failing(full))
    words = [f"cannot write {out}: No space left on device"]
    refuse("measure", image, "--catalog", catalog, "--pictures", "-o", out, words=words)


# gpuphot measure: bad input


def test_existing_output_is_kept_and_nothing_is_measured(refuse, out):
    out.write_text("precious")
    words = [f"cannot write {out}", "--overwrite"]
    refuse("measure", "no-such-image.fits", "-o", out, words=words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("out.magic", [".magic", ".ecsv"]),
        ("nowhere/out.csv", ["No such file or directory"]),
        ("file.csv/out.csv", ["Not a directory"]),
        (f"{'long' * 80}.csv", ["File name too long"]),
    ],
)
def test_output_that_cannot_be_written_is_found_before_the_image_is_read(
    refuse, tmp_path, name, words
):
    (tmp_path / "file.csv").write_text("no directory")
    words = [str(tmp_path / name), *words]
    refuse("measure", "no-such-image.fits", "-o", tmp_path / name, words=words)


def test_unknown_format_is_named(refuse, tmp_path, image):
    words = [".magic", ".ecsv"]
    refuse("measure", image, "--format", "magic", "-o", tmp_path / "new", words=words)


def test_directory_without_write_permission_is_one_line(refuse, tmp_path, monkeypatch):
    directory = tmp_path / "locked"
    directory.mkdir(mode=0o500)
    if os.access(directory, os.W_OK):  # Nothing is locked for root
        denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        monkeypatch.setattr("tempfile.mkdtemp", failing(denied))
    words = [f"cannot write {directory / 'out.csv'}: Permission denied"]
    refuse("measure", "no-such-image.fits", "-o", directory / "out.csv", words=words)


def test_missing_library_of_the_output_format_is_named(refuse, tmp_path, monkeypatch):
    hide_module(monkeypatch, "h5py")
    refuse("measure", "no-such-image.fits", "-o", tmp_path / "out.hdf5", words=["h5py"])


def test_column_that_the_format_cannot_hold_leaves_the_old_output(refuse, tmp_path, image):
    cat, out = tmp_path / "stars.ecsv", tmp_path / "out.csv"
    Table({"x": [20.0], "y": [20.0], "radii": np.ones((1, 2))}).write(cat)
    out.write_text("old")
    words = [f"cannot write {out}", "dimension"]
    refuse("measure", image, "--catalog", cat, "-o", out, "--overwrite", words=words)


def test_full_disk_is_one_line_and_leaves_the_old_output(refuse, image, catalog, out, monkeypatch):
    out.write_text("old")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(Table, "write", failing(full))
    words = [f"cannot write {out}: No space left on device"]
    refuse("measure", image, "--catalog", catalog, "-o", out, "--overwrite", words=words)


@contextmanager
def small_files_only(n_bytes):
    """Let the operating system refuse to write larger files."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("suffix", [".ecsv", ".fits", ".vot", ".parquet"])
def test_disk_that_takes_no_more_is_one_line(refuse, tmp_path, image, catalog, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"out{suffix}"
    with small_files_only(4000):
        words = [f"cannot write {out}", "File too large"]
        refuse("measure", image, "--catalog", catalog, "-o", out, words=words)


def test_missing_image_is_one_line(refuse, tmp_path, out):
    missing = tmp_path / "missing.fits"
    words = [f"error: cannot read {missing}: No such file or directory"]
    refuse("measure", missing, "-o", out, words=words)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "it is empty"), (b"Dear colleague,", "it is not a FITS file")],
)
def test_image_that_is_not_fits_is_one_line(refuse, tmp_path, out, content, reason):
    path = tmp_path / "letter.fits"
    path.write_bytes(content)
    refuse("measure", path, "-o", out, words=[f"cannot read {path}: {reason}"])


@pytest.mark.parametrize("kept", [0.9, 0.5, 0.05])
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.fits", lambda path, pixels: fits.writeto(path, pixels)),
        ("a.fits.gz", write_gzipped),
        ("a.fits.fz", write_in_tiles),
        ("a.fits", write_extensions),
    ],
)
def test_truncated_image_is_one_line(refuse, tmp_path, pixels, out, name, write, kept):
    path = tmp_path / name
    write(path, pixels)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    refuse("measure", path, "-o", out, words=[f"cannot read {path}: it is truncated or damaged"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["no 2-D image"]),
        (["--ext", "0"], ["'0'", "not a 2-D image"]),
        (["--ext", "7"], ["no extension '7'"]),
        (["--ext", "SCI"], ["no extension 'SCI'"]),
    ],
)
def test_file_without_the_image_is_one_line(refuse, tmp_path, out, options, words):
    path = tmp_path / "table.fits"
    Table({"x": [1.0]}).write(path)
    refuse("measure", path, *options, "-o", out, words=[f"cannot read {path}", *words])


@pytest.mark.parametrize(
    "values",
    [
        np.full(SHAPE, 5.0),
        np.full(SHAPE, np.nan),
        np.full(SHAPE, np.inf),
        np.random.default_rng(FRESH_SEED).normal(100, 5, SHAPE),
        np.zeros((1, 1)),
    ],
    ids=["constant", "NaN", "infinite", "noise", "one pixel"],
)
@pytest.mark.parametrize("method", METHODS)
def test_image_without_stars_is_one_line(refuse, tmp_path, out, values, method):
    path = tmp_path / "empty.fits"
    fits.writeto(path, values.astype(np.float32))
    options = ["--method", method, "--threshold", "30"]
    refuse("measure", path, *options, "-o", out, words=[f"{path}: image must have "])


def test_masked_image_is_one_line(refuse, tmp_path, image, catalog, out):
    fits.writeto(tmp_path / "mask.fits", np.ones(SHAPE, np.uint8))
    options = ["--mask", tmp_path / "mask.fits", "-o", out]
    words = [f"{image}: image must have "]
    refuse("measure", image, *options, words=words)
    refuse("measure", image, "--catalog", catalog, *options, words=words)


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("a,b\n1,2\n", [], ["no column 'x' or 'ra'", "--x-column", "a, b"]),
        ("x,b\n1,2\n", [], ["no column 'y'", "--y-column"]),
        ("ra,b\n1,2\n", [], ["no column 'dec'", "--dec-column"]),
        ("x,y,X\n1,2,3\n", ["--x-column", "X"], ["another column 'x'"]),
        ("x,y\n1,2\n", ["--x-column", "px"], ["no column 'px'", "--x-column"]),
        ("x,y\nleft,up\n", [], ["'x' does not hold numbers"]),
        ("ra,dec\n1h,2d\n", [], ["'ra' ", "'12:34:56.7'", "'1h'"]),
        ("x,y\n1,2,3\n4\n", [], ["inconsistent"]),
        ("x,y\n1,2\n", ["--ra-column", "x", "--one-based"], ["do not go with --ra-column"]),
        ("", [], ["no column 'x'", "none"]),
    ],
)
def test_catalogue_without_usable_positions_is_one_line(
    refuse, tmp_path, image, out, text, options, words
):
    cat = tmp_path / "cat.csv"
    cat.write_text(text)
    words = [f"{image}: cannot use {cat}", *words]
    refuse("measure", image, "--catalog", cat, *options, "-o", out, words=words)


@pytest.mark.parametrize("name", ["missing.csv", "missing.fits", "missing"])
def test_missing_catalogue_is_one_line(refuse, tmp_path, image, out, name):
    words = [f"cannot use {tmp_path / name}: No such file or directory"]
    refuse("measure", image, "--catalog", tmp_path / name, "-o", out, words=words)


def test_catalogue_in_no_table_format_is_one_line(refuse, tmp_path, image, out):
    cat = tmp_path / "cat.dat"
    cat.write_text("Dear colleague,\nthe stars, you ask?\n\n  They are many\n")
    words = [f"cannot use {cat}", "no table format"]
    refuse("measure", image, "--catalog", cat, "-o", out, words=words)


def test_sky_positions_need_world_coordinates(refuse, tmp_path, bare_image, out):
    cat = tmp_path / "cat.csv"
    cat.write_text("ra,dec\n150.1,2.2\n")
    words = [f"cannot use {cat}", "'ra' and 'dec'", "no celestial coordinates"]
    refuse("measure", bare_image, "--catalog", cat, "-o", out, words=words)


def test_broken_world_coordinates_are_told(refuse, tmp_path, pixels, out):
    path, cat = tmp_path / "broken.fits", tmp_path / "cat.csv"
    header = make_wcs_header()
    header["CRVAL1"] = "ten hours"
    fits.writeto(path, pixels, header)
    cat.write_text("ra,dec\n150.1,2.2\n")
    refuse("measure", path, "--catalog", cat, "-o", out, words=["CRVAL1 is not a number"])


@pytest.mark.parametrize("plane", ["mask", "err", "weight", "bg"])
def test_plane_of_another_shape_is_one_line(refuse, tmp_path, image, out, plane):
    path = tmp_path / "plane.fits"
    fits.writeto(path, np.ones((5, 6)))
    words = [f"{image}: cannot read {path}", "5 x 6", "140 x 160"]
    refuse("measure", image, f"--{plane}", path, "-o", out, words=words)


@pytest.mark.parametrize("plane", ["mask", "err", "weight", "bg"])
@pytest.mark.parametrize(
    ("suffix", "words"),
    [("", ["No such file"]), ("[ERR]", ["No such file"])],
)
def test_missing_plane_is_one_line(refuse, tmp_path, image, out, plane, suffix, words):
    path = f"{tmp_path / 'missing.fits'}{suffix}"
    words = [f"cannot read {path}", *words]
    refuse("measure", image, f"--{plane}", path, "-o", out, words=words)


def test_missing_extension_of_a_plane_is_one_line(refuse, image, extensions, out):
    words = [f"cannot read {extensions}[RMS]", "no extension 'RMS'", "2 (ERR)"]
    refuse("measure", image, "--err", f"{extensions}[RMS]", "-o", out, words=words)


IMPOSSIBLE = {
    "--aper": ["-1", "0", "nan", "inf", "1e9"],
    "--bkgann": ["5 3", "0 3", "nan 3", "3 inf", "-2 3"],
    "--fwhm": ["-1", "0", "nan", "inf"],
    "--gain": ["-1", "nan"],
    "--saturation": ["-1", "nan"],
    "--exposure": ["-1", "nan", "inf"],
    "--threshold": ["-3", "0", "nan", "inf"],
    "--passes": ["-1", "0"],
    "--bg-size": ["-1", "0"],
    "--centroid-iter": ["-2"],
    "--sn": ["nan"],
    "--err": ["-1", "0", "nan", "inf"],
    "--bg": ["nan", "inf"],
    "--method optimal --grouper-radius": ["nan"],
}


@pytest.mark.parametrize(
    ("option", "value"), [(name, value) for name, values in IMPOSSIBLE.items() for value in values]
)
def test_impossible_value_is_one_line_with_the_option(refuse, image, out, option, value):
    refuse("measure", image, *option.split(), *value.split(), "-o", out, words=[option.split()[-1]])


@pytest.mark.parametrize("degree", ["-1", "40"])
def test_impossible_degree_of_the_psf_is_one_line(refuse, image, out, degree):
    options = ["--method", "psf", "--psf-degree", degree]
    refuse("measure", image, *options, "-o", out, words=["degree", degree])


@pytest.mark.parametrize("name", ["missing.psf", "field.fits", "stars.csv"])
def test_psf_that_is_no_model_is_one_line(refuse, shared, image, catalog, out, name):
    words = [f"cannot read {shared / name}"]
    refuse("measure", image, "--method", "psf", "--psf", shared / name, "-o", out, words=words)


@pytest.mark.parametrize("command", ["measure", "demo"])
def test_unknown_backend_in_the_environment_is_one_line(
    refuse, tmp_path, image, monkeypatch, command
):
    monkeypatch.setenv("GPUPHOT_BACKEND", "abacus")
    args = ["measure", image] if command == "measure" else ["demo"]
    refuse(*args, "-o", tmp_path / "new", words=["GPUPHOT_BACKEND", "abacus"])


@pytest.mark.parametrize("asked_by", ["--backend", "GPUPHOT_BACKEND"])
def test_backend_without_a_gpu_is_one_line(refuse, image, out, monkeypatch, asked_by):
    monkeypatch.setattr(
        "gpuphot.backend.find_gpu", lambda: probe.Gpu(None, "The driver finds no GPU.")
    )
    options = ["--backend", "cupy"] if asked_by == "--backend" else []
    if not options:
        monkeypatch.setenv("GPUPHOT_BACKEND", "cupy")
    words = ["cupy", "no GPU is usable", "The driver finds no GPU."]
    refuse("measure", image, *options, "-o", out, words=words)


def test_error_of_the_program_itself_is_not_hidden(tmp_path, image, monkeypatch):
    monkeypatch.setattr("gpuphot.pipeline.measure_image", failing(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run("measure", image, "-o", tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_interrupt_leaves_nothing_behind(tmp_path, image, monkeypatch):
    monkeypatch.setattr("gpuphot.pipeline.write_table", failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run("measure", image, "-o", tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


# gpuphot demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The directory of a demo, and what it printed."""
    pytest.importorskip("matplotlib")
    directory = tmp_path_factory.mktemp("demo") / "a" / "b"
    with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(io.StringIO()) as printed:
        monkeypatch.delenv("GPUPHOT_BACKEND", raising=False)
        assert run("demo", "-o", directory) == 0
    return directory, printed.getvalue()


def test_demo_writes_table_and_pictures_and_names_them(demo):
    directory, printed = demo
    assert {path.name for path in directory.iterdir()} == {"m13.ecsv", *DEMO_PICTURES}
    for name in DEMO_PICTURES:
        assert (directory / name).read_bytes().startswith(b"\x89PNG")
        assert str(directory / name) in printed
    assert f"{directory / 'm13.ecsv'}: the table" in printed
    assert "gpuphot measure YOUR.fits" in printed


def test_demo_measures_the_stars_of_m13(demo):
    stars = Table.read(demo[0] / "m13.ecsv")
    assert len(stars) > 300
    np.testing.assert_allclose(stars["ra"], 250.42, atol=0.06)
    np.testing.assert_allclose(stars["dec"], 36.46, atol=0.05)
    assert {"flux", "flux_ap_raw", "flux_psf", "fracflux"} <= set(stars.colnames)


def test_demo_prints_what_deblending_gains(demo):
    """Where it is crowded, plain apertures gather far more than the star's own light."""
    rows = re.findall(r"^ +\d+ to \d+ +(\d+\.\d+) +(\d+\.\d+)$", demo[1], re.MULTILINE)
    plain, deblended = np.array(rows, dtype=float).T
    assert len(plain) == 4
    assert plain[0] > 1.15
    assert np.all(abs(deblended - 1) < 0.1)
    assert abs(deblended[0] - 1) < 0.5 * (plain[0] - 1)


@pytest.fixture
def quick_demo(monkeypatch):
    """The demo with the measurements made up."""
    monkeypatch.setattr("gpuphot.demo.measure_image", lambda *_, **__: cluster())
    distance = np.linspace(0, 139, 50)
    artificial = Table({"distance": distance, "plain": 1.3 + 0 * distance, "deblended": distance})
    monkeypatch.setattr("gpuphot.demo._measure_artificial_stars", lambda *_: artificial)


def cluster():
    table = Table({"x": [100.0, 150.0], "y": [100.0, 150.0], "flux": [1e4, 2e4], "flags": [0, 0]})
    plane = np.ones((300, 300))
    return ImagePhotometry(
        table, 3.0, 3.0, PSFModel.gaussian(3.0), plane, plane, plane == 0, ("what was done",)
    )


def test_demo_without_matplotlib_says_how_to_get_the_pictures(
    tmp_path, capsys, monkeypatch, quick_demo
):
    hide_module(monkeypatch, "matplotlib", "matplotlib.axes", "matplotlib.figure")
    assert run("demo", "-o", tmp_path) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["m13.ecsv"]
    printed = capsys.readouterr().out
    assert 'pip install "gpuphot-survey[plot]"' in printed
    assert "what was done" in printed


def test_demo_replaces_its_own_files_only(tmp_path, monkeypatch, quick_demo):
    hide_module(monkeypatch, "matplotlib", "matplotlib.axes", "matplotlib.figure")
    (tmp_path / "m13.ecsv").write_text("old")
    (tmp_path / "other.ecsv").write_text("other")
    assert run("demo", "-o", tmp_path) == 0
    assert len(Table.read(tmp_path / "m13.ecsv")) == 2
    assert (tmp_path / "other.ecsv").read_text() == "other"


def test_demo_without_sep_says_what_to_install(refuse, tmp_path, monkeypatch):
    hide_module(monkeypatch, "sep_x")
    refuse("demo", "-o", tmp_path / "new" / "demo", words=["pip install sep-x"])


def test_demo_without_its_image_is_one_line(refuse, tmp_path, monkeypatch):
    monkeypatch.setattr("gpuphot.demo._IMAGE", "no/such.fits")
    refuse("demo", "-o", tmp_path / "new", words=["without the demo's image", "no/such.fits"])


def test_demo_in_place_of_a_file_is_refused(refuse, tmp_path):
    (tmp_path / "file").write_text("precious")
    refuse("demo", "-o", tmp_path / "file", words=[str(tmp_path / "file"), "File exists"])


def test_demo_on_a_full_disk_is_one_line(refuse, tmp_path, monkeypatch, quick_demo):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(Table, "write", failing(full))
    refuse("demo", "-o", tmp_path / "new", words=["No space left on device"])


# gpuphot info


def info_rows(capsys):
    """The first line of each entry that info prints, by the entry's name."""
    lines = capsys.readouterr().out.splitlines()
    return {line[:16].strip(): line[16:].strip() for line in lines if not line.startswith(" ")}


def test_info_shows_versions_and_that_sep_and_cupy_may_be_missing(capsys, monkeypatch):
    installed = {"numpy": "2.1", "scipy": "1.14", "astropy": "7.0"}

    def version(name):
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr("gpuphot.info.metadata.version", version)
    hide_module(monkeypatch, "cupy")
    monkeypatch.setattr(probe, "find_gpu", probe.find_gpu.__wrapped__)  # Without its cache
    assert run("info") == 0
    shown = info_rows(capsys)
    assert shown["gpuphot"] == __version__
    assert (shown["numpy"], shown["scipy"], shown["astropy"]) == ("2.1", "1.14", "7.0")
    assert shown["sep-x"] == shown["cupy"] == "not installed"
    assert shown["cupy backend"].startswith("not usable. CuPy is not installed: pip install")


def test_info_finds_the_cupy_wheel_of_a_cuda_version(capsys, monkeypatch):
    def version(name):
        if name != "cupy-cuda12x":
            raise PackageNotFoundError(name)
        return "14.0"

    monkeypatch.setattr("gpuphot.info.metadata.version", version)
    assert run("info") == 0
    assert info_rows(capsys)["cupy"] == "14.0"


@pytest.mark.parametrize(
    ("gpu", "shown"),
    [
        (probe.Gpu("NVIDIA H200", None), "usable, on NVIDIA H200"),
        (
            probe.Gpu(None, "The NVIDIA driver finds no GPU."),
            "not usable. The NVIDIA driver finds no GPU.",
        ),
    ],
)
def test_info_shows_what_the_probe_found(capsys, monkeypatch, gpu, shown):
    monkeypatch.setattr(probe, "find_gpu", lambda: gpu)
    assert run("info") == 0
    assert info_rows(capsys)["cupy backend"] == shown


def test_info_survives_a_probe_that_fails(capsys, monkeypatch):
    monkeypatch.setattr(probe, "find_gpu", failing(RuntimeError("the driver\nis broken")))
    assert run("info") == 0
    shown = info_rows(capsys)["cupy backend"]
    assert shown == "not usable. It cannot be probed: the driver is broken"


@pytest.mark.parametrize(
    ("value", "shown", "in_use"),
    [(None, "not set", "numpy"), ("numpy", "numpy", "numpy"), ("abacus", "abacus", "none: ")],
)
def test_info_shows_the_backend_that_the_environment_asks_for(
    capsys, monkeypatch, value, shown, in_use
):
    if value is not None:
        monkeypatch.setenv("GPUPHOT_BACKEND", value)
    assert run("info") == 0
    rows = info_rows(capsys)
    assert rows["GPUPHOT_BACKEND"] == shown
    assert rows["in use"].startswith(in_use)
    assert rows["numpy backend"].startswith("usable")


# gpuphot info --compile


@pytest.fixture
def compile_module(monkeypatch):
    """The module that compiles, on a machine that says that it has a GPU; its kernels vary."""
    monkeypatch.setattr(probe, "find_gpu", lambda: probe.Gpu("NVIDIA H200", None))
    module = ModuleType("gpuphot.cupy_backend.compile")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def compiled(local_bytes=0):
    return SimpleNamespace(
        name="aperture_sums", file="aperture.cu", registers=56, max_registers=96,
        local_bytes=local_bytes, shared_bytes=32, seconds=1.25,
    )  # fmt: skip


def test_compile_shows_what_each_kernel_uses_and_the_time_of_each_file(capsys, compile_module):
    compile_module.compile_kernels = lambda: [compiled(), compiled()]
    assert run("info", "--compile") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["2", "kernels", "for", "NVIDIA", "H200"]
    assert lines.count(["aperture_sums", "56", "0", "32"]) == 2
    assert lines.count(["aperture.cu", "1.250"]) == 1


def test_compile_fails_if_a_kernel_uses_local_memory(capsys, compile_module):
    compile_module.compile_kernels = lambda: [compiled(local_bytes=40)]
    assert run("info", "--compile") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "local memory" in error
    assert "aperture_sums" in error


def test_compile_without_a_gpu_says_what_is_missing(capsys, monkeypatch):
    problem = "No usable NVIDIA driver: cudaErrorInsufficientDriver."
    monkeypatch.setattr(probe, "find_gpu", lambda: probe.Gpu(None, problem))
    assert run("info", "--compile") == 2
    assert_one_line_error(capsys, problem)


def test_compile_without_cupy_says_what_to_install(capsys, monkeypatch):
    hide_module(monkeypatch, "cupy")
    monkeypatch.setattr(probe, "find_gpu", probe.find_gpu.__wrapped__)  # Without its cache
    assert run("info", "--compile") == 2
    assert_one_line_error(capsys, "CuPy is not installed", "pip install")


def test_kernels_that_do_not_compile_are_one_line(capsys, compile_module):
    error = RuntimeError("aperture.cu(1): error\n1 error detected")
    compile_module.compile_kernels = failing(error)
    assert run("info", "--compile") == 2
    assert_one_line_error(capsys, "do not compile: aperture.cu(1): error 1 error detected")
