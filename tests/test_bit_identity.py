"""No bit of a result depends on the order of the rows, nor on how the work is cut."""

from __future__ import annotations

import numpy as np
import pytest

import gpuphot

from .psfs import make_psf
from .scenes import make_scene

pytestmark = pytest.mark.fresh_seed


def width(x, y):
    """A FWHM that varies over the image."""
    return 2.0 + x / 300 + y / 240


OPTIONS = {
    "large apertures": {"aper": 60.0, "centroid_iter": 1},
    "large annuli": {"bkgann": (40.0, 90.0), "bkg_order": 2},
    "apertures": {"gain": 2.0, "bg_size": 50},
    "centroids": {"centroid_iter": 3, "aper": 4.3},
    "mode": {"bkgann": (5.0, 11.0)},
    "plane": {"bkgann": (5.0, 11.0), "bkg_order": 1},
    "quadratic surface": {"bkgann": (5.0, 11.0), "bkg_order": 2},
    "single fits": {"optimal": True, "group_sources": False, "psf": make_psf(25, 25, 1.0, 2)},
    "single Gaussians": {
        "optimal": True,
        "group_sources": False,
        "fwhm": width,
        "bkgann": (3.0, 5.0),
    },
}
GROUPED = {
    "groups": {"psf": make_psf(51, 51, 0.5, 2), "aper": 4.5},
    "groups with a constant": {"psf": make_psf(19, 31, 1.0, 1), "aper": 4.5, "bkgann": (5.0, 11.0)},
    "groups of their own width": {"fwhm": width, "aper": 1.3},
    "one group": {"psf": 2.5, "grouper_radius": 60.0, "bkgann": (5.0, 11.0)},
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


# ---- groups --------------------------------------------------------------------------------------


@pytest.fixture(params=GROUPED)
def group_options(request, backend):
    return {**GROUPED[request.param], "optimal": True, "err": 3.0, "backend": backend}


@pytest.fixture
def apart(table):
    """The table without rows that coincide exactly."""
    positions = np.stack([table["x"], table["y"]], axis=1)
    _, first = np.unique(positions, axis=0, return_index=True)
    return table[np.sort(first)]


def test_permuted_rows_give_permuted_groups(scene, apart, group_options, rng):
    """Their numbers apart, which follow the rows."""
    result = gpuphot.measure_objects(apart, scene.image, mask=scene.mask, **group_options)
    assert result["group_size"].max() > (64 if "grouper_radius" in group_options else 2)
    order = rng.permutation(len(apart))
    permuted = gpuphot.measure_objects(apart[order], scene.image, mask=scene.mask, **group_options)
    result = result[order]
    numbers = np.array(result["group_id"]), np.array(permuted["group_id"])
    assert len({*zip(*numbers, strict=True)}) == len({*numbers[0]}) == len({*numbers[1]})
    for each in (result, permuted):
        each.remove_column("group_id")
    assert_same_bits(result, permuted)


BOUNDS = {
    "numpy": [
        ("chunks.WORKSPACE", (1, 5000, 1 << 22)),
        ("group_fit.BAND", (1, 10_000)),
        ("blocks.MATRICES", (1, 100)),
    ],
    "cupy": [("launch.MAX_WORKSPACE", (1, 1_000_000))],
}


def test_size_of_chunks_does_not_matter_to_groups(seed, group_options, backend, monkeypatch):
    scene = make_scene(seed, shape=(96, 112), n=90)
    call = {"image": scene.image, "mask": scene.mask, **group_options}
    result = gpuphot.measure_objects(scene.table, **call)
    assert result["group_size"].max() > (64 if "grouper_radius" in group_options else 2)
    for name, values in BOUNDS[backend]:
        for value in values:
            with monkeypatch.context() as patch:
                patch.setattr(f"gpuphot.{backend}_backend.{name}", value)
                assert_same_bits(result, gpuphot.measure_objects(scene.table, **call))
