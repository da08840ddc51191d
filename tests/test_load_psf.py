"""PSFEx files: against stdpipe's reader, against GalSim's, and those that are broken.

GalSim's ``DES_PSFEx`` is an independent reader with a renderer of its own. It combines the planes
in float64 and rounds the result to float32, interpolates with a Lanczos kernel of order 3 where
gpuphot has a cubic spline, and leaves the sum of a stamp as it comes. Where a pixel of the stamp
lies on a pixel of the model neither interpolates, and they agree to the rounding; elsewhere they
differ by as much as interpolants do. The polynomial is evaluated by both at the numbers that they
are given: GalSim expects them to count from 1, as the file does, stdpipe and gpuphot from 0.
"""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from gpuphot import load_psf
from gpuphot.numpy_backend.stamps import psf_stamps

from .psfs import DATA, MADE_UP, REAL, make_psf, path_of, write_psf_file

FLOAT32 = 1e-7
"""Rounding of the planes to float32, relative to the peak; 6e-8 is the largest possible."""

WELL_SAMPLED = {
    "sampling 1": (45, 51, 1.0, 2),
    "sampling 1/2, blocks": (68, 64, 0.5, 2),
    "sampling 1/2": (67, 65, 0.5, 2),
    "sampling 1/4": (129, 125, 0.25, 1),
    "sampling 0.53": (65, 67, 0.53, 2),
}


@pytest.fixture
def psf():
    return make_psf(25, 23, 0.9, 2)


def smooth_psf(height, width, sampling, degree):
    """A made-up model that no interpolant has difficulties with: wider, and without noise."""
    psf = make_psf(height, width, sampling, degree)
    row, column = np.indices((height, width)) - np.array([height - 1, width - 1])[:, None, None] / 2
    for k in range(psf["ncoeffs"]):
        r2 = (column - 0.3 * k) ** 2 + (row + 0.2 * k) ** 2
        star = np.exp(-r2 * sampling**2 / 2 / 2.0**2)
        psf["data"][k] = star / star.sum() * (0.1 if k else 1)
    return psf


def assert_same_model(model, expected):
    for key in ("width", "height", "ncoeffs", "sampling", "degree", "fwhm", "x0", "y0", "sx", "sy"):
        assert model[key] == expected[key], key
    np.testing.assert_array_equal(model["data"], expected["data"])


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read_as_stdpipe_reads_them(name):
    expected = pytest.importorskip("stdpipe.psf").load_psf(path_of(name))
    assert_same_model(load_psf(path_of(name)), expected)


@pytest.mark.parametrize("name", MADE_UP)
def test_made_up_files_are_read_as_stdpipe_reads_them(tmp_path, name):
    path = write_psf_file(tmp_path / "made-up.psf", make_psf(*MADE_UP[name]))
    expected = pytest.importorskip("stdpipe.psf").load_psf(path)
    assert_same_model(load_psf(path), expected)
    assert_same_model(load_psf(str(path)), expected)


def test_planes_are_in_native_byte_order(tmp_path, psf):
    planes = load_psf(write_psf_file(tmp_path / "some.psf", psf)).planes
    assert planes.dtype == np.float64
    assert planes.dtype.isnative


def test_constant_model_needs_no_polynomial(tmp_path):
    psf = make_psf(25, 23, 0.9, 0)
    polynomial = dict.fromkeys(("POLDEG1", "POLZERO1", "POLZERO2", "POLSCAL1", "POLSCAL2"))
    path = write_psf_file(tmp_path / "constant.psf", psf, **polynomial)
    assert_same_model(load_psf(path), pytest.importorskip("stdpipe.psf").load_psf(path))


def galsim_stamps(path, x, y, model, interpolant=None):
    """Stamps of sum 1 as GalSim draws them, and their sums before."""
    galsim = pytest.importorskip("galsim")
    reader = pytest.importorskip("galsim.des").DES_PSFEx(str(path))
    rows, columns = model.stamp_shape
    n = model.n_sub
    stamps = np.empty((len(x), rows, columns))
    sums = np.empty(len(x))
    for k, at in enumerate(zip(x, y, strict=True)):
        at = galsim.PositionD(*at)
        star = reader.getPSF(at)
        if interpolant:
            planes = galsim.Image(reader.getPSFArray(at))
            star = galsim.InterpolatedImage(
                planes, scale=reader.sample_scale, flux=1, x_interpolant=interpolant
            )
        # The model contains the pixels: it is sampled, at the centres of what gpuphot sums.
        image = galsim.Image(columns * n, rows * n, dtype=float)
        phase = (n * (at.x - np.rint(at.x)), n * (at.y - np.rint(at.y)))
        star.drawImage(image, scale=1 / n, method="no_pixel", offset=phase)
        stamp = image.array.reshape(rows, n, columns, n).sum(axis=(1, 3))
        sums[k] = stamp.sum()
        stamps[k] = stamp / sums[k]
    return stamps, sums


def largest_difference(stamps, expected):
    return np.abs(stamps - expected).max() / expected.max()


def positions_on_the_model(rng, sampling, n=12):
    """Positions whose phases are whole pixels of the model."""
    x, y = rng.uniform(0, 300, n), rng.uniform(0, 240, n)
    return np.round(x / sampling) * sampling, np.round(y / sampling) * sampling


@pytest.mark.parametrize("name", [name for name in REAL if name != "DES"])
def test_stamps_of_real_files_are_galsims_where_nothing_is_interpolated(rng, name):
    path, model = path_of(name), load_psf(path_of(name))
    x, y = np.rint(rng.uniform(0, 2000, 12)), np.rint(rng.uniform(0, 4000, 12))
    expected, sums = galsim_stamps(path, x, y, model)
    assert largest_difference(psf_stamps(model, x, y), expected) < FLOAT32
    np.testing.assert_allclose(sums, 1, rtol=1e-7)


@pytest.mark.parametrize("name", [name for name in WELL_SAMPLED if "0.53" not in name])
def test_stamps_are_galsims_where_nothing_is_interpolated(tmp_path, rng, name):
    """For a model finer than the image, that is so at several phases within a pixel."""
    psf = make_psf(*WELL_SAMPLED[name])
    path = write_psf_file(tmp_path / "made-up.psf", psf)
    model = load_psf(path)
    assert (model.n_sub > 1) == ("blocks" in name)
    x, y = positions_on_the_model(rng, psf["sampling"])
    expected, _ = galsim_stamps(path, x, y, model)
    assert largest_difference(psf_stamps(model, x, y), expected) < FLOAT32


# Measured: 1.5e-2 with GalSim's own interpolant, and with its smoothest 8e-3: these models have
# noise from pixel to pixel, and their stars are three pixels wide.
@pytest.mark.parametrize(("interpolant", "limit"), [(None, 2e-2), ("quintic", 1e-2)])
@pytest.mark.parametrize("name", REAL)
def test_stamps_of_real_files_are_about_galsims(rng, name, interpolant, limit):
    path, model = path_of(name), load_psf(path_of(name))
    x, y = rng.uniform(0, 2000, 12), rng.uniform(0, 4000, 12)
    x[0], y[0] = 1000.5, 2000.5
    expected, sums = galsim_stamps(path, x, y, model, interpolant)
    assert largest_difference(psf_stamps(model, x, y), expected) < limit
    np.testing.assert_allclose(sums, 1, rtol=limit)


# Measured: 6e-3 and 1.3e-3 where the model is as coarse as the image, else 4.5e-3 and 8e-5.
@pytest.mark.parametrize("name", WELL_SAMPLED)
def test_stamps_of_smooth_models_are_galsims_but_for_the_interpolant(tmp_path, rng, name):
    psf = smooth_psf(*WELL_SAMPLED[name])
    path = write_psf_file(tmp_path / "smooth.psf", psf)
    model = load_psf(path)
    x, y = rng.uniform(0, 300, 12), rng.uniform(0, 240, 12)
    x[0], y[0] = 100.5, 200.5
    stamps = psf_stamps(model, x, y)
    expected, _ = galsim_stamps(path, x, y, model)
    assert largest_difference(stamps, expected) < 8e-3
    expected, _ = galsim_stamps(path, x, y, model, "quintic")
    assert largest_difference(stamps, expected) < (2e-3 if psf["sampling"] == 1 else 1e-4)


@pytest.mark.parametrize("name", REAL)
def test_counting_from_0_where_the_file_counts_from_1_is_a_small_error(rng, name):
    """It is that of stdpipe: up to 6e-5 of the peak in these models."""
    model = load_psf(path_of(name))
    x, y = np.rint(rng.uniform(0, 2000, 12)), np.rint(rng.uniform(0, 4000, 12))
    difference = largest_difference(psf_stamps(model, x, y), psf_stamps(model, x + 1, y + 1))
    assert 1e-5 < difference < 1e-4


def test_missing_file_is_an_os_error_with_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.psf"):
        load_psf(tmp_path / "nowhere.psf")
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        load_psf(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no FITS\n" * 500])
def test_what_is_no_fits_file_is_refused(tmp_path, content):
    path = tmp_path / "text.psf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"text\.psf' cannot be used"):
        load_psf(path)


@pytest.mark.filterwarnings("ignore:File may have been truncated")
@pytest.mark.filterwarnings("ignore:Error validating header")
def test_truncated_file_is_refused(tmp_path, psf):
    path = write_psf_file(tmp_path / "short.psf", psf)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(ValueError, match=r"short\.psf' cannot be used"):
        load_psf(path)


@pytest.mark.parametrize(
    "hdus",
    [
        [],
        [fits.ImageHDU(np.ones((5, 5)))],
        [fits.BinTableHDU.from_columns([fits.Column("PSF_MASK", "E", array=[])])],
    ],
)
def test_file_without_a_model_is_refused(tmp_path, hdus):
    path = tmp_path / "image.psf"
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)
    with pytest.raises(ValueError, match=r"image\.psf'.* no table with a PSF model"):
        load_psf(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"PSF_SAMP": None}, "header lacks PSF_SAMP"),
        ({"PSF_FWHM": None, "PSFAXIS3": None}, "header lacks PSFAXIS3, PSF_FWHM"),
        ({"POLZERO2": None, "POLSCAL1": None}, "header lacks POLZERO2, POLSCAL1"),
        ({"PSFAXIS3": 3}, r"PSFAXIS1 are \(3, 25, 23\), but its planes have shape \(6, 25, 23\)"),
        ({"PSFAXIS1": 25}, r"are \(6, 25, 25\), but its planes have shape \(6, 25, 23\)"),
        ({"POLDEG1": 3}, r"shape \(10, h, w\) for degree 3, got shape \(6, 25, 23\)"),
        ({"POLNAME2": "FOCUS"}, "must vary with Y, but POLNAME2 is 'FOCUS'"),
        ({"POLSCAL1": 0.0}, "'sx'.* must not be 0"),
        ({"PSF_SAMP": 0.0}, "'sampling'.* must be positive, got 0"),
        ({"PSF_FWHM": -1.0}, "'fwhm'.* must be positive, got -1"),
        ({"PSF_SAMP": "fine"}, "'sampling'.* must be a finite number, got 'fine'"),
    ],
)
def test_file_that_contradicts_itself_is_refused(tmp_path, psf, changes, message):
    path = write_psf_file(tmp_path / "odd.psf", psf, **changes)
    with pytest.raises(ValueError, match=rf"odd\.psf' cannot be used: .*{message}"):
        load_psf(path)


def test_planes_that_are_not_finite_are_refused(tmp_path, psf):
    psf["data"][2, 3, 4] = np.nan
    with pytest.raises(ValueError, match="must hold finite numbers"):
        load_psf(write_psf_file(tmp_path / "nan.psf", psf))


def test_deliberately_broken_file_is_refused():
    path = DATA / "des_psf" / "invalid_psfcat.psf"
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    with pytest.raises(ValueError, match=r"\(3, 25, 25\), but its planes have shape \(6, 25, 25\)"):
        load_psf(path)
