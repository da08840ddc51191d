"""The background mesh: statistics of the cells, and the surface through them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import zoom

from gpuphot.models.background import spline_surface

from .test_clipping import clip


def cell_statistics(data, bad, cell, j, i):
    block = np.s_[j * cell[0] : (j + 1) * cell[0], i * cell[1] : (i + 1) * cell[1]]
    values = data[block][(bad[block] & 3) == 0]
    if not len(values):
        return np.nan, np.nan
    median, mean, std, n = clip(values, from_original=True)
    if n <= (1 - 90 / 100) * cell[0] * cell[1]:
        return np.nan, np.nan
    if std == 0:
        return mean, std
    return (median if abs(mean - median) / std >= 0.3 else 2.5 * median - 1.5 * mean), std


@pytest.mark.parametrize("cell", [(16, 16), (13, 29), (240, 300), (64, 7)])
def test_statistics_of_every_cell(ops, scene, cell):
    data, bad = ops.load_image(ops.to_device(scene.image), scene.mask)
    level, rms = (ops.to_host(v) for v in ops.mesh_statistics(data, bad, cell))
    data, bad = ops.to_host(data), ops.to_host(bad)
    for (j, i), value in np.ndenumerate(level):
        expected = cell_statistics(data, bad, cell, j, i)
        np.testing.assert_allclose((value, rms[j, i]), expected, rtol=1e-11)


def test_a_tenth_of_a_full_cell_survives_and_less_does_not(ops):
    image, mask = np.ones((20, 10)), np.ones((20, 10), bool)
    mask[0], mask[10, 1:] = False, False
    level, _ = ops.mesh_statistics(*ops.load_image(ops.to_device(image), mask), (10, 10))
    assert np.isfinite(ops.to_host(level))[:, 0].tolist() == [True, False]


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (4, 3), (13, 12)])
@pytest.mark.parametrize("cell", [(8, 8), (5, 9), (1, 3)])
def test_surface_is_the_spline_zoom_of_the_mesh(rng, ops, shape, cell):
    mesh = rng.normal(100, 5, shape)
    surface = spline_surface(mesh, cell)
    full = tuple(n * c for n, c in zip(shape, cell, strict=True))
    values = ops.to_host(ops.evaluate_surface(surface, full))
    padded = np.pad(mesh, 1, constant_values=np.nan)
    smooth = np.array(
        [
            [np.nanmedian(padded[j : j + 3, i : i + 3]) for i in range(shape[1])]
            for j in range(shape[0])
        ]
    )
    expected = zoom(smooth, cell, order=3, mode="reflect", grid_mode=True)
    np.testing.assert_allclose(values, np.clip(expected, smooth.min(), smooth.max()), rtol=1e-13)


def test_bad_cells_take_the_mean_of_their_neighbours(ops):
    mesh = np.full((5, 6), 7.0)
    mesh[2:4, 1:3] = np.nan
    surface = spline_surface(mesh, (4, 4))
    np.testing.assert_allclose(ops.to_host(ops.evaluate_surface(surface, (18, 23))), 7, rtol=1e-15)


def test_surface_stays_within_the_mesh(rng, ops):
    mesh = np.zeros((6, 6))
    mesh[:, 3:] = 1000
    values = ops.to_host(ops.evaluate_surface(spline_surface(mesh, (10, 10)), (60, 60)))
    assert values.min() >= 0
    assert values.max() <= 1000
