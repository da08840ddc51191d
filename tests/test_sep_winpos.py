"""Windowed centroids with SEP's conventions, against SEP."""

from __future__ import annotations

import numpy as np
import pytest

from gpuphot.models.sep import SepFlag
from gpuphot.numpy_backend.sep_stamps import sep_psf

from .psfs import make_psf, model_of
from .scenes import add_stars, positions_of

pytestmark = pytest.mark.fresh_seed

sep_x = pytest.importorskip("sep_x")

PSFS = {
    "sampled 0.5": make_psf(41, 39, 0.5, 0),
    "as the image": make_psf(21, 20, 1.0, 1),
    "sampled 0.45, degree 2": make_psf(44, 41, 0.45, 2),
    "sampled 1.3": make_psf(15, 16, 1.3, 1),
}
# Sigma and longest step; SEP's narrowest window has a sigma of 0.43.
WINDOWS = {
    "as measure_objects_sep": (1.27, 0.6),
    "steps of any length": (1.27, 0.0),
    "wide": (3.1, 0.5),
    "narrower than SEP allows": (0.2, 0.3),
    "very short steps": (1.5, 0.02),
}
SHAPE = 120, 140
TOLERANCE = 1e-9
"""In pixels; most agree to 1e-13."""


def stars(rng, n=120):
    """Bright stars in and around an image, and positions near theirs."""
    height, width = SHAPE
    image = rng.normal(0, 1, SHAPE)
    x, y = rng.uniform(-4, width + 4, n), rng.uniform(-4, height + 4, n)
    add_stars(image, x, y, 10 ** rng.uniform(3.5, 6, n))
    x, y = x + rng.normal(0, 0.5, n), y + rng.normal(0, 0.5, n)
    x[:20], y[:20] = np.rint(x[:20]), np.rint(y[:20])
    x[20:40], y[15:35] = np.floor(x[20:40]) + 0.5, np.floor(y[15:35]) + 0.5
    x[40:46] = np.nan, np.inf, 5.0, 1e10, -1e300, -40.0
    y[40:46] = 5.0, 5.0, -np.inf, 30.0, 2.0, 1e19
    return image, x, y


def holes(rng):
    mask = rng.random(SHAPE) < 0.02
    mask[30:60, 50:90] = True
    return mask


def sep_frame_of(ops, image, mask=None, bg=0.0):
    background, err = (ops.to_device(np.asarray(v)) for v in (bg, 1.0))
    return ops.sep_frame(ops.to_device(image), mask, background, err)


def moved(ops, image, mask, x, y, window, bg=0.0):
    """Centroids; the window is a sigma or a PSF, and the longest step."""
    frame, pos = sep_frame_of(ops, image, mask, bg), positions_of(ops, x, y)
    shape, max_step = window
    if isinstance(shape, float):
        result = ops.sep_winpos(frame, pos, shape, max_step)
    else:
        result = ops.sep_psf_winpos(frame, pos, model_of(shape), max_step)
    x, y, flag = (ops.to_host(values) for values in result)
    assert (x.dtype, y.dtype, flag.dtype) == (float, float, np.int64)
    return x, y, flag


def moved_by_sep(image, mask, x, y, window, bg=0.0):
    shape, max_step = window
    options = {"sig": shape} if isinstance(shape, float) else {"psf": sep_psf(model_of(shape))}
    missing = ~np.isfinite(image)
    mask = missing if mask is None else mask | missing
    with np.errstate(over="ignore", invalid="ignore"):
        data = np.where(missing, 0, image - bg).astype(np.float32)
    valid = np.isfinite(x) & np.isfinite(y)
    expected = np.full(len(x), np.nan), np.full(len(x), np.nan), np.zeros(len(x), int)
    found = sep_x.winpos(data, x[valid], y[valid], mask=mask, maxstep=max_step, **options)
    for values, part in zip(expected, found, strict=True):
        values[valid] = part
    return expected


def check(ops, *case, **background):
    result, expected = moved(ops, *case, **background), moved_by_sep(*case, **background)
    np.testing.assert_array_equal(result[2], expected[2])
    for values, reference in zip(result[:2], expected[:2], strict=True):
        np.testing.assert_allclose(values, reference, rtol=1e-15, atol=TOLERANCE)
    return result


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", WINDOWS)
def test_gaussian_windows_agree_with_sep(rng, ops, name, masked):
    image, x, y = stars(rng)
    check(ops, image, holes(rng) if masked else None, x, y, WINDOWS[name])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", PSFS)
@pytest.mark.parametrize("max_step", [0.0, 0.6])
def test_windows_of_psfs_agree_with_sep(rng, ops, name, masked, max_step):
    image, x, y = stars(rng)
    check(ops, image, holes(rng) if masked else None, x, y, (PSFS[name], max_step))


@pytest.mark.parametrize("shape", [1.3, PSFS["sampled 0.5"]], ids=["Gaussian", "PSF"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_without_background_spoil_what_they_touch(rng, ops, shape, value):
    image, x, y = stars(rng)
    background = np.zeros(SHAPE)
    background[rng.integers(0, SHAPE[0], 40), rng.integers(0, SHAPE[1], 40)] = value
    image[20:23, 30] = np.nan
    check(ops, image, None, x, y, (shape, 0.6), bg=background)


@pytest.mark.fresh_seed
@pytest.mark.parametrize("shape", [1.3, PSFS["sampled 0.5"]], ids=["Gaussian", "PSF"])
def test_stars_are_found(rng, ops, shape):
    image, true_x, true_y = np.zeros(SHAPE), np.arange(20.0, 121, 25), rng.uniform(20, 100, 5)
    add_stars(image, true_x, true_y, np.full(5, 1e4))
    x, y, flag = moved(ops, image, None, true_x + 0.4, true_y - 0.3, (shape, 0.6))
    np.testing.assert_allclose([x, y], [true_x, true_y], atol=0.02)
    assert not flag.any()


@pytest.mark.parametrize("shape", [1.3, PSFS["sampled 0.5"]], ids=["Gaussian", "PSF"])
def test_flags(ops, shape):
    image, mask = np.ones(SHAPE), np.zeros(SHAPE, bool)
    image[60:] = -1
    mask[:40, :50] = True
    mask[20, 100] = True
    x, y = np.array([20.0, 100.0, 1.0, 1e9, 70.0, np.nan]), np.array([20.0, 20, 50, 50, 90, 50])
    _, _, flag = check(ops, image, mask, x, y, (shape, 0.1))
    no_signal = 0 if isinstance(shape, float) else SepFlag.NON_POSITIVE
    all_masked = SepFlag.HAS_MASKED | SepFlag.ALL_MASKED
    truncated = SepFlag.TRUNCATED
    assert flag[[0, 1, 3, 4, 5]].tolist() == [
        all_masked, SepFlag.HAS_MASKED, truncated | no_signal, no_signal, 0,
    ]  # fmt: skip
    assert flag[2] & truncated


@pytest.mark.fresh_seed
@pytest.mark.parametrize("shape", [1.3, PSFS["sampled 0.5"]], ids=["Gaussian", "PSF"])
def test_no_source_depends_on_the_others(rng, ops, shape):
    (image, x, y), mask = stars(rng), holes(rng)
    order = rng.permutation(len(x))
    expected = moved(ops, image, mask, x, y, (shape, 0.6))
    permuted = moved(ops, image, mask, x[order], y[order], (shape, 0.6))
    alone = [moved(ops, image, mask, x[k : k + 1], y[k : k + 1], (shape, 0.6)) for k in range(30)]
    for k, values in enumerate(expected):
        np.testing.assert_array_equal(permuted[k], values[order])
        np.testing.assert_array_equal([one[k][0] for one in alone], values[:30])
    assert all(len(values) == 0 for values in moved(ops, image, mask, x[:0], y[:0], (shape, 0.6)))


@pytest.mark.parametrize("shape", [(1, 1), (3, 90), (5, 4)])
def test_small_images(rng, ops, shape):
    image = rng.uniform(1, 2, shape)
    x, y = rng.uniform(-1, shape[1], 10), rng.uniform(-1, shape[0], 10)
    for window in (1.3, PSFS["sampled 0.5"]):
        check(ops, image, None, x, y, (window, 0.6))


@pytest.mark.fresh_seed
def test_inputs_are_left_alone(rng, ops):
    image, x, y = stars(rng)
    frame, pos = sep_frame_of(ops, image, holes(rng)), positions_of(ops, x, y)
    arrays = frame.data, frame.bad, pos.x, pos.y
    before = [ops.to_host(values).copy() for values in arrays]
    ops.sep_winpos(frame, pos, 1.3, 0.6)
    ops.sep_psf_winpos(frame, pos, model_of(PSFS["sampled 0.5"]), 0.6)
    for values, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(ops.to_host(values), copy)


@pytest.mark.fresh_seed
@pytest.mark.parametrize("backend", ["cupy"], indirect=True)
def test_size_of_chunks_does_not_matter(rng, ops, monkeypatch):
    image, x, y = stars(rng)
    window = make_psf(200, 180, 0.15, 1), 0.6
    expected = check(ops, image, None, x, y, window)
    for workspace in (1, 3_000_000):
        monkeypatch.setattr("gpuphot.cupy_backend.launch.MAX_WORKSPACE", workspace)
        for values, reference in zip(moved(ops, image, None, x, y, window), expected, strict=True):
            np.testing.assert_array_equal(values, reference)
