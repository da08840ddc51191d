"""PSF stamps: against stdpipe's, and against themselves."""

from __future__ import annotations

import numpy as np
import pytest

from gpuphot.numpy_backend.stamps import psf_stamps as numpy_stamps

from .psfs import (
    GAUSSIANS,
    MADE_UP,
    REAL,
    awkward_positions,
    load_psf,
    make_psf,
    model_of,
    stdpipe_stamps,
)


def stamps_of(ops, model, x, y):
    return ops.to_host(ops.psf_stamps(model, ops.to_device(x), ops.to_device(y)))


@pytest.mark.parametrize("name", [*MADE_UP, *REAL])
def test_stamps_agree_with_stdpipe(rng, ops, name):
    psf = load_psf(name)
    x, y = awkward_positions(rng)
    stamps, expected = stamps_of(ops, model_of(psf), x, y), stdpipe_stamps(psf, x, y)
    # Twenty-odd products of rounding each; stdpipe evaluates float32 planes in float64, too.
    np.testing.assert_allclose(stamps, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


@pytest.mark.parametrize("fwhm", GAUSSIANS)
def test_gaussian_stamps_agree_with_stdpipe(rng, ops, fwhm):
    x, y = awkward_positions(rng)
    stamps, expected = stamps_of(ops, model_of(fwhm), x, y), stdpipe_stamps(fwhm, x, y)
    np.testing.assert_allclose(stamps, expected, rtol=0, atol=1e-14 * expected.max())


@pytest.mark.parametrize("name", [*MADE_UP, *GAUSSIANS])
def test_backends_agree(rng, ops, name):
    model = model_of(load_psf(name) if name in MADE_UP else name)
    x, y = awkward_positions(rng)
    stamps, expected = stamps_of(ops, model, x, y), numpy_stamps(model, x, y)
    np.testing.assert_allclose(stamps, expected, rtol=0, atol=1e-13 * expected.max())


def test_stamps_made_in_tiles_agree(rng, ops):
    """Large models do not fit the shared memory of a GPU."""
    x, y = awkward_positions(rng, 10)
    for model in (make_psf(127, 111, 1.0, 1), make_psf(140, 130, 0.1, 1)):
        stamps = stamps_of(ops, model_of(model), x, y)
        expected = numpy_stamps(model_of(model), x, y)
        np.testing.assert_allclose(stamps, expected, rtol=0, atol=1e-13 * expected.max())


@pytest.mark.parametrize("name", ["constant", "degree 1, sampled 1/3", "coarse", 3.3])
def test_a_stamp_depends_on_its_own_position_only(rng, ops, name):
    model = model_of(load_psf(name) if name in MADE_UP else name)
    x, y = awkward_positions(rng)
    stamps = stamps_of(ops, model, x, y)
    order = rng.permutation(len(x))
    np.testing.assert_array_equal(stamps_of(ops, model, x[order], y[order]), stamps[order])
    for part in (slice(0, 1), slice(1, 3), slice(3, None)):
        np.testing.assert_array_equal(stamps_of(ops, model, x[part], y[part]), stamps[part])


@pytest.mark.parametrize("name", ["constant", "degree 2, sampled 0.53", 3.3])
@pytest.mark.parametrize("workspace", [1, 3000, 1 << 22])
def test_size_of_chunks_does_not_matter(rng, name, workspace, monkeypatch):
    model = model_of(load_psf(name) if name in MADE_UP else name)
    x, y = awkward_positions(rng)
    expected = numpy_stamps(model, x, y)
    monkeypatch.setattr("gpuphot.numpy_backend.chunks.WORKSPACE", workspace)
    np.testing.assert_array_equal(numpy_stamps(model, x, y), expected)


@pytest.mark.parametrize("name", ["constant", "degree 2, sampled 0.5", "coarse", 3.3])
def test_light_is_one_and_lies_where_the_star_is(rng, ops, name):
    model = model_of(load_psf(name) if name in MADE_UP else name)
    x, y = awkward_positions(rng)
    stamps = stamps_of(ops, model, x, y)
    np.testing.assert_allclose(stamps.sum(axis=(1, 2)), 1, rtol=1e-14)
    if name == 3.3:
        rows, columns = (
            np.indices(stamps.shape[1:]) - np.array(stamps.shape[1:])[:, None, None] // 2
        )
        np.testing.assert_allclose((stamps * columns).sum(axis=(1, 2)), x - np.rint(x), atol=1e-9)
        np.testing.assert_allclose((stamps * rows).sum(axis=(1, 2)), y - np.rint(y), atol=1e-9)


@pytest.mark.parametrize("name", ["constant", "degree 2, sampled 0.5", 3.3])
def test_positions_that_are_not_finite_have_no_stamp(ops, name):
    model = model_of(load_psf(name) if name in MADE_UP else name)
    x, y = np.array([5, np.nan, 7, np.inf, 3]), np.array([5, 6, np.nan, 6, -np.inf])
    stamps = stamps_of(ops, model, x, y)
    np.testing.assert_array_equal(stamps[:1], stamps_of(ops, model, x[:1], y[:1]))
    assert np.isfinite(stamps[0]).all()
    assert np.isnan(stamps[1:]).all()


def test_no_sources_have_no_stamps(ops):
    for psf in (load_psf("constant"), 3.3):
        model = model_of(psf)
        assert stamps_of(ops, model, np.empty(0), np.empty(0)).shape == (0, *model.stamp_shape)


def test_model_without_light_is_not_divided_by_it(ops):
    """As in stdpipe, whose stamps then keep the units of the model."""
    psf = load_psf("degree 2, sampled 0.53")
    psf["data"] = -psf["data"]
    x, y = np.array([100.3, 20.0]), np.array([90.7, 60.0])
    expected = stdpipe_stamps(psf, x, y)
    stamps = stamps_of(ops, model_of(psf), x, y)
    np.testing.assert_allclose(stamps, expected, rtol=0, atol=1e-13 * np.abs(expected).max())
