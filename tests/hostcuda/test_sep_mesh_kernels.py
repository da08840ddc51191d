"""The kernels of SEP's background, in any order of threads and under every tool."""

from __future__ import annotations

import numpy as np
import pytest

import gpuphot
from gpuphot.cupy_backend import probe
from gpuphot.numpy_backend import primitives as numpy_ops

from ..scenes import make_scene
from . import standin
from .proof import SCHEDULES, assert_sanitizers_pass, running

# Side of the cells, and the shape of the image.
CASES = {
    "a few pixels per cell": (3, (17, 20)),
    "cells of a tile": (16, (64, 72)),
    "cells of many tiles": (40, (64, 72)),
    "one cell": (100, (64, 72)),
    "one row of cells": (20, (20, 72)),
    "one column of cells": (20, (64, 19)),
    "one pixel": (2, (1, 1)),
    "no good cell": (16, (40, 36)),
    "beyond single precision": (16, (40, 36)),
}


def maps(ops, name):
    bg_size, shape = CASES[name]
    scene = make_scene(3, sky=100.0, shape=(64, 72), n=90)
    image, mask = (np.array(v[-shape[0] :, -shape[1] :]) for v in (scene.image, scene.mask))
    if name == "no good cell":
        mask[...] = True
    if name == "beyond single precision":
        image[12, 20], image[20, 12], image[30, 30] = 1e39, -1e39, 1e300
    data, bad = ops.load_image(ops.to_device(image), mask)
    return np.stack([ops.to_host(v) for v in ops.sep_background(data, bad, bg_size)])


def run(name, variant, schedule=None):
    """Maps from the stand-in; what races is an error."""
    with running(variant, schedule) as ops:
        return maps(ops, name)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("variant", ["plain", "contracted"])
def test_any_order_of_threads_gives_the_same_bits(name, variant):
    reference = run(name, variant)
    for schedule in SCHEDULES:
        np.testing.assert_array_equal(run(name, variant, schedule), reference)


@pytest.mark.parametrize("name", CASES)
def test_kernels_give_the_bits_of_sep(name):
    np.testing.assert_array_equal(run(name, "plain"), maps(numpy_ops, name))


@pytest.mark.parametrize("name", CASES)
def test_contracted_kernels_differ_from_sep_by_roundings(name):
    np.testing.assert_allclose(run(name, "contracted"), maps(numpy_ops, name), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_kernels_have_no_races(name):
    run(name, "race", {"order": "random", "seed": 1})


def test_kernels_pass_the_sanitizers():
    calls = [(name, "sanitized") for name in CASES]
    assert_sanitizers_pass(__name__, calls)


def test_the_device_is_visited_once():
    with standin.installed():
        ops = gpuphot.resolve_backend("cupy").primitives
        data, bad = ops.load_image(ops.to_device(np.ones((40, 36))), None)
        standin.counters.reset()
        ops.sep_background(data, bad, 16)
        assert standin.counters.device_to_host == 1
    probe.find_gpu.cache_clear()
