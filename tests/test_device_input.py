"""Arrays that live on a GPU are measured where they live; few steps wait for the device."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table

import gpuphot

from .hostcuda import standin
from .psfs import make_psf
from .scenes import make_scene

pytestmark = pytest.mark.parametrize("backend", ["cupy"], indirect=True)

OPTIONS = {
    "apertures": {"bg": 100.0, "err": 3.0},
    "estimated": {"gain": 2.0},
    "centroids": {"bg": 100.0, "err": 3.0, "centroid_iter": 3},
    "mode": {"bg": 100.0, "err": 3.0, "bkgann": (6.0, 10.0)},
    "plane": {"bg": 100.0, "err": 3.0, "bkgann": (6.0, 10.0), "bkg_order": 1},
    "filtered": {"bg": 100.0, "err": 3.0, "sn": 3, "keep_negative": False},
    "PSF centroids": {
        "bg": 100.0, "err": 3.0, "fwhm": 3.0, "centroid_iter": 2, "centroid_method": "psf",
    },
    "optimal": {"bg": 100.0, "err": 3.0, "fwhm": 3.0, "optimal": True, "group_sources": False},
}  # fmt: skip
GROUPED = {"bg": 100.0, "err": 3.0, "fwhm": 2.0, "aper": 1.0, "optimal": True}

SEP = {
    "apertures": {"bkgann": (6.0, 10.0)},
    "centroids": {"centroid_iter": 1},
    "optimal": {"fwhm": 3.0, "aper": 1.0, "optimal": True, "group_sources": False},
    "grouped": {"fwhm": 2.0, "aper": 1.0, "bkgann": (3.0, 5.0), "optimal": True},
    "fits": {"psf": make_psf(19, 19, 0.5, 1), "group_sources": False},
    "grouped fits": {"psf": make_psf(19, 19, 0.5, 1)},
}


def width(x, y):
    """A FWHM that varies over the image."""
    return 2.0 + np.asarray(x) / 1000


@pytest.mark.parametrize("fresh", ["image", "mask", "bg", "err", "all"])
@pytest.mark.fresh_seed
def test_device_arrays_give_what_host_arrays_give(scene, ops, backend, fresh, rng):
    planes = {
        "image": scene.image,
        "mask": scene.mask,
        "bg": rng.normal(10, 1, scene.image.shape),
        "err": rng.uniform(1, 2, scene.image.shape),
    }
    expected = gpuphot.measure_objects(scene.table, backend=backend, bkgann=(5, 9), **planes)
    for name in planes if fresh == "all" else [fresh]:
        planes[name] = ops.to_device(planes[name])
    result = gpuphot.measure_objects(scene.table, bkgann=(5, 9), backend=backend, **planes)
    for name in expected.colnames:
        np.testing.assert_array_equal(result[name], expected[name])


@pytest.mark.parametrize("dtype", [">i2", "<u2", ">f4", "f8", "?"])
def test_images_of_any_dtype_on_host_and_device(ops, backend, dtype):
    image = np.random.default_rng(0).normal(100, 30, (60, 70)).astype(dtype)
    table = {"x": [20.0, 40.0], "y": [30.0, 21.5]}
    table = Table(table)
    options = {"bg": 0.0, "err": 1.0, "backend": backend}
    expected = gpuphot.measure_objects(table, image.astype(float), **options)
    for version in (image, ops.to_device(image)):
        result = gpuphot.measure_objects(table, version, **options)
        np.testing.assert_array_equal(result["flux"], expected["flux"])


@pytest.mark.fresh_seed
def test_device_arrays_are_not_modified(scene, ops, backend):
    image, err = ops.to_device(scene.image), ops.to_device(np.ones(scene.image.shape))
    _, _, noise = gpuphot.measure_objects(scene.table, image, err=err, bg=1.0, get_bg=True)
    assert noise is err
    np.testing.assert_array_equal(ops.to_host(image), scene.image)
    np.testing.assert_array_equal(ops.to_host(err), 1)


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.fresh_seed
def test_the_host_visits_the_device_twice_and_once_for_the_mesh(scene, ops, backend, case):
    if not standin.is_installed():
        pytest.skip("visits are counted by the stand-in")
    image = ops.to_device(scene.image)
    gpuphot.measure_objects(scene.table, image, **OPTIONS[case])
    standin.counters.reset()
    gpuphot.measure_objects(scene.table, image, **OPTIONS[case])
    assert standin.counters.device_to_host == 2 + (case == "estimated")
    assert standin.counters.synchronisations == 0


@pytest.mark.parametrize(
    "options",
    [GROUPED, GROUPED | {"bkgann": (6.0, 10.0)}, GROUPED | {"fwhm": width}],
    ids=["constant width", "local backgrounds", "widths"],
)
@pytest.mark.fresh_seed
def test_visits_of_grouped_fits_do_not_grow_with_the_sources(ops, backend, options, rng):
    """Sizes, the ends of rounds of solving, results: 10 to 13 visits in ordinary scenes."""
    if not standin.is_installed():
        pytest.skip("visits are counted by the stand-in")
    counted = []
    for shape, n in (((90, 110), 100), ((240, 300), 400)):
        scene = make_scene(rng.integers(1 << 30), shape=shape, n=n)
        image = ops.to_device(scene.image)
        standin.counters.reset()
        gpuphot.measure_objects(scene.table, image, **options)
        counted.append(standin.counters.device_to_host)
    assert max(counted) <= 20


@pytest.mark.parametrize("case", SEP)
@pytest.mark.fresh_seed
def test_device_arrays_are_measured_with_the_conventions_of_sep(ops, backend, case, rng):
    """Visits for the mesh, the size of the largest circle, the results; groups have more sizes.

    The planes of a model that is new are waited for, once.
    """
    scene = make_scene(rng.integers(1 << 30), shape=(90, 110), n=60)
    planes = {"image": scene.image, "mask": scene.mask}
    expected = gpuphot.measure_objects_sep(scene.table, backend=backend, **planes, **SEP[case])
    planes = {name: ops.to_device(plane) for name, plane in planes.items()}
    if standin.is_installed():
        standin.counters.reset()
    result = gpuphot.measure_objects_sep(scene.table, **planes, **SEP[case])
    if standin.is_installed():
        assert standin.counters.device_to_host <= (25 if "grouped" in case else 4)
        assert standin.counters.synchronisations <= ("psf" in SEP[case])
    for name in expected.colnames:
        np.testing.assert_array_equal(result[name], expected[name])


@pytest.mark.parametrize("correction", ["ratio_field", "fixed", "grid"])
@pytest.mark.fresh_seed
def test_device_arrays_are_deblended(ops, backend, correction, rng):
    """Visits for sizes and extents, the largest circle and the results, however many stars."""
    counted = []
    for n in (80, 160):
        x, y = rng.uniform(0, 110, n), rng.uniform(0, 90, n)
        arrays = {
            "image": rng.normal(0, 3, (90, 110)), "x": x, "y": y, "err": np.full((90, 110), 3.0),
            "flux_seed": rng.uniform(90, 110, n), "flux_psf": np.full(n, 120.0),
            "flux_psf_err": np.full(n, 4.0), "target": rng.random(n) < 0.5,
        }  # fmt: skip
        options = {"aper": 3.0, "psf": make_psf(19, 19, 1.0, 1), "diagnostics": True}
        if correction == "grid":
            options["correction_field_kwargs"] = {"backend": "grid"}
        else:
            options["aperture_correction"] = correction
        deblend = gpuphot.measure_aperture_deblended
        expected = deblend(**arrays, **options, backend=backend)
        arrays = {name: ops.to_device(values) for name, values in arrays.items()}
        if standin.is_installed():
            standin.counters.reset()
        result = deblend(**arrays, **options)
        if standin.is_installed():
            counted.append(standin.counters.device_to_host)
        for name in expected.colnames:
            np.testing.assert_array_equal(result[name], expected[name])
    assert max(counted, default=0) <= 12


@pytest.mark.fresh_seed
def test_work_runs_on_the_stream_of_the_caller(scene, backend):
    import cupy

    expected = gpuphot.measure_objects(scene.table, scene.image, backend=backend, bkgann=(5, 9))
    with cupy.cuda.Stream(non_blocking=True):
        result = gpuphot.measure_objects(scene.table, scene.image, backend=backend, bkgann=(5, 9))
    np.testing.assert_array_equal(result["flux"], expected["flux"])


@pytest.mark.fresh_seed
def test_work_runs_on_the_device_of_the_image(scene, ops, backend):
    import cupy

    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one device only")
    expected = gpuphot.measure_objects(scene.table, scene.image, backend=backend, gain=1.0)
    with cupy.cuda.Device(1):
        image = ops.to_device(scene.image)
    result = gpuphot.measure_objects(scene.table, image, gain=1.0)
    np.testing.assert_array_equal(result["flux"], expected["flux"])
