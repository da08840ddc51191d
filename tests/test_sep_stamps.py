"""PSF stamps with SEP's conventions: what SEP adds to an image, to the last bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gpuphot.numpy_backend.sep_stamps import sep_psf

from .psfs import make_psf, model_of

sep_x = pytest.importorskip("sep_x")

# Height, width, sampling, degree.
MODELS = {
    "sampled 0.37": (51, 51, 0.37, 0),
    "sampled 0.45, degree 2, even": (52, 48, 0.45, 2),
    "sampled 0.5, degree 3": (51, 49, 0.5, 3),
    "sampled 0.5, one side even": (40, 41, 0.5, 0),
    "sampled 0.7, degree 1": (31, 30, 0.7, 1),
    "sampled 0.15, larger than shared memory": (200, 180, 0.15, 1),
    "as the image": (25, 25, 1.0, 0),
    "as the image, degree 2, even": (24, 26, 1.0, 2),
    "sampled 1.3, degree 1": (24, 27, 1.3, 1),
    "sampled 1.3, degree 3": (15, 17, 1.3, 3),
    "sampled 2, degree 2": (13, 12, 2.0, 2),
    "one pixel": (1, 1, 1.5, 0),
    "few pixels": (2, 3, 0.2, 1),
}
SHAPE = 90, 80


def positions(rng):
    """On and off the image, on centres and edges of pixels."""
    height, width = SHAPE
    x, y = rng.uniform(-9, width + 9, 150), rng.uniform(-9, height + 9, 150)
    x[:40], y[:40] = np.rint(x[:40]), np.rint(y[:40])
    x[40:80], y[30:70] = np.floor(x[40:80]) + 0.5, np.floor(y[30:70]) + 0.5
    x[80:84], y[80:84] = (-0.5, -0.51, -2.7, width - 0.5), (-0.49, 3.0, -0.5, -1.5)
    return x, y


def stamps_of(ops, psf, x, y):
    return ops.to_host(ops.sep_psf_stamps(psf, ops.to_device(x), ops.to_device(y)))


def on_image(stamp, x, y):
    """An image that a stamp is added to."""
    (height, width), (rows, columns) = SHAPE, stamp.shape
    margin = 40 + max(rows, columns)
    image = np.zeros((height + 2 * margin, width + 2 * margin))
    row, column = (int(v + 0.5) + margin for v in (y, x))
    top, left = row - rows // 2, column - columns // 2
    image[top : top + rows, left : left + columns] = stamp
    return image[margin:-margin, margin:-margin]


def drawn_by_sep(psf, x, y):
    image = np.zeros(SHAPE)
    sep_x.model_psf(image, np.array([x]), np.array([y]), 1.0, sep_psf(psf))
    return image


def check(ops, psf, x, y):
    stamps = stamps_of(ops, psf, x, y)
    # The sine of the C library is in the kernel of models no finer than the image.
    tolerance = 0 if psf.sampling < 1 else 1e-7 * stamps.max()
    for stamp, *place in zip(stamps, x, y, strict=True):
        np.testing.assert_allclose(
            on_image(stamp, *place), drawn_by_sep(psf, *place), rtol=0, atol=tolerance
        )


@pytest.mark.parametrize("name", MODELS)
def test_stamps_are_what_sep_adds_to_an_image(rng, ops, name):
    check(ops, model_of(make_psf(*MODELS[name])), *positions(rng))


@pytest.mark.fresh_seed
@pytest.mark.parametrize("sampling", [0.5, 1.3])
def test_polynomials_that_do_not_fit_the_planes(rng, ops, sampling):
    model = model_of(make_psf(21, 22, sampling, 2))
    assert model.planes is not None
    x, y = (values[:30] for values in positions(rng))
    for change in (
        {"planes": model.planes[:4]}, {"degree": 1}, {"degree": 0}, {"sx": 0.0},
    ):  # fmt: skip
        check(ops, replace(model, **change), x, y)


@pytest.mark.fresh_seed
def test_stamps_are_normalised(rng, ops):
    x, y = rng.uniform(20, 60, 20), rng.uniform(20, 60, 20)
    stamps = stamps_of(ops, model_of(make_psf(51, 49, 0.5, 2)), x, y)
    np.testing.assert_allclose(stamps.sum(axis=(1, 2)), 1, rtol=1e-12)


@pytest.mark.fresh_seed
def test_stamps_of_no_positive_sum_are_nought(rng, ops):
    model = model_of(make_psf(21, 21, 0.5, 0))
    assert model.planes is not None
    x, y = positions(rng)
    assert not stamps_of(ops, replace(model, planes=-model.planes), x, y).any()


def test_positions_that_no_image_has(ops):
    x = np.array([np.nan, np.inf, 5.0, -400.0, 1e10, -1e300, 5.0])
    y = np.array([5.0, 5.0, -np.inf, 5.0, 5.0, 5.0, -1e19])
    stamps = stamps_of(ops, model_of(make_psf(21, 21, 0.5, 1)), x, y)
    assert np.isnan(stamps[:3]).all()
    assert not stamps[3:].any()


@pytest.mark.fresh_seed
def test_no_source_depends_on_the_others(rng, ops):
    model, (x, y) = model_of(make_psf(40, 41, 0.45, 2)), positions(rng)
    order = rng.permutation(len(x))
    stamps = stamps_of(ops, model, x, y)
    np.testing.assert_array_equal(stamps_of(ops, model, x[order], y[order]), stamps[order])
    assert stamps_of(ops, model, x[:0], y[:0]).shape == (0, *stamps.shape[1:])


def test_models_are_made_for_sep_once():
    model = model_of(make_psf(40, 41, 0.45, 2))
    assert sep_psf(model) is sep_psf(model)
    assert sep_psf(sep_psf(model)) is sep_psf(model)


@pytest.mark.fresh_seed
@pytest.mark.parametrize("backend", ["cupy"], indirect=True)
def test_size_of_chunks_does_not_matter(rng, ops, monkeypatch):
    model = model_of(make_psf(*MODELS["sampled 0.15, larger than shared memory"]))
    x, y = positions(rng)
    stamps = stamps_of(ops, model, x, y)
    for workspace in (1, 3_000_000):
        monkeypatch.setattr("gpuphot.cupy_backend.launch.MAX_WORKSPACE", workspace)
        np.testing.assert_array_equal(stamps_of(ops, model, x, y), stamps)
