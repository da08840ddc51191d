"""Centres of mass."""

from __future__ import annotations

import numpy as np
import pytest

from .scenes import add_stars, frame_of, positions_of


def test_moves_to_an_isolated_star(rng, ops):
    image = np.zeros((60, 80))
    add_stars(image, [40.3], [30.6], [1e4])
    pos = positions_of(ops, [41.0, 39.2], [30.0, 31.5])
    x, y = (ops.to_host(v) for v in ops.com_centroid(frame_of(ops, image), pos, 6, 20))
    np.testing.assert_allclose(x, 40.3, atol=0.02)
    np.testing.assert_allclose(y, 30.6, atol=0.02)


def test_one_step_is_the_centre_of_mass_of_the_box(rng, ops):
    image = rng.normal(1, 5, (40, 50))
    image[18, 23] = np.nan
    mask = np.zeros(image.shape, bool)
    mask[21, 25] = True
    x, y = ops.com_centroid(frame_of(ops, image, mask), positions_of(ops, 24.2, 19.6), 3, 1)
    rows, columns = np.mgrid[17:24, 21:28]
    box = image[17:24, 21:28]
    light = np.where((box > 0) & ~mask[17:24, 21:28], box, 0)
    assert ops.to_host(x)[0] == pytest.approx((light * columns).sum() / light.sum(), abs=1e-13)
    assert ops.to_host(y)[0] == pytest.approx((light * rows).sum() / light.sum(), abs=1e-13)


def test_without_light_or_room_a_position_stays(ops):
    image = np.full((30, 30), -1.0)
    image[:, 20:] = 1.0
    start_x = np.array([10.0, 1.9, 27.0, 15.0, np.nan, 25.0])
    start_y = np.array([10.0, 15.0, 15.0, 28.1, 3.0, 1e9])
    pos = positions_of(ops, start_x, start_y)
    x, y = (ops.to_host(v) for v in ops.com_centroid(frame_of(ops, image), pos, 3, 5))
    np.testing.assert_array_equal(x, start_x)
    np.testing.assert_array_equal(y, start_y)


def test_input_positions_are_left_alone(rng, ops):
    pos = positions_of(ops, rng.uniform(5, 25, 20), rng.uniform(5, 25, 20))
    before = ops.to_host(pos.x).copy()
    ops.com_centroid(frame_of(ops, rng.normal(5, 1, (30, 30))), pos, 2, 3)
    np.testing.assert_array_equal(ops.to_host(pos.x), before)
