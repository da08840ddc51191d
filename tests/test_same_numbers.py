"""Both backends give the same numbers, primitive by primitive."""

from __future__ import annotations

import numpy as np
import pytest

import gpuphot
from gpuphot.models.background import spline_surface
from gpuphot.numpy_backend import primitives as numpy_ops

from .scenes import frame_of, positions_of
from .test_centroid import are_steady, centroids_of
from .test_stamps import any_model

pytestmark = [
    pytest.mark.parametrize("backend", ["cupy"], indirect=True),
    pytest.mark.fresh_seed,
]


@pytest.fixture
def ops(backend):
    return gpuphot.resolve_backend(backend).primitives


@pytest.fixture
def both(ops, scene):
    """A function that calls a primitive on both backends, on the frame of the scene."""

    def call(name, *arguments):
        results = []
        for each in (numpy_ops, ops):
            frame = frame_of(each, scene.image, scene.mask, err=2.0)
            pos = positions_of(each, scene.table["x"], scene.table["y"])
            results.append(getattr(each, name)(frame, pos, *arguments))
        return results

    return call


@pytest.mark.parametrize("r", [0.7, 3.0, 11.3, 250.0])
def test_aperture_sums(ops, scene, both, r):
    """Sums within 1e-12 of the sum of w |v|, flags identical."""
    host, device = both("aperture_sums", np.array([r]))
    absolute = frame_of(numpy_ops, np.abs(scene.image), scene.mask, err=2.0)
    scale = numpy_ops.aperture_sums(
        absolute, positions_of(numpy_ops, scene.table["x"], scene.table["y"]), np.array([r])
    )
    for name, unit in (("flux", scale.flux), ("var", scale.var), ("area", scale.area)):
        u, v = getattr(host, name), ops.to_host(getattr(device, name))
        np.testing.assert_array_equal(np.isnan(u), np.isnan(v))
        # The overlap itself is a difference of areas of order r^2.
        limit = 1e-12 * unit + 1e-15 * r * r * np.nanmax(np.abs(scene.image))
        assert np.all((np.abs(u - v) <= limit)[np.isfinite(u)])
    np.testing.assert_array_equal(host.masked, ops.to_host(device.masked))


@pytest.mark.parametrize("cell", [(16, 16), (64, 64), (200, 200), (33, 7)])
def test_mesh_statistics(ops, scene, cell):
    """Within 1e-12 of the standard deviation, and the rounding of the level itself."""
    host = numpy_ops.mesh_statistics(*numpy_ops.load_image(scene.image, scene.mask), cell)
    device = ops.mesh_statistics(*ops.load_image(scene.image, scene.mask), cell)
    level, rms = (ops.to_host(values) for values in device)
    np.testing.assert_array_equal(np.isnan(level), np.isnan(host[0]))
    good = np.isfinite(level)
    assert np.all((np.abs(level - host[0]) <= 1e-12 * rms + 4e-16 * np.abs(level))[good])
    np.testing.assert_allclose(rms[good], host[1][good], rtol=1e-12)


def test_surface(ops, rng):
    surface = spline_surface(rng.normal(100, 5, (7, 9)), (13, 10))
    host = numpy_ops.evaluate_surface(surface, (88, 85))
    device = ops.to_host(ops.evaluate_surface(surface, (88, 85)))
    np.testing.assert_allclose(device, host, rtol=1e-14)


@pytest.mark.parametrize("radii", [(4.0, 8.0), (10.0, 15.0), (20.0, 60.0)])
def test_annulus_mode(ops, both, radii):
    """Within 1e-12 of the sample's standard deviation, which is at least that of the noise."""
    host, device = both("annulus_mode", *radii)
    device = ops.to_host(device)
    np.testing.assert_array_equal(np.isnan(device), np.isnan(host))
    assert np.nanmax(np.abs(device - host) - 4e-16 * np.abs(host)) <= 1e-12 * 3


@pytest.mark.parametrize("radii", [(4.0, 8.0), (10.0, 15.0)])
@pytest.mark.parametrize("order", [1, 2])
def test_annulus_polynomial(ops, both, scene, radii, order):
    """Within 1e-9 of the constant's error, the noise times the root of its variance factor.

    Far outside of its pixels, near a corner of the image, an extrapolated polynomial magnifies
    rounding as it does noise, and the normal equations once more.
    """
    host, device = both("annulus_polynomial", *radii, order)
    device = ops.to_host(device)
    np.testing.assert_array_equal(np.isnan(device), np.isnan(host))
    factor = constant_errors(scene, radii, order)
    difference = np.abs(device - host) / (3 * factor)
    # Where the pixels do not determine the polynomial, the choice of the mean may hang on a bit.
    determined = np.isfinite(host) & (factor < 1e3)
    assert determined.sum() > 200
    assert np.all(difference[determined & (factor < 1)] <= 1e-9)
    # Extrapolated from the light of a bright star, the constant is far more than the noise.
    of_light = np.abs(device - host) / np.abs(host)
    assert np.all(np.minimum(difference, of_light * 100)[determined] <= 1e-7)


def constant_errors(scene, radii, order):
    """Error of each constant term for noise of 1."""
    good = np.isfinite(scene.image) & ~scene.mask
    rows, columns = np.nonzero(good)
    errors = np.full(len(scene.table), np.inf)
    for k, (x, y) in enumerate(zip(scene.table["x"], scene.table["y"], strict=True)):
        d = np.hypot(columns - x, rows - y)
        inside = (d >= radii[0]) & (d <= radii[1])
        u, v = (columns[inside] - x) / radii[1], (rows[inside] - y) / radii[1]
        terms = [np.ones_like(u), u, v] + ([u * u, u * v, v * v] if order == 2 else [])
        if len(u) >= 20:
            errors[k] = np.sqrt(abs(np.linalg.pinv(np.stack(terms) @ np.stack(terms).T)[0, 0]))
    return errors


def test_centroids(ops, both):
    host, device = both("com_centroid", 3, 4)
    for one, other in zip(host, device, strict=True):
        np.testing.assert_allclose(ops.to_host(other), one, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["constant", "degree 2, sampled 0.5", "gridded", 1.1, 3.3])
def test_psf_centroids(ops, scene, name):
    model = any_model(name)
    steady = are_steady(scene, model, 3, 2)
    host, device = (centroids_of(each, scene, model, 3, 2) for each in (numpy_ops, ops))
    np.testing.assert_allclose(device[:, steady], host[:, steady], rtol=0, atol=1e-9)
