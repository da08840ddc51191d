"""The command line, as a user meets it: files in, files and lines out."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from gpuphot import BackendError, __version__, files, measure_objects
from gpuphot.cli import main
from gpuphot.cupy_backend import probe

from .psfs import make_psf, write_psf_file

SHAPE = (120, 100)
X = np.array([20.25, 50.75, 80.0])
Y = np.array([30.0, 60.5, 90.75])
DEMO_PLOTS = {"m13-field.png", "m13-errors.png"}


@pytest.fixture(autouse=True)
def _default_backend(monkeypatch):
    monkeypatch.delenv("GPUPHOT_BACKEND", raising=False)


@pytest.fixture(scope="module")
def pixels():
    """Three bright stars on a noisy background of 100 counts."""
    y, x = np.indices(SHAPE)
    image = np.random.default_rng(1).normal(100.0, 5.0, SHAPE)
    for x_star, y_star in zip(X, Y, strict=True):
        image += 3000 * np.exp(-((x - x_star) ** 2 + (y - y_star) ** 2) / (2 * 1.5**2))
    return image.astype(np.float32)


@pytest.fixture
def image(tmp_path, pixels):
    path = tmp_path / "image.fits"
    fits.writeto(path, pixels)
    return path


@pytest.fixture
def catalog(tmp_path):
    path = tmp_path / "stars.csv"
    Table({"x": X, "y": Y}).write(path)
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.ecsv"


def run(*args):
    return main([str(arg) for arg in args])


def assert_one_line_error(capsys, *words):
    """Nothing on stdout; one line on stderr, with these words."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("gpuphot: error: ")
    assert captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err


def failing(message):
    def fail():
        raise RuntimeError(message)

    return fail


def hide_module(monkeypatch, *names):
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


# gpuphot


def test_without_command_prints_help(capsys):
    assert run() == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in ("demo", "measure", "info"))


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit, match="0"):
        run("--version")
    assert capsys.readouterr().out == f"gpuphot {__version__}\n"


def test_module_runs_as_a_program():
    command = [sys.executable, "-m", "gpuphot.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"gpuphot {__version__}\n"


def test_import_loads_neither_sep_nor_cupy_nor_matplotlib():
    code = (
        "import sys, gpuphot.cli\n"
        "print({'sep_x', 'cupy', 'matplotlib'} & {name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["conquer"], ["conquer"]),
        (["measure"], ["IMAGE"]),
        (["measure", "i.fits", "-o", "o.csv"], ["--catalog", "--detect"]),
        (["measure", "i.fits", "--catalog", "c.csv"], ["--output"]),
        (["measure", "i.fits", "--catalog", "c.csv", "--detect", "-o", "o.csv"], ["--detect"]),
        (["measure", "i.fits", "--detect", "-o", "o.csv", "--aper", "big"], ["--aper", "big"]),
        (["measure", "i.fits", "--detect", "-o", "o.csv", "--one-based"], ["--one-based"]),
        (["measure", "i.fits", "--detect", "-o", "o.csv", "--x-column", "X"], ["--x-column"]),
        (["measure", "i.fits", "--catalog", "c", "-o", "o", "--threshold", "3"], ["--threshold"]),
        (["measure", "i.fits", "--detect", "-o", "o.csv", "--over"], ["--over"]),
    ],
)
def test_usage_error_is_one_line_and_status_2(capsys, args, words):
    with pytest.raises(SystemExit, match="2"):
        run(*args)
    assert_one_line_error(capsys, *words)


# gpuphot demo


def test_demo_writes_table_and_plots_and_explains_them(tmp_path, capsys):
    pytest.importorskip("sep_x")
    pytest.importorskip("matplotlib")
    directory = tmp_path / "a" / "b"
    assert run("demo", "-o", directory) == 0
    assert {path.name for path in directory.iterdir()} == {"m13.ecsv", *DEMO_PLOTS}

    stars = Table.read(directory / "m13.ecsv")
    printed = capsys.readouterr().out
    assert f"{len(stars)} stars" in printed
    assert f"{np.count_nonzero(stars['flags'] == 0)}  no flag" in printed
    for word in ("numpy backend", "S/N", "MASKED", "INVALID", *DEMO_PLOTS, "gpuphot measure"):
        assert word in printed


def test_demo_measures_the_stars_of_m13(tmp_path, monkeypatch):
    pytest.importorskip("sep_x")
    hide_module(monkeypatch, "matplotlib", "matplotlib.figure")
    assert run("demo", "-o", tmp_path) == 0
    stars = Table.read(tmp_path / "m13.ecsv")
    assert len(stars) > 300
    assert np.all(stars["flux"] > 0)
    np.testing.assert_allclose(stars["ra"], 250.42, atol=0.06)
    np.testing.assert_allclose(stars["dec"], 36.46, atol=0.05)


def test_demo_without_matplotlib_says_how_to_get_the_plots(tmp_path, capsys, monkeypatch):
    pytest.importorskip("sep_x")
    hide_module(monkeypatch, "matplotlib", "matplotlib.figure")
    assert run("demo", "-o", tmp_path) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["m13.ecsv"]
    assert 'pip install "gpuphot-survey[plot]"' in capsys.readouterr().out


def test_demo_replaces_its_own_files(tmp_path, monkeypatch):
    pytest.importorskip("sep_x")
    hide_module(monkeypatch, "matplotlib", "matplotlib.figure")
    assert run("demo", "-o", tmp_path) == run("demo", "-o", tmp_path) == 0


def test_demo_without_sep_says_what_to_install(tmp_path, capsys, monkeypatch):
    hide_module(monkeypatch, "sep_x")
    assert run("demo", "-o", tmp_path) == 1
    assert_one_line_error(capsys, "pip install sep-x")


def test_demo_without_its_image_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gpuphot.demo._IMAGE", "no/such.fits")
    assert run("demo", "-o", tmp_path) == 1
    assert_one_line_error(capsys, "no/such.fits")


def test_demo_in_place_of_a_file_is_refused(image, capsys):
    assert run("demo", "-o", image) == 1
    assert_one_line_error(capsys, str(image), "File exists")


# gpuphot measure: results


@pytest.mark.parametrize("suffix", [".csv", ".ecsv", ".fits", ".vot", ".dat", ".tex"])
def test_catalog_and_output_in_any_table_format_give_the_same_fluxes(
    tmp_path, image, pixels, suffix
):
    objects = Table({"x": X, "y": Y, "name": ["a", "b", "c"]})
    catalog, out = tmp_path / f"stars{suffix}", tmp_path / f"out{suffix}"
    files.write_table(objects, catalog)
    assert run("measure", image, "--catalog", catalog, "-o", out) == 0
    measured = files.read_catalog(out)
    expected = measure_objects(objects, pixels)
    assert measured.colnames == expected.colnames
    for name in ("x", "y", "flux", "fluxerr", "mag", "flags"):
        np.testing.assert_allclose(measured[name], expected[name], rtol=1e-12)
    assert list(measured["name"]) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ([], {}),
        (["--aper", "5"], {"aper": 5.0}),
        (
            ["--fwhm", "3.5", "--aper", "1", "--bkgann", "2", "4", "--bkg-order", "1"],
            {"fwhm": 3.5, "aper": 1.0, "bkgann": (2.0, 4.0), "bkg_order": 1},
        ),
        (["--gain", "1.5", "--bg-size", "32"], {"gain": 1.5, "bg_size": 32}),
        (["--bg", "100", "--err", "5"], {"bg": 100.0, "err": 5.0}),
        (["--centroid-iter", "2"], {"centroid_iter": 2}),
        (["--sn", "400"], {"sn": 400.0}),
        (["--bg", "2000", "--drop-negative"], {"bg": 2000.0, "keep_negative": False}),
        (["--backend", "numpy"], {"backend": "numpy"}),
        (
            ["--centroid-iter", "1", "--centroid-method", "psf", "--fwhm", "3"],
            {"centroid_iter": 1, "centroid_method": "psf", "fwhm": 3.0},
        ),
        (
            ["--optimal", "--fwhm", "3", "--grouper-radius", "4"],
            {"optimal": True, "fwhm": 3.0, "grouper_radius": 4.0},
        ),
        (
            ["--optimal", "--fwhm", "3", "--no-groups"],
            {"optimal": True, "fwhm": 3.0, "group_sources": False},
        ),
    ],
)
def test_options_act_as_the_arguments_of_measure_objects(
    image, pixels, catalog, out, options, arguments
):
    assert run("measure", image, "--catalog", catalog, "-o", out, *options) == 0
    measured, expected = Table.read(out), measure_objects(Table.read(catalog), pixels, **arguments)
    assert measured.colnames == expected.colnames
    for name in expected.colnames:
        np.testing.assert_array_equal(measured[name], expected[name])


def test_psf_model_is_read_from_a_file(tmp_path, image, pixels, catalog, out, capsys):
    psf = tmp_path / "model.psf"
    write_psf_file(psf, make_psf(25, 25, 1.0, 0))
    options = ["--optimal", "--aper", "4", "--psf", psf]
    assert run("measure", image, "--catalog", catalog, "-o", out, *options) == 0
    expected = measure_objects(Table.read(catalog), pixels, aper=4, optimal=True, psf=psf)
    np.testing.assert_array_equal(Table.read(out)["flux"], expected["flux"])
    options[-1] = image
    assert run("measure", image, "--catalog", catalog, "-o", tmp_path / "b.ecsv", *options) == 1
    assert "--psf" in capsys.readouterr().err


def test_mask_background_and_noise_may_be_images(tmp_path, image, pixels, catalog, out):
    rng = np.random.default_rng(2)
    mask = np.zeros(SHAPE, np.uint8)
    mask[60, 51] = 1
    planes = {"mask": mask, "bg": rng.normal(100, 1, SHAPE), "err": rng.uniform(4, 6, SHAPE)}
    options = []
    for name, plane in planes.items():
        fits.writeto(tmp_path / f"{name}.fits", plane)
        options += [f"--{name}", tmp_path / f"{name}.fits"]
    assert run("measure", image, "--catalog", catalog, "-o", out, *options) == 0
    measured, expected = Table.read(out), measure_objects(Table.read(catalog), pixels, **planes)
    assert list(measured["flags"]) == [0, 0x200, 0]
    for name in ("flux", "fluxerr"):
        np.testing.assert_array_equal(measured[name], expected[name])


def test_last_line_counts_measured_flagged_and_dropped(
    tmp_path, image, pixels, catalog, out, capsys
):
    fits.writeto(tmp_path / "mask.fits", (pixels > 2500).astype(np.uint8))
    options = ["--mask", tmp_path / "mask.fits", "--sn", "5"]
    Table({"x": [*X, 5.0], "y": [*Y, 110.0]}).write(catalog, overwrite=True)
    assert run("measure", image, "--catalog", catalog, "-o", out, *options) == 0
    assert capsys.readouterr().out == f"3 objects measured, 3 flagged, 1 dropped: {out}\n"


def test_verbose_prints_what_is_done(image, catalog, out, capsys):
    assert run("measure", image, "--catalog", catalog, "-o", out, "--verbose") == 0
    assert "Measuring 3 objects with the numpy backend" in capsys.readouterr().out


def test_one_based_positions_of_other_columns_give_the_same_fluxes(tmp_path, image, catalog, out):
    sextractor = tmp_path / "sextractor.cat"
    rows = "".join(f"{x + 1:9.4f} {y + 1:9.4f}\n" for x, y in zip(X, Y, strict=True))
    sextractor.write_text(
        "#   1 X_IMAGE    Object position along x    [pixel]\n"
        "#   2 Y_IMAGE    Object position along y    [pixel]\n" + rows
    )
    columns = ["--x-column", "X_IMAGE", "--y-column", "Y_IMAGE", "--one-based"]
    assert run("measure", image, "--catalog", catalog, "-o", out) == 0
    expected = Table.read(out)
    again = ["-o", out, "--overwrite"]
    assert run("measure", image, "--catalog", sextractor, *columns, *again) == 0
    measured = Table.read(out)
    for name in ("x", "y", "flux"):
        np.testing.assert_allclose(measured[name], expected[name], rtol=1e-12)


def test_fits_output_keeps_quiet_about_metadata_it_cannot_hold(tmp_path, image, capsys):
    catalog, out = tmp_path / "stars.ecsv", tmp_path / "out.fits"
    meta = {"comments": ["one"], "a_long_keyword": 1, "nested": {"a": [1, 2]}}
    Table({"x": X, "y": Y}, meta=meta).write(catalog)
    assert run("measure", image, "--catalog", catalog, "-o", out) == 0
    assert capsys.readouterr().err == ""
    assert '"function": "measure_objects"' in Table.read(out).meta["GPUPHOT"]


@pytest.mark.parametrize("options", [[], ["--hdu", "SCI"], ["--hdu", "2"]])
def test_image_is_the_first_in_two_dimensions_or_the_hdu_asked_for(
    tmp_path, pixels, catalog, out, options
):
    path = tmp_path / "many.fits"
    hdus = [
        fits.PrimaryHDU(),
        fits.ImageHDU(np.zeros((2, 3, 4)), name="CUBE"),
        fits.CompImageHDU((10 * pixels).astype(np.int16), name="SCI"),
        fits.ImageHDU(pixels * 0, name="OTHER"),
    ]
    fits.HDUList(hdus).writeto(path)
    assert run("measure", path, "--catalog", catalog, "-o", out, *options) == 0
    expected = measure_objects(Table.read(catalog), (10 * pixels).astype(np.int16))
    np.testing.assert_array_equal(Table.read(out)["flux"], expected["flux"])


def test_overwrite_replaces_the_output_and_leaves_nothing_else(image, catalog, out, tmp_path):
    before = {*tmp_path.iterdir(), out}
    out.write_text("old")
    assert run("measure", image, "--catalog", catalog, "-o", out, "--overwrite") == 0
    assert len(Table.read(out)) == 3
    assert set(tmp_path.iterdir()) == before


# gpuphot measure: detection


def test_detect_finds_the_stars_and_nothing_else(image, out):
    pytest.importorskip("sep_x")
    assert run("measure", image, "--detect", "-o", out) == 0
    stars = Table.read(out)
    stars.sort("x")
    np.testing.assert_allclose(stars["x"], X, atol=0.1)
    np.testing.assert_allclose(stars["y"], Y, atol=0.1)
    assert stars.colnames[:7] == ["x", "y", "a", "b", "theta", "peak", "sep_flag"]
    np.testing.assert_allclose(stars["peak"], 3000, rtol=0.1)
    assert not np.any(stars["sep_flag"])
    assert not np.any(stars["flags"])


def test_detect_ignores_masked_and_non_finite_pixels(tmp_path, pixels, out):
    pytest.importorskip("sep_x")
    path, mask_path = tmp_path / "image.fits", tmp_path / "mask.fits"
    image, mask = pixels.astype(">f8"), np.zeros(SHAPE, np.uint8)
    image[Y.astype(int)[0] - 8 : Y.astype(int)[0] + 9] = np.nan
    mask[Y.astype(int)[1] - 8 : Y.astype(int)[1] + 9] = 1
    fits.writeto(path, image)
    fits.writeto(mask_path, mask)
    assert run("measure", path, "--detect", "--mask", mask_path, "-o", out) == 0
    np.testing.assert_allclose(Table.read(out)["x"], X[2:], atol=0.1)


def test_threshold_is_in_units_of_the_noise(image, out):
    pytest.importorskip("sep_x")
    assert run("measure", image, "--detect", "--threshold", "5000", "-o", out) == 0
    assert len(Table.read(out)) == 0


def test_detect_without_sep_says_what_to_install(image, out, capsys, monkeypatch):
    hide_module(monkeypatch, "sep_x")
    assert run("measure", image, "--detect", "-o", out) == 1
    assert_one_line_error(capsys, "pip install sep-x")


def test_threshold_that_overwhelms_sep_is_one_line(tmp_path, out, capsys):
    pytest.importorskip("sep_x")
    path = tmp_path / "noise.fits"
    fits.writeto(path, np.random.default_rng(3).normal(size=(900, 900)).astype(np.float32))
    assert run("measure", path, "--detect", "--threshold", "0.001", "-o", out) == 1
    assert_one_line_error(capsys, "threshold=0.001", "pixel buffer")


# gpuphot measure: errors


def test_existing_output_is_kept_and_nothing_is_measured(catalog, out, capsys):
    out.write_text("precious")
    assert run("measure", "no-such-image.fits", "--catalog", catalog, "-o", out) == 1
    assert_one_line_error(capsys, str(out), "--overwrite")
    assert out.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "words"),
    [("out.magic", [".magic", ".ecsv"]), ("out", ["suffix"]), ("nowhere/out.csv", ["directory"])],
)
def test_output_that_cannot_be_written_is_found_before_the_image_is_read(
    tmp_path, catalog, capsys, name, words
):
    out = tmp_path / name
    assert run("measure", "no-such-image.fits", "--catalog", catalog, "-o", out) == 1
    assert_one_line_error(capsys, f"cannot write {out}", *words)


def test_missing_library_of_the_output_format_is_named(tmp_path, catalog, capsys, monkeypatch):
    hide_module(monkeypatch, "h5py")
    out = tmp_path / "out.hdf5"
    assert run("measure", "no-such-image.fits", "--catalog", catalog, "-o", out) == 1
    assert_one_line_error(capsys, "h5py")


def test_column_that_the_format_cannot_hold_leaves_the_old_output(tmp_path, image, capsys):
    catalog, out = tmp_path / "stars.ecsv", tmp_path / "out.csv"
    Table({"x": X, "y": Y, "radii": np.ones((3, 2))}).write(catalog)
    out.write_text("old")
    assert run("measure", image, "--catalog", catalog, "-o", out, "--overwrite") == 1
    assert_one_line_error(capsys, f"cannot write {out}", "dimension")
    assert out.read_text() == "old"


def test_missing_image_is_one_line(tmp_path, catalog, out, capsys):
    missing = tmp_path / "missing.fits"
    assert run("measure", missing, "--catalog", catalog, "-o", out) == 1
    assert_one_line_error(capsys, f"cannot read {missing}: No such file or directory")


def test_image_that_is_not_fits_is_one_line(catalog, out, capsys):
    assert run("measure", catalog, "--catalog", catalog, "-o", out) == 1
    assert_one_line_error(capsys, f"cannot read {catalog}", "FITS")


@pytest.mark.filterwarnings("ignore")
def test_truncated_image_is_one_line(image, catalog, out, capsys):
    image.write_bytes(image.read_bytes()[:5000])
    assert run("measure", image, "--catalog", catalog, "-o", out) == 1
    assert "gpuphot: error: cannot read" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["no 2-D image"]),
        (["--hdu", "0"], ["'0'", "not a 2-D image"]),
        (["--hdu", "7"], ["no HDU '7'"]),
        (["--hdu", "SCI"], ["no HDU 'SCI'"]),
    ],
)
def test_file_without_the_image_is_one_line(tmp_path, catalog, out, capsys, options, words):
    path = tmp_path / "table.fits"
    Table({"x": X}).write(path)
    assert run("measure", path, "--catalog", catalog, "-o", out, *options) == 1
    assert_one_line_error(capsys, str(path), *words)


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("a,b\n1,2\n", [], ["no column 'x'", "--x-column", "a, b"]),
        ("x,b\n1,2\n", [], ["no column 'y'", "--y-column"]),
        ("", [], ["no column 'x'", "none"]),
        ("x,y\n1,2,3\n4\n", [], ["inconsistent"]),
        ("x,y\nleft,up\n", [], ["'x' does not hold numbers"]),
        ("x,y,X\n1,2,3\n", ["--x-column", "X"], ["another column 'x'"]),
    ],
)
def test_catalog_without_usable_positions_is_one_line(
    image, catalog, out, capsys, text, options, words
):
    catalog.write_text(text)
    assert run("measure", image, "--catalog", catalog, "-o", out, *options) == 1
    assert_one_line_error(capsys, f"cannot use {catalog}", *words)


@pytest.mark.parametrize("name", ["missing.csv", "missing.dat"])
def test_missing_catalog_is_one_line(tmp_path, image, out, capsys, name):
    assert run("measure", image, "--catalog", tmp_path / name, "-o", out) == 1
    assert_one_line_error(capsys, name, "No such file or directory")


def test_catalog_in_no_table_format_is_one_line(tmp_path, image, out, capsys):
    catalog = tmp_path / "catalog.dat"
    catalog.write_text("Dear colleague,\nthe stars, you ask?\n\n  They are many\n")
    assert run("measure", image, "--catalog", catalog, "-o", out) == 1
    assert_one_line_error(capsys, str(catalog), "no table format")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--aper", "-1"], ["--aper must be", "-1.0"]),
        (["--bkgann", "5", "3"], ["--bkgann must"]),
        (["--bg-size", "0"], ["--bg-size must be"]),
        (["--centroid-iter", "-2"], ["--centroid-iter must be"]),
        (["--gain", "nan"], ["--gain must be"]),
        (["--fwhm", "0"], ["--fwhm must be"]),
        (["--mask", "missing.fits"], ["missing.fits"]),
        (["--bg", "twelve"], ["twelve", "No such file"]),
    ],
)
def test_option_with_an_impossible_value_is_named(image, catalog, out, capsys, options, words):
    assert run("measure", image, "--catalog", catalog, "-o", out, *options) == 1
    assert_one_line_error(capsys, *words)
    assert not out.exists()


def test_backend_that_cannot_compute_is_one_line(image, catalog, out, capsys, monkeypatch):
    def fail(*_, **__):
        raise BackendError("there is no GPU")

    monkeypatch.setattr("gpuphot.cli.measure_objects", fail)
    assert run("measure", image, "--catalog", catalog, "-o", out, "--backend", "cupy") == 1
    assert_one_line_error(capsys, "there is no GPU")


def test_unknown_backend_in_the_environment_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GPUPHOT_BACKEND", "abacus")
    assert run("demo", "-o", tmp_path) == 1
    assert_one_line_error(capsys, "GPUPHOT_BACKEND", "abacus")


def test_mask_of_another_shape_is_named(tmp_path, image, catalog, out, capsys):
    fits.writeto(tmp_path / "mask.fits", np.zeros((5, 5)))
    mask = ["--mask", tmp_path / "mask.fits"]
    assert run("measure", image, "--catalog", catalog, "-o", out, *mask) == 1
    assert_one_line_error(capsys, "--mask must", "(120, 100)")


def test_threshold_that_is_not_positive_is_named(image, out, capsys):
    pytest.importorskip("sep_x")
    assert run("measure", image, "--detect", "--threshold", "-3", "-o", out) == 1
    assert_one_line_error(capsys, "--threshold must be a positive number")


def test_error_of_the_program_itself_is_not_hidden(image, catalog, out, monkeypatch):
    monkeypatch.setattr("gpuphot.cli.measure_objects", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("measure", image, "--catalog", catalog, "-o", out)


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

    monkeypatch.setattr("gpuphot.cli.metadata.version", version)
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

    monkeypatch.setattr("gpuphot.cli.metadata.version", version)
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
    monkeypatch.setattr(probe, "find_gpu", failing("the driver\nis broken"))
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
    assert run("info", "--compile") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "local memory" in error
    assert "aperture_sums" in error


def test_compile_without_a_gpu_says_what_is_missing(capsys, monkeypatch):
    problem = "No usable NVIDIA driver: cudaErrorInsufficientDriver."
    monkeypatch.setattr(probe, "find_gpu", lambda: probe.Gpu(None, problem))
    assert run("info", "--compile") == 1
    assert_one_line_error(capsys, problem)


def test_compile_without_cupy_says_what_to_install(capsys, monkeypatch):
    hide_module(monkeypatch, "cupy")
    monkeypatch.setattr(probe, "find_gpu", probe.find_gpu.__wrapped__)  # Without its cache
    assert run("info", "--compile") == 1
    assert_one_line_error(capsys, "CuPy is not installed", "pip install")


def test_kernels_that_do_not_compile_are_one_line(capsys, compile_module):
    compile_module.compile_kernels = failing("aperture.cu(1): error\n1 error detected")
    assert run("info", "--compile") == 1
    assert_one_line_error(capsys, "do not compile: aperture.cu(1): error 1 error detected")
