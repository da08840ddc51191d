"""The PSF model: what it is made of, and what it refuses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gpuphot.models.psf import PSFModel, spline_coefficients

from .psfs import DATA, MADE_UP, REAL, load_psf, make_psf, stdpipe_stamps


@pytest.fixture
def psf():
    return make_psf(25, 25, 0.9, 2)


@pytest.mark.parametrize("name", [*MADE_UP, *REAL])
def test_stamp_shape_is_stdpipes(name):
    psf = load_psf(name)
    model = PSFModel.from_psfex_dict(psf)
    assert model.stamp_shape == stdpipe_stamps(psf, [100.2], [90.4]).shape[1:]


def test_weights_are_the_terms_of_the_polynomial(psf):
    weights = PSFModel.from_psfex_dict(psf).weights(np.array([150.0, 300.0]), np.array([120, 380]))
    np.testing.assert_allclose(weights, [[1, 0, 0, 0, 0, 0], [1, 1, 1, 2, 2, 4]])


def test_model_is_a_copy_that_cannot_be_changed(psf):
    model = PSFModel.from_psfex_dict(psf)
    psf["data"][0] = 0
    assert model.planes[0].max() > 0
    assert model.planes.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        model.planes[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.degree = 1


def test_what_is_optional_may_be_missing():
    psf = {"data": np.ones((5, 7), ">f4"), "sampling": 1}
    model = PSFModel.from_psfex_dict(psf)
    assert (model.degree, model.width, model.height, model.stamp_shape) == (0, 7, 5, (5, 7))
    assert np.isnan(model.fwhm)


def test_spline_goes_through_the_planes():
    planes = np.random.default_rng(1).normal(size=(2, 6, 9))
    nodes = spline_coefficients(planes)
    assert nodes.shape == (2, 9, 12)
    rows = (nodes[:, :-2] + 4 * nodes[:, 1:-1] + nodes[:, 2:]) / 6
    values = (rows[..., :-2] + 4 * rows[..., 1:-1] + rows[..., 2:]) / 6
    np.testing.assert_allclose(values[:, :6, :9], planes, atol=1e-14)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data", None, "must have an entry 'data', got"),
        ("data", np.ones((3, 5, 5)), r"shape \(6, h, w\) for degree 2, got shape \(3, 5, 5\)"),
        ("data", np.ones(5), r"got shape \(5,\)"),
        ("data", np.full((6, 5, 5), np.nan), "'data'.* must hold finite numbers"),
        ("data", np.full((6, 5, 5), "a"), "'data'.* must hold numbers, got <U1"),
        ("degree", -1, "'degree'.* must be an integer of at least 0, got -1"),
        ("degree", 1.5, "'degree'.* must be an integer of at least 0, got 1.5"),
        ("ncoeffs", 3, "'ncoeffs'.* must be 6 for degree 2, got 3"),
        ("sampling", None, "must have an entry 'sampling'"),
        ("sampling", 0, "'sampling'.* must be positive, got 0"),
        ("sampling", np.nan, "'sampling'.* must be a finite number, got nan"),
        ("x0", None, "must have an entry 'x0'"),
        ("x0", "left", "'x0'.* must be a finite number, got 'left'"),
        ("sx", 0, "'sx'.* must not be 0"),
        ("width", 0, "'width'.* must be an integer of at least 1, got 0"),
        ("fwhm", "wide", "'fwhm'.* must be a finite number, got 'wide'"),
    ],
)
def test_error_names_the_entry_and_what_came(psf, key, value, message):
    psf[key] = value
    with pytest.raises(ValueError, match=message):
        PSFModel.from_psfex_dict(psf)


@pytest.mark.parametrize("fwhm", [0, -1.0, np.nan, np.inf])
def test_fwhm_of_a_gaussian_is_positive(fwhm):
    with pytest.raises(ValueError, match=f"must be a positive number, got {fwhm}"):
        PSFModel.gaussian(fwhm)


def test_broken_file_is_refused():
    path = DATA / "des_psf" / "invalid_psfcat.psf"
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    psf = pytest.importorskip("stdpipe.psf").load_psf(path)
    with pytest.raises(ValueError, match=r"ncoeffs.* must be 6 for degree 2, got 3"):
        PSFModel.from_psfex_dict(psf)
