"""What pipelines rely on: everything can be pickled and copied, nothing is left behind by a
measurement, and processes and threads get the bits of one measurement after the other."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import sep_x
from astropy.nddata import NDData

import gpuphot
from gpuphot.detect import detect_objects
from gpuphot.models.psf import as_psf_model

from .psfs import make_psf
from .scenes import make_scene

SHAPE = 100, 120
IMAGES = range(4)


def gridded_psf():
    from photutils.psf import GriddedPSFModel  # processes that do not need it start faster

    nodes = [(0.0, 0.0), (SHAPE[1], 0.0), (0.0, SHAPE[0]), (SHAPE[1], SHAPE[0])]
    planes = np.concatenate([make_psf(25, 25, 0.5, 0, seed)["data"] for seed in range(len(nodes))])
    return GriddedPSFModel(NDData(planes, meta={"grid_xypos": nodes, "oversampling": 2}))


PSFS = {
    "Gaussian": lambda: 3.0,
    "polynomial": lambda: make_psf(25, 25, 0.5, 2),
    "block sums": lambda: make_psf(26, 26, 0.5, 0),
    "gridded": gridded_psf,
}


def measure(image_seed, psf):
    """What the measuring functions make of one image, down to the bits."""
    scene = make_scene(image_seed, sky=100.0, shape=SHAPE, n=80)
    obj, image, options = scene.table, scene.image, {"mask": scene.mask, "backend": "numpy"}
    annulus = {"aper": 3.0, "bkgann": (6.0, 10.0), "gain": 2.0, "bg_size": 32}
    fits = gpuphot.measure_objects_sep(obj, image, psf=psf, **annulus, **options)
    deblended = gpuphot.measure_aperture_deblended(
        image - 100.0, obj["x"], obj["y"], 3.0, psf,
        flux_seed=fits["flux"], flux_psf=fits["flux"], flux_psf_err=fits["fluxerr"], err=5.0,
        diagnostics=True, **options,
    )  # fmt: skip
    tables = [
        gpuphot.measure_objects(obj, image, centroid_iter=3, bkg_order=1, **annulus, **options),
        gpuphot.measure_objects(obj, image, psf=psf, optimal=True, **annulus, **options),
        gpuphot.measure_objects_sep(obj, image, centroid_iter=3, **annulus, **options),
        gpuphot.measure_objects_sep(obj, image, fwhm=3.0, optimal=True, **annulus, **options),
        fits,
        deblended,
        detect_objects(image, scene.mask),
        gpuphot.measure_image(image, method="deblended", **options).table,
    ]
    return [(str(table.meta), table.as_array().tobytes()) for table in tables]


@pytest.fixture(scope="module")
def psf():
    return as_psf_model(PSFS["polynomial"]())


@pytest.fixture(scope="module")
def expected(psf):
    """One image after the other."""
    return [measure(seed, psf) for seed in IMAGES]


# ---- processes and threads -----------------------------------------------------------------------


# In Python 3.12 and later, a process with threads warns when it forks, and pytest-xdist has some.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_processes_get_the_same_bits(method, psf, expected):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        assert list(pool.map(partial(measure, psf=psf), IMAGES)) == expected


def test_threads_get_the_same_bits(expected):
    psf = as_psf_model(PSFS["polynomial"]())  # of which nothing is cached yet
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(partial(measure, psf=psf), IMAGES)) == expected
    finally:
        sys.setswitchinterval(interval)


# ---- what a measurement leaves behind ------------------------------------------------------------


def global_state():
    """Whatever a measurement might change for the next one, or for the rest of the program."""
    modules = [module for name, module in sys.modules.items() if name.startswith("gpuphot")]
    return {
        "containers of modules": {
            f"{module.__name__}.{name}": repr(value)
            for module in modules
            for name, value in vars(module).items()
            if isinstance(value, (dict, list, set)) and not name.startswith("__")
        },
        "NumPy's errors": np.geterr(),
        "random numbers": pickle.dumps(np.random.get_state()),  # noqa: NPY002
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "SEP's limits": (sep_x.get_extract_pixstack(), sep_x.get_sub_object_limit()),
    }


def test_measuring_leaves_nothing_behind(psf, expected):
    before = global_state()
    again = [measure(seed, psf) for seed in reversed(IMAGES)]
    assert global_state() == before
    assert again[::-1] == expected


# ---- pickled and copied --------------------------------------------------------------------------


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))


@pytest.fixture(params=[pickled, copy.deepcopy, copy.copy], ids=["pickled", "deepcopy", "copy"])
def duplicate(request):
    return request.param


@pytest.mark.parametrize("name", gpuphot.__all__)
def test_public_names(duplicate, name):
    public = getattr(gpuphot, name)
    assert duplicate(public) is public or isinstance(public, str)


@pytest.mark.parametrize("kind", PSFS)
@pytest.mark.parametrize("cached", [False, True])
def test_psf_models(duplicate, kind, cached):
    x, y, flux = np.array([[30.2, 70.9], [40.5, 50.1], [1e3, 2e3]])
    model = as_psf_model(PSFS[kind]())
    draw = partial(gpuphot.render_psf_image, x=x, y=y, flux=flux, shape=SHAPE, backend="numpy")
    image = draw(model) if cached else None
    second = duplicate(model)
    assert second != model
    assert dict(second).keys() == dict(model).keys()
    np.testing.assert_array_equal(draw(second), draw(model) if image is None else image)
    for array in (second.planes, second.grid_x, second.grid_y):
        assert array is None or not array.flags.writeable


def test_flags(duplicate):
    for flags in (*gpuphot.Flag, gpuphot.Flag.MASKED | gpuphot.Flag.NO_FIT):
        assert duplicate(flags) is flags


def test_backends_and_their_errors(duplicate):
    numpy = gpuphot.resolve_backend("numpy")
    assert duplicate(numpy) == numpy
    assert duplicate(gpuphot.BackendError("no GPU")).args == ("no GPU",)


def test_results(duplicate):
    scene = make_scene(1, shape=SHAPE, n=80)
    options = {"get_bg": True, "bg_size": 32, "backend": "numpy"}
    for function in (gpuphot.measure_objects, gpuphot.measure_objects_sep):
        table, *maps = function(scene.table, scene.image, **options)
        again, *maps_again = duplicate((table, *maps))
        assert again.meta == table.meta
        assert again.colnames == table.colnames
        assert again.as_array().tobytes() == table.as_array().tobytes()
        np.testing.assert_array_equal(maps_again, maps)
