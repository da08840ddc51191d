"""Centres of mass, and centroids weighted with a PSF."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from astropy.table import Table

from gpuphot.numpy_backend import primitives as numpy_ops

from .psfs import MADE_UP, REAL, load_psf, make_psf, model_of
from .reference import stdpipe_measure_objects
from .scenes import FWHM, add_stars, frame_of, positions_of
from .test_stamps import gridded_model


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


# Radius of the aperture, which is rounded up to an odd number of pixels, the side of the box; and
# the number of steps. Square stamps only: stdpipe misplaces others.
PSFS = {
    "constant": (4.3, 1),
    "degree 2, sampled 0.5, odd": (4.3, 2),
    "degree 2, sampled 0.53": (4.3, 3),
    "coarse": (30.2, 3),
    "even": (4.3, 2),
    "even, in a large box": (21.0, 3),
    "DES": (4.3, 2),
    1.1: (12.0, 3),
    3.0: (4.5, 3),
    7.0: (6.0, 1),
}


def psf_of(name):
    if name in MADE_UP or name in REAL:
        return load_psf(name)
    return name if isinstance(name, float) else make_psf(24, 24, 0.5, 1)


def are_steady(scene, psf, half_size, n_iter, rows=slice(None)):
    """Whether the answer for a source is one: not of any rounding, while it hunts after noise.

    Where hardly any light is left steps are long, and each magnifies what went before. Such
    sources move by more than 1e-8 pixels when the image changes by 1e-9 of its noise.
    """
    noise = np.random.default_rng(0).normal(0, 3e-9, scene.image.shape)
    shaken = dataclasses.replace(scene, image=scene.image + noise)
    one, other = (
        centroids_of(numpy_ops, each, psf, half_size, n_iter, rows) for each in (scene, shaken)
    )
    steady = np.isclose(one, other, rtol=0, atol=1e-8, equal_nan=True).all(axis=0)
    assert steady.mean() > 0.9
    return steady


def centroids_of(ops, scene, psf, half_size, n_iter, rows=slice(None)):
    """Positions of the rows of a scene; x and y as one array."""
    frame = frame_of(ops, scene.image, scene.mask, bg=np.nanmedian(scene.image))
    pos = positions_of(ops, scene.table["x"][rows], scene.table["y"][rows])
    moved = ops.psf_centroid(frame, pos, model_of(psf), half_size, n_iter)
    return np.stack([ops.to_host(v) for v in moved])


@pytest.mark.parametrize("name", PSFS)
def test_psf_centroids_agree_with_stdpipe(scene, ops, name):
    psf, (aper, n_iter) = psf_of(name), PSFS[name]
    rows = slice(None) if isinstance(name, float) else slice(5, 65)  # it takes stdpipe seconds
    expected = stdpipe_measure_objects(
        Table({name: scene.table[name][rows] for name in ("x", "y")}),
        scene.image,
        aper=aper,
        mask=scene.mask,
        bg=np.full(scene.image.shape, np.nanmedian(scene.image)),
        err=np.ones(scene.image.shape),
        centroid_iter=n_iter,
        centroid_method="psf",
        psf=psf,
    )
    half_size = (math.ceil(aper) | 1) // 2
    positions = centroids_of(ops, scene, psf, half_size, n_iter, rows)
    moved = np.asarray(expected["x"] != expected["x_orig"])
    assert np.count_nonzero(moved) > 0.3 * len(moved)
    steady = are_steady(scene, psf, half_size, n_iter, rows)
    moved, stayed = moved & steady, ~moved & steady
    for ours, theirs, start in zip(
        positions,
        (expected["x"], expected["y"]),
        (expected["x_orig"], expected["y_orig"]),
        strict=True,
    ):
        np.testing.assert_array_equal(ours[stayed], start[stayed])
        np.testing.assert_allclose(ours[moved], theirs[moved], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["constant", "even", "gridded", 3.0])
def test_psf_centroid_depends_on_its_own_source_only(rng, scene, ops, name):
    psf = gridded_model(34) if name == "gridded" else psf_of(name)
    n = len(scene.table) if name == 3.0 else 60
    positions = centroids_of(ops, scene, psf, 4, 2, slice(0, n))
    order = rng.permutation(n)
    np.testing.assert_array_equal(centroids_of(ops, scene, psf, 4, 2, order), positions[:, order])
    for part in (slice(6, 7), slice(7, 9), slice(9, n)):
        np.testing.assert_array_equal(centroids_of(ops, scene, psf, 4, 2, part), positions[:, part])


@pytest.mark.parametrize("name", ["constant", "gridded", 3.0])
@pytest.mark.parametrize("workspace", [1, 3000, 1 << 22])
@pytest.mark.fresh_seed
def test_size_of_chunks_does_not_matter(scene, name, workspace, monkeypatch):
    psf = gridded_model(34) if name == "gridded" else psf_of(name)
    expected = centroids_of(numpy_ops, scene, psf, 4, 2, slice(5, 95))
    monkeypatch.setattr("gpuphot.numpy_backend.chunks.WORKSPACE", workspace)
    positions = centroids_of(numpy_ops, scene, psf, 4, 2, slice(5, 95))
    np.testing.assert_array_equal(positions, expected)


def test_psf_centroid_finds_the_star(rng, ops):
    """From 1.5 pixels away: every small step halves the distance, 16 of them are one step."""
    image = rng.normal(0, 1e-3, (60, 80))
    add_stars(image, [40.3, 20.5], [30.6, 30.0], [1e4, 1e4])
    pos = positions_of(ops, [41.5, 20.0], [31.3, 31.5])
    frame, model = frame_of(ops, image), model_of(FWHM)
    x, y = (ops.to_host(v) for v in ops.psf_centroid(frame, pos, model, 3, 5))
    np.testing.assert_allclose(x, [40.3, 20.5], rtol=0, atol=1e-3)
    np.testing.assert_allclose(y, [30.6, 30.0], rtol=0, atol=1e-3)


@pytest.fixture
def failing(ops):
    """Four sources that a PSF cannot weigh, and one that it can."""
    image = np.full((60, 80), -1e-6)
    start_x, start_y = np.array([8.0, 20, 40, 60, 20]), np.array([30.0, 30, 30, 30, 8])
    add_stars(image, start_x + 0.4, start_y, [1e4, -1e4, 1e4, 1e4, 1e4])
    mask = np.zeros(image.shape, bool)
    mask[20:41, 30:51] = True
    mask[30, 40:42] = False  # two usable pixels, not three
    return frame_of(ops, image, mask), start_x, start_y


@pytest.mark.parametrize("psf", [3.0, make_psf(19, 19, 1.0, 0)], ids=["Gaussian", "planes"])
def test_without_light_room_or_pixels_a_position_stays(ops, failing, psf):
    frame, start_x, start_y = failing
    pos = positions_of(ops, [*start_x, np.nan], [*start_y, 7.0])
    x, y = (ops.to_host(v) for v in ops.psf_centroid(frame, pos, model_of(psf), 3, 5))
    start_x[3] += 0.4
    np.testing.assert_allclose([x[3], y[3]], [start_x[3], start_y[3]], rtol=0, atol=1e-2)
    stays = [0, 1, 2, 4]
    np.testing.assert_array_equal(x[stays], start_x[stays])
    np.testing.assert_array_equal(y[stays], start_y[stays])
    assert np.isnan(x[5])
    assert y[5] == 7


@pytest.mark.parametrize("psf", [3.0, make_psf(19, 19, 1.0, 0)], ids=["Gaussian", "planes"])
def test_image_smaller_than_a_stamp_moves_nothing(ops, psf):
    pos = positions_of(ops, 8.2, 7.6)
    frame = frame_of(ops, np.ones((16, 18)))
    x, y = ops.psf_centroid(frame, pos, model_of(psf), 2, 3)
    assert (float(ops.to_host(x)[0]), float(ops.to_host(y)[0])) == (8.2, 7.6)


def test_no_sources_have_no_centroids(ops):
    frame = frame_of(ops, np.ones((40, 50)))
    for psf in (3.0, make_psf(19, 19, 1.0, 0)):
        x, y = ops.psf_centroid(frame, positions_of(ops, [], []), model_of(psf), 2, 3)
        assert len(x) == len(y) == 0
