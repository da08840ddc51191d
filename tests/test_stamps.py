"""PSF stamps: against stdpipe's, and against themselves."""

from __future__ import annotations

import numpy as np
import pytest

from gpuphot.models.psf import PSFModel
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

GRID_X, GRID_Y = np.array([30.0, 100.0, 250.0]), np.array([60.0, 200.0])


def gridded_model(size, n_sub=1):
    """A model with a star of another shape at every node of GRID_X and GRID_Y."""
    planes = make_psf(size, size, 0.5, 2)["data"].astype(float)
    planes += 2 * planes[0]
    return PSFModel(planes, 0.5, size, size, n_sub=n_sub, grid_x=GRID_X, grid_y=GRID_Y)


def any_model(name):
    if name == "gridded":
        return gridded_model(35)
    return model_of(load_psf(name) if name in MADE_UP else name)


def stamps_of(ops, model, x, y, half_size=None, fwhm=None):
    fwhm = None if fwhm is None else ops.to_device(fwhm)
    stamps = ops.psf_stamps(model, ops.to_device(x), ops.to_device(y), half_size, fwhm)
    return ops.to_host(stamps)


def central(stamps, half_size):
    """Pixels around the central ones, 0 beyond the stamps."""
    centre = [n // 2 for n in stamps.shape[1:]]
    reach = [min(n, half_size) for n in centre]
    part = stamps[
        :,
        centre[0] - reach[0] : centre[0] + reach[0] + 1,
        centre[1] - reach[1] : centre[1] + reach[1] + 1,
    ]
    missing = [2 * n + 1 - length for n, length in zip(reach, part.shape[1:], strict=True)]
    return np.pad(part, [(0, 0), *((0, n) for n in missing)])


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


@pytest.mark.parametrize("half_size", [0, 3, 9, 40])
@pytest.mark.parametrize("name", [*MADE_UP, "gridded", 1.1, 3.3])
def test_central_part_has_the_values_of_the_whole(rng, ops, name, half_size):
    model = any_model(name)
    x, y = awkward_positions(rng)
    expected = central(stamps_of(ops, model, x, y), half_size)
    np.testing.assert_array_equal(stamps_of(ops, model, x, y, half_size), expected)


@pytest.mark.parametrize("half_size", [0, 3, 11, 30])
def test_every_source_may_have_its_own_width(rng, ops, half_size):
    x, y = awkward_positions(rng)
    fwhm = rng.uniform(0.3, 9, len(x))
    fwhm[:3] = 1.0, 0.01, 4.0  # whole numbers of pixels: stamps end where they do
    stamps = stamps_of(ops, model_of(3.3), x, y, half_size, fwhm)
    assert stamps.shape == (len(x), 2 * half_size + 1, 2 * half_size + 1)
    for k in range(len(x)):
        own = stamps_of(ops, model_of(fwhm[k]), x[k : k + 1], y[k : k + 1], half_size)
        margin = half_size - own.shape[1] // 2
        np.testing.assert_array_equal(
            stamps[k], np.pad(own[0], margin), err_msg=f"FWHM {fwhm[k]}, source {k}"
        )


@pytest.mark.parametrize("n_sub", [1, 2])
def test_planes_of_a_grid_are_interpolated_linearly(rng, ops, n_sub):
    model = gridded_model(34, n_sub)
    x, y = awkward_positions(rng, 40)
    x[:4], y[:4] = [30, 100, 250, 299], [60, 200, 200, 239]
    stamps = stamps_of(ops, model, x, y)
    for k in range(len(x)):
        along_x, along_y = (
            np.array([np.interp(v[k], nodes, unit) for unit in np.eye(len(nodes))])
            for v, nodes in ((x, GRID_X), (y, GRID_Y))
        )
        plane = np.tensordot(np.outer(along_y, along_x).ravel(), model.planes, 1)
        alone = PSFModel(plane[None], 0.5, 34, 34, n_sub=n_sub)
        expected = numpy_stamps(alone, x[k : k + 1], y[k : k + 1])[0]
        np.testing.assert_allclose(stamps[k], expected, rtol=0, atol=1e-13 * expected.max())


@pytest.mark.parametrize("name", ["constant", "degree 1, sampled 1/3", "coarse", "gridded", 3.3])
def test_a_stamp_depends_on_its_own_position_only(rng, ops, name):
    model = any_model(name)
    x, y = awkward_positions(rng)
    order = rng.permutation(len(x))
    for half_size in (None, 3):
        stamps = stamps_of(ops, model, x, y, half_size)
        permuted = stamps_of(ops, model, x[order], y[order], half_size)
        np.testing.assert_array_equal(permuted, stamps[order])
        for part in (slice(0, 1), slice(1, 3), slice(3, None)):
            alone = stamps_of(ops, model, x[part], y[part], half_size)
            np.testing.assert_array_equal(alone, stamps[part])


@pytest.mark.parametrize("name", ["constant", "degree 2, sampled 0.53", "gridded", 3.3])
@pytest.mark.parametrize("workspace", [1, 3000, 1 << 22])
@pytest.mark.parametrize("half_size", [None, 3])
def test_size_of_chunks_does_not_matter(rng, name, workspace, half_size, monkeypatch):
    model = any_model(name)
    x, y = awkward_positions(rng)
    fwhm = rng.uniform(0.5, 7, len(x)) if name == 3.3 and half_size else None
    expected = numpy_stamps(model, x, y, half_size, fwhm)
    monkeypatch.setattr("gpuphot.numpy_backend.chunks.WORKSPACE", workspace)
    np.testing.assert_array_equal(numpy_stamps(model, x, y, half_size, fwhm), expected)


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
    assert np.isnan(stamps_of(ops, model, x, y, 2)[1:]).all()


def test_no_sources_have_no_stamps(ops):
    for psf in (load_psf("constant"), 3.3):
        model = model_of(psf)
        assert stamps_of(ops, model, np.empty(0), np.empty(0)).shape == (0, *model.stamp_shape)
        assert stamps_of(ops, model, np.empty(0), np.empty(0), 2).shape == (0, 5, 5)


def test_model_without_light_is_not_divided_by_it(ops):
    """As in stdpipe, whose stamps then keep the units of the model."""
    psf = load_psf("degree 2, sampled 0.53")
    psf["data"] = -psf["data"]
    x, y = np.array([100.3, 20.0]), np.array([90.7, 60.0])
    expected = stdpipe_stamps(psf, x, y)
    for half_size in (None, 3):
        stamps = stamps_of(ops, model_of(psf), x, y, half_size)
        part = expected if half_size is None else central(expected, half_size)
        np.testing.assert_allclose(stamps, part, rtol=0, atol=1e-13 * np.abs(expected).max())
