"""Model images: sums of stamps."""

from __future__ import annotations

import numpy as np
import pytest

from gpuphot.numpy_backend.render import render_psf_image as numpy_image
from gpuphot.numpy_backend.stamps import psf_stamps as numpy_stamps

from .psfs import awkward_positions, load_psf, model_of

SHAPE = 70, 90
MODELS = ["constant", "degree 2, sampled 0.5", "wide", 3.3]


@pytest.fixture(params=MODELS)
def model(request):
    return model_of(load_psf(request.param) if isinstance(request.param, str) else request.param)


@pytest.fixture
def stars(rng):
    """Positions and fluxes of close stars, on the image and beyond all its edges."""
    x, y = awkward_positions(rng, 150, SHAPE[0] + 60, SHAPE[1] + 60)
    x, y, flux = x - 30, y - 30, rng.normal(100, 80, len(x))
    x[:4] = np.nan, 20, -np.inf, 1e300
    y[:4] = 20, np.nan, 20, 20
    flux[4:8] = 0, np.nan, np.inf, -np.inf
    x[8:12], y[8:12], flux[8:10] = 40.25, 30.5, 7.0
    return x, y, flux


def image_of(ops, model, x, y, flux, shape=SHAPE):
    return ops.to_host(ops.render_psf_image(shape, model, *map(ops.to_device, (x, y, flux))))


def image_by_a_loop(model, x, y, flux):
    """One stamp after the other, in the order of y, x and flux."""
    n_rows, n_columns = model.stamp_shape
    margin = 80
    image = np.zeros((SHAPE[0] + 2 * margin, SHAPE[1] + 2 * margin))
    keep = np.isfinite(x + y + flux) & (np.abs(x) < 200)
    for i in np.lexsort((flux, x, y)):
        if keep[i]:
            row = int(np.rint(y[i])) - n_rows // 2 + margin
            column = int(np.rint(x[i])) - n_columns // 2 + margin
            (stamp,) = numpy_stamps(model, x[i : i + 1], y[i : i + 1])
            image[row : row + n_rows, column : column + n_columns] += stamp * flux[i]
    return image[margin:-margin, margin:-margin]


def test_image_is_the_sum_of_the_stamps(ops, model, stars):
    image, expected = image_of(ops, model, *stars), image_by_a_loop(model, *stars)
    assert image.shape == SHAPE
    # Some dozens of stars overlap, each within 1e-13 of its peak.
    np.testing.assert_allclose(image, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


def test_numpy_sums_in_the_promised_order(model, stars):
    np.testing.assert_array_equal(numpy_image(SHAPE, model, *stars), image_by_a_loop(model, *stars))


def test_one_star_is_its_stamp(ops, model):
    n_rows, n_columns = model.stamp_shape
    x, y = np.array([44.5]), np.array([35.25])
    image = image_of(ops, model, x, y, np.array([-3.0]))
    row, column = 35 - n_rows // 2, 44 - n_columns // 2
    stamp = ops.to_host(ops.psf_stamps(model, ops.to_device(x), ops.to_device(y)))[0]
    cutout = image[row : row + n_rows, column : column + n_columns]
    np.testing.assert_array_equal(cutout, -3.0 * stamp)
    assert np.count_nonzero(image) <= stamp.size


def test_permuted_rows_give_the_same_image(rng, ops, model, stars):
    image = image_of(ops, model, *stars)
    order = rng.permutation(len(stars[0]))
    np.testing.assert_array_equal(image_of(ops, model, *(v[order] for v in stars)), image)


@pytest.mark.parametrize("workspace", [1, 30_000])
def test_size_of_chunks_does_not_matter(ops, backend, model, stars, workspace, monkeypatch):
    image = image_of(ops, model, *stars)
    bound = {
        "numpy": "gpuphot.numpy_backend.chunks.WORKSPACE",
        "cupy": "gpuphot.cupy_backend.launch.MAX_WORKSPACE",
    }
    monkeypatch.setattr(bound[backend], workspace)
    np.testing.assert_array_equal(image_of(ops, model, *stars), image)


def test_crowd_is_summed_in_the_promised_order(rng, ops):
    """More stars than a tile of a GPU lists at once."""
    model = model_of(1.1)
    x, y = awkward_positions(rng, 2000, 30, 40)
    flux = rng.normal(100, 80, len(x))
    image = image_of(ops, model, x, y, flux, (30, 40))
    expected = numpy_image((30, 40), model, x, y, flux)
    np.testing.assert_allclose(image, expected, rtol=0, atol=1e-13 * np.abs(expected).max())
    order = rng.permutation(len(x))
    permuted = image_of(ops, model, x[order], y[order], flux[order], (30, 40))
    np.testing.assert_array_equal(permuted, image)


def test_stars_beyond_the_edge_leave_their_wings(ops, model):
    n_rows, n_columns = model.stamp_shape
    height, width = SHAPE
    low, high = n_rows - n_rows // 2, height - 1 + n_rows // 2
    left, right = n_columns - n_columns // 2, width - 1 + n_columns // 2
    for x, y, seen in [
        (40, -low + 1, True),
        (40, -low, False),
        (40, high, True),
        (40, high + 1, False),
        (-left + 1, 30, True),
        (-left, 30, False),
        (right, 30, True),
        (right + 1, 30, False),
    ]:
        image = image_of(ops, model, np.array([float(x)]), np.array([float(y)]), np.ones(1))
        assert image.any() == seen, (x, y)


def test_image_smaller_than_a_stamp(ops, model, stars):
    x, y, flux = stars
    image = image_of(ops, model, x, y, flux, shape=(3, 5))
    whole = image_of(ops, model, x, y, flux)
    np.testing.assert_allclose(image, whole[:3, :5], rtol=0, atol=1e-13 * np.abs(whole).max())


def test_no_stars_give_an_empty_image(ops, model):
    assert not image_of(ops, model, *np.empty((3, 0))).any()
    assert not image_of(ops, model, *np.full((3, 4), np.nan)).any()
