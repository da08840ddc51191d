"""From an image to a frame: conversion, subtraction, noise and the bits of bad pixels."""

from __future__ import annotations

import numpy as np
import pytest

from gpuphot.models.background import spline_surface
from gpuphot.models.frame import Bad

from .scenes import frame_of


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "u4", "<f4", ">f4", ">f8", "f2", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_real_dtype_becomes_float64(ops, dtype, order):
    image = np.array([[0, 1, 3], [5, 7, 100]]).astype(dtype, order=order)
    data, bad = ops.load_image(image, None)
    assert data.dtype == np.float64
    np.testing.assert_array_equal(ops.to_host(data), image.astype(float))
    assert not ops.to_host(bad).any()


def test_bad_bits_say_why(ops):
    image = np.zeros((2, 3))
    image[0, 0] = np.nan
    bg, err, mask = np.zeros((2, 3)), np.ones((2, 3)), np.zeros((2, 3), bool)
    bg[0, :2], err[1, 0], mask[1, 1], mask[0, 0] = np.inf, np.nan, True, True
    frame = frame_of(ops, image, mask, bg, err)
    expected = [[Bad.IMAGE | Bad.MASK, Bad.BACKGROUND, 0], [Bad.NOISE, Bad.MASK, 0]]
    assert ops.to_host(frame.bad[0]).tolist() == expected
    assert ops.to_host(frame.data)[0, 0, 0] == 0


def test_noise_from_the_mesh_and_the_gain(rng, ops):
    image = rng.normal(50, 100, (30, 40))
    level = spline_surface(np.full((3, 4), 20.0), (10, 10))
    rms = spline_surface(rng.uniform(2, 3, (3, 4)), (10, 10))
    rms_map = ops.to_host(ops.evaluate_surface(rms, (30, 40)))
    for gain in (None, 1.5):
        data, bad = ops.load_image(ops.to_device(image), None)
        frame = ops.subtract_background(data, bad, level, None, rms, gain)
        np.testing.assert_allclose(ops.to_host(frame.data[0]), image - 20, rtol=1e-13, atol=1e-13)
        np.testing.assert_array_equal(ops.to_host(frame.bkg_rms[0]), rms_map)
        poisson = 0 if gain is None else np.maximum((image - 20) / gain, 0)
        expected = np.sqrt(rms_map**2 + poisson)
        np.testing.assert_allclose(ops.to_host(frame.err[0]), expected, rtol=1e-13)
