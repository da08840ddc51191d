"""No bit of a result depends on the order of the rows, nor on how the work is cut."""

from __future__ import annotations

import numpy as np
import pytest

import gpuphot

pytestmark = pytest.mark.fresh_seed

OPTIONS = {
    "large apertures": {"aper": 60.0, "centroid_iter": 1},
    "large annuli": {"bkgann": (40.0, 90.0), "bkg_order": 2},
    "apertures": {"gain": 2.0, "bg_size": 50},
    "centroids": {"centroid_iter": 3, "aper": 4.3},
    "mode": {"bkgann": (5.0, 11.0)},
    "plane": {"bkgann": (5.0, 11.0), "bkg_order": 1},
    "quadratic surface": {"bkgann": (5.0, 11.0), "bkg_order": 2},
}
ON_A_GRID = {
    "integer": np.rint,
    "tenths": lambda values: np.round(values, 1),
    "random": lambda values: values,
}


@pytest.fixture(params=OPTIONS)
def options(request, scene, backend):
    return {**OPTIONS[request.param], "mask": scene.mask, "backend": backend}


@pytest.fixture(params=ON_A_GRID)
def table(request, scene):
    table = scene.table.copy()
    for name in ("x", "y"):
        table[name] = ON_A_GRID[request.param](np.asarray(table[name]))
    return table


def assert_same_bits(one, other):
    assert one.colnames == other.colnames
    for name in one.colnames:
        np.testing.assert_array_equal(
            np.asarray(one[name]).view(np.uint64), np.asarray(other[name]).view(np.uint64), name
        )


def test_permuted_rows_give_permuted_results(scene, table, options, rng):
    result = gpuphot.measure_objects(table, scene.image, **options)
    order = rng.permutation(len(table))
    permuted = gpuphot.measure_objects(table[order], scene.image, **options)
    assert_same_bits(result[order], permuted)


def test_rows_measured_in_parts_give_the_same_results(scene, table, options):
    result = gpuphot.measure_objects(table, scene.image, **options)
    for part in (slice(0, 1), slice(1, 90), slice(90, None)):
        alone = gpuphot.measure_objects(table[part], scene.image, **options)
        assert_same_bits(result[part], alone)


@pytest.mark.parametrize("workspace", [1, 1000, 1 << 22])
def test_size_of_chunks_does_not_matter(scene, table, options, backend, workspace, monkeypatch):
    if backend != "numpy":
        pytest.skip("the kernels of this backend know no chunks")
    result = gpuphot.measure_objects(table, scene.image, **options)
    monkeypatch.setattr("gpuphot.numpy_backend.chunks.WORKSPACE", workspace)
    assert_same_bits(result, gpuphot.measure_objects(table, scene.image, **options))


def test_memory_order_of_the_image_does_not_matter(scene, options):
    result = gpuphot.measure_objects(scene.table, scene.image, **options)
    other = gpuphot.measure_objects(scene.table, np.asfortranarray(scene.image), **options)
    assert_same_bits(result, other)
