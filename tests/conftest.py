"""Command line of the tests, the backend under test, and fresh random scenes."""

from __future__ import annotations

import os

import numpy as np
import pytest

import gpuphot

from .scenes import make_scene

FRESH_SEED = int(
    os.environ.get("GPUPHOT_TEST_SEED") or np.random.SeedSequence().generate_state(1)[0]
)


SEEDS = (1, 2, 3, FRESH_SEED)


def pytest_addoption(parser):
    parser.addoption(
        "--backend", default="numpy", choices=("numpy", "cupy"), help="backend under test"
    )


def pytest_report_header(config):
    return f"gpuphot backend under test: {config.getoption('--backend')}; fresh seed: {FRESH_SEED}"


def pytest_generate_tests(metafunc):
    if "seed" in metafunc.fixturenames:
        seeds = (FRESH_SEED,) if metafunc.definition.get_closest_marker("fresh_seed") else SEEDS
        metafunc.parametrize("seed", seeds)


@pytest.fixture(scope="session")
def backend(request):
    """Name of the backend under test."""
    return request.config.getoption("--backend")


@pytest.fixture(scope="session")
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
