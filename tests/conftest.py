"""Command line of the tests, the backend under test, and fresh random scenes."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

import gpuphot
from gpuphot.cupy_backend import probe

from .hostcuda import standin
from .hostcuda.conftest import REQUIRED
from .hostcuda.counts import (  # noqa: F401  hooks
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)
from .scenes import make_scene

FRESH_SEED = int(
    os.environ.get("GPUPHOT_TEST_SEED") or np.random.SeedSequence().generate_state(1)[0]
)
os.environ["GPUPHOT_TEST_SEED"] = str(FRESH_SEED)  # for pytest-xdist's workers

SEEDS = (1, FRESH_SEED)


def pytest_addoption(parser):
    parser.addoption(
        "--backend",
        choices=("numpy", "cupy"),
        help="the only backend to test, cupy on a real GPU; without it, both are tested, the "
        "kernels of cupy executed by the CPU",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """With pytest-xdist, run on all cores unless ``-n`` says otherwise; on a GPU, one process."""
    option = config.option
    if hasattr(config, "workerinput") or not config.pluginmanager.hasplugin("xdist"):
        return
    if option.numprocesses is None:
        option.numprocesses = 0 if option.backend == "cupy" else "logical"
    if option.numprocesses:
        for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
            os.environ.setdefault(name, "1")  # workers inherit it
        if option.dist == "no":
            option.dist = "worksteal"  # neighbouring tests share what they cache


def pytest_report_header(config):
    tested = config.getoption("--backend") or "numpy, and cupy with its kernels on the CPU"
    return f"gpuphot backend under test: {tested}; fresh seed: {FRESH_SEED}"


def pytest_generate_tests(metafunc):
    if "seed" in metafunc.fixturenames:
        seeds = (FRESH_SEED,) if metafunc.definition.get_closest_marker("fresh_seed") else SEEDS
        metafunc.parametrize("seed", seeds)
    marks = metafunc.definition.iter_markers("parametrize")
    if "backend" in metafunc.fixturenames and not any(m.args[0] == "backend" for m in marks):
        chosen = metafunc.config.getoption("--backend")
        metafunc.parametrize("backend", [chosen] if chosen else ["numpy", "cupy"], indirect=True)


@pytest.fixture
def backend(request):
    """Name of the backend under test; CuPy's stand-in is in place for "cupy" without a GPU."""
    if request.param == "numpy" or request.config.getoption("--backend"):
        yield request.param
        return
    if shutil.which("g++") is None:
        problem = "kernels run on the CPU only where there is g++"
        (pytest.fail if REQUIRED else pytest.skip)(problem)
    probe.find_gpu.cache_clear()
    with standin.installed():
        yield request.param
    probe.find_gpu.cache_clear()


@pytest.fixture
def ops(backend):
    """Primitives of the backend under test."""
    return gpuphot.resolve_backend(backend).primitives


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture
def scene(seed):
    """A crowded image of 240 x 300 pixels with everything that can go wrong in it."""
    return make_scene(seed)
