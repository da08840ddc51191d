"""Every kernel of the registry compiles for real GPUs, within its budget and in registers only."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpuphot.cupy_backend.kernels import registry

from . import nvrtc
from .compiler import find_kernels
from .counts import compiled

# Volta left with NVRTC 13.
ARCHITECTURES = {12: (70, 75, 80, 90, 100, 120), 13: (75, 80, 90, 100, 120)}
SHARED_LIMIT = 48 * 1024  # of a block, static and dynamic, without asking for more


def kernels_of(file):
    return {name: kernel for name, kernel in registry.KERNELS.items() if kernel.file == file}


def compile_everything(compiler):
    for file in registry.FILES:
        for arch in ARCHITECTURES.get(compiler.version[0], ()):
            with contextlib.suppress(nvrtc.NvrtcError):  # a test will tell
                compiler.compile(registry.source(file), file, arch, registry.OPTIONS)


@pytest.fixture(scope="module")
def filled_cache():
    """Compilers lock themselves, but two of them work at the same time."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(compile_everything, nvrtc.installed()))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def compiler(request, filled_cache):
    for found in nvrtc.installed():
        if found.version[0] == request.param:
            return found
    pytest.skip(f"NVRTC {request.param} is not installed")


def test_every_source_file_is_registered():
    assert set(registry.FILES) == {path.name for path in registry.FOLDER.glob("*.cu")}


@pytest.mark.parametrize("file", registry.FILES)
def test_every_kernel_is_registered_with_the_block_of_its_launch_bounds(file):
    blocks = {name: kernel.block for name, kernel in kernels_of(file).items()}
    assert find_kernels(registry.source(file)) == blocks
    assert registry.source(file).count("__global__") == len(blocks)


@pytest.mark.parametrize("file", registry.FILES)
def test_kernels_stay_within_their_budget_on_every_architecture(compiler, file):
    for arch in ARCHITECTURES[compiler.version[0]]:
        usages = compiler.compile(registry.source(file), file, arch, registry.OPTIONS)
        assert {usage.name for usage in usages} == set(kernels_of(file))
        for usage in usages:
            kernel = registry.KERNELS[usage.name]
            assert (usage.spill_stores, usage.spill_loads) == (0, 0), usage
            assert usage.stack == 0, usage
            assert 0 < usage.registers <= kernel.max_registers, usage
            assert usage.shared + kernel.max_shared <= SHARED_LIMIT, usage
            compiled[repr(compiler), arch].add(usage.name)
