"""Every kernel of the package, run on the CPU through the Python side of the CuPy backend.

In whatever order threads take turns the bits are the same; nothing races, nothing leaves its
arrays, and no result hangs on how multiplications and additions are contracted.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

import gpuphot
from gpuphot.cupy_backend import probe
from gpuphot.cupy_backend.kernels.registry import KERNELS

from ..scenes import make_scene
from . import (
    build,
    standin,
    test_group_kernels,
    test_overlap_kernels,
    test_psf_centroid_kernels,
    test_sep_annulus_kernels,
    test_sep_aperture_kernels,
    test_sep_fit_kernels,
    test_sep_group_fit_kernels,
    test_sep_mesh_kernels,
    test_sep_optimal_kernels,
    test_sep_stamps_kernels,
    test_smooth_kernels,
    test_stamp_kernels,
)
from .sanitized import run_sanitized

# Options of measure_objects that between them launch every kernel it has.
CASES = {
    "estimated": {"aper": 3.3, "gain": 2.0, "bg_size": 16},
    "large cells": {"aper": 2.0, "bg_size": 1000},
    "given": {"aper": 3.3, "bg": 7.0, "err": 2.0, "centroid_iter": 2},
    "map": {"aper": 3.3, "bg": 7.0, "get_bg": True, "bg_size": 16},
    "large apertures": {"aper": 300.0, "bg": 7.0, "err": 2.0},
    "mode": {"aper": 3.3, "bg": 7.0, "err": 2.0, "bkgann": (4.0, 8.0)},
    "large mode": {"aper": 3.3, "bg": 7.0, "err": 2.0, "bkgann": (4.0, 60.0)},
    "plane": {"aper": 3.3, "bg": 7.0, "err": 2.0, "bkgann": (4.0, 8.0), "bkg_order": 1},
    "quadratic": {"aper": 3.3, "bg": 7.0, "err": 2.0, "bkgann": (4.0, 8.0), "bkg_order": 2},
}
# The modules that prove other kernels, and the cases that they run.
OTHERS = [
    *((module, [(name,) for name in module.MODELS])
      for module in (test_stamp_kernels, test_psf_centroid_kernels)),
    *((module, [(name,) for name in module.CASES])
      for module in (
          test_group_kernels, test_overlap_kernels, test_sep_annulus_kernels,
          test_sep_aperture_kernels, test_sep_fit_kernels, test_sep_group_fit_kernels,
          test_sep_mesh_kernels, test_sep_optimal_kernels, test_smooth_kernels,
      )),
    (test_sep_stamps_kernels, list(test_sep_stamps_kernels.MADE)),
]  # fmt: skip
ORDERS = [("reverse", 0), ("random", 1), ("random", 2)]


def measure(case, backend="cupy", shape=(64, 72), n=12):
    """All columns of one measurement, as one array."""
    scene = make_scene(11, sky=100.0, shape=shape, n=80)
    table = scene.table[np.r_[0:3, 10:12, 30:32, 50:52, 70 : 70 + n - 9]]
    result = gpuphot.measure_objects(
        table, scene.image, mask=scene.mask, backend=backend, **CASES[case]
    )
    table = result[0] if isinstance(result, tuple) else result
    return np.stack([np.asarray(table[name], dtype=float) for name in table.colnames])


@functools.cache
def expected(case):
    return measure(case, "numpy")


@pytest.fixture
def machine():
    """The stand-in's machine, whose variant and schedule a test may set."""
    probe.find_gpu.cache_clear()
    with standin.installed():
        yield standin.machine
    probe.find_gpu.cache_clear()


def assert_close(result, reference):
    np.testing.assert_array_equal(np.isnan(result), np.isnan(reference))
    np.testing.assert_allclose(result, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_order_of_threads_changes_no_bit(machine, case):
    forward = measure(case)
    assert_close(forward, expected(case))
    for order, seed in ORDERS:
        machine.schedule = {"order": order, "seed": seed}
        np.testing.assert_array_equal(measure(case), forward)


@pytest.mark.parametrize("case", CASES)
def test_no_thread_races_with_another(machine, case):
    machine.variant = "race"
    assert_close(measure(case), expected(case))
    assert standin.races() == []


@pytest.mark.parametrize("case", CASES)
def test_nothing_depends_on_contraction(machine, case):
    machine.variant = "contracted"
    assert_close(measure(case), expected(case))


def measure_sanitized(case):
    """What runs in the process of the sanitizers."""
    standin.install()
    standin.machine.variant = "sanitized"
    measure(case)


def test_nothing_is_read_or_written_outside_of_arrays():
    outcomes = run_sanitized(__name__, "measure_sanitized", [(case,) for case in CASES])
    for case, outcome in zip(CASES, outcomes, strict=True):
        assert outcome.passed, f"{case}:\n{outcome.report}"


def test_every_kernel_was_executed(machine):
    """Those of the other tests of kernels, too."""
    for case in CASES:
        measure(case)
    for module, cases in OTHERS:
        for each in cases:
            module.run(*each, "plain")
    executed = {name for name in KERNELS if build.executed[name]}
    print(f"{len(executed)} of {len(KERNELS)} registered kernels were executed")
    assert executed == set(KERNELS)
