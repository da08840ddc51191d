"""Each tool finds the faults that it is for, and finds none in a correct kernel."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path

import numpy as np
import pytest

from . import nvrtc
from .build import HostModule
from .compiler import VARIANTS, CompilationError, has_fused_multiply_add
from .sanitized import run_sanitized

PLANTED = Path(__file__).parent / "planted"


@functools.cache
def source(stem):
    return f'#line 1 "{stem}.cu"\n' + (PLANTED / f"{stem}.cu").read_text()


def module(stem, variant="plain", schedule=("forward", 0)):
    made = HostModule(source(stem), variant=variant)
    made.schedule(*schedule)
    return made


def run(stem, name, *scalars, variant="plain", schedule=("forward", 0), grid=1, shared_mem=0):
    """Launch blocks of 64 threads with an array of 64 outputs; returns the module and the array."""
    made = module(stem, variant, schedule)
    out = np.zeros(64)
    made.function(name)((grid,), (64,), (out, *scalars), shared_mem)
    return made, out


SCHEDULES = [("forward", 0), ("reverse", 0), ("random", 1), ("random", 2)]


# ---- a correct kernel passes everything ----------------------------------------------------------


def run_chords(variant, schedule=("forward", 0)):
    """The correct kernel against NumPy."""
    made = module("correct", variant, schedule)
    n, r = 1000, 2.0
    values = np.random.default_rng(1).normal(0.0, 1.5, n)
    values[7] = r  # on the rim
    out = np.full(8, np.nan)
    above, last = np.zeros(1, np.int32), np.zeros(n, np.uint8)
    made.function("chords")((8,), (128,), (values, n, r, out, above, last), 128 * 8)
    padded = np.pad(values, (0, 24)).reshape(8, 128)
    chords = np.where(abs(padded) > r, 0.0, np.sqrt(np.fmax((r - padded) * (r + padded), 0.0)))
    np.testing.assert_allclose(out, chords.sum(axis=1), rtol=1e-14)
    assert above[0] == (abs(values) > r).sum()
    assert last.sum() == n // 32
    return made, out


@pytest.mark.parametrize("variant", ["plain", "contracted"])
def test_correct_kernel_gives_the_same_bits_in_every_order(variant):
    reference = run_chords(variant)[1]
    for schedule in SCHEDULES:
        np.testing.assert_array_equal(run_chords(variant, schedule)[1], reference)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_correct_kernel_has_no_races(schedule):
    assert run_chords("race", schedule)[0].races() == []


def test_correct_kernel_passes_the_sanitizers(sanitized_outcomes):
    outcome = sanitized_outcomes["chords", 0]
    assert outcome.passed, outcome.report
    assert outcome.report == ""


# ---- memory --------------------------------------------------------------------------------------

# Shared memory that the kernel gets, and what the sanitizers call the fault.
MEMORY_FAULTS = {
    "global_write": (0, "heap-buffer-overflow"),
    "global_read": (0, "heap-buffer-overflow"),
    "dynamic_shared": (64 * 8, "heap-buffer-overflow"),
    "static_shared": (0, "global-buffer-overflow|insufficient space for an object"),
    "integer_overflow": (0, "signed integer overflow"),
    "nan_to_integer": (0, "outside the range of representable values"),
}


def run_under_sanitizers(name, shift):
    if name == "chords":
        run_chords("sanitized")
        return
    arrays = (np.ones(64), np.zeros(64)) if name == "global_read" else (np.zeros(64),)
    function = module("memory", "sanitized").function(name)
    function((1,), (64,), (*arrays, shift), MEMORY_FAULTS[name][0])


@pytest.fixture(scope="module")
def sanitized_outcomes():
    calls = [(name, shift) for name in MEMORY_FAULTS for shift in (0, 1)] + [("chords", 0)]
    return dict(zip(calls, run_sanitized(__name__, "run_under_sanitizers", calls), strict=True))


@pytest.mark.parametrize("name", MEMORY_FAULTS)
def test_sanitizers_find_faults_in_memory(sanitized_outcomes, name):
    correct, faulty = sanitized_outcomes[name, 0], sanitized_outcomes[name, 1]
    assert correct.passed, correct.report
    assert not faulty.passed
    assert re.search(MEMORY_FAULTS[name][1], faulty.report)
    assert "memory.cu" in faulty.report  # the source and the line


def test_sanitized_kernels_are_refused_in_an_ordinary_process():
    with pytest.raises(RuntimeError, match="sanitizer_environment"):
        HostModule(source("memory"), variant="sanitized")


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_uninitialised_shared_memory_reads_as_nan(schedule):
    _, out = run("memory", "uninitialised_shared", 4, schedule=schedule, shared_mem=64 * 8)
    np.testing.assert_array_equal(np.isnan(out), np.arange(64) < 4)


def test_shared_memory_is_forgotten_between_blocks():
    made, out = module("memory"), np.zeros(64)
    for first in (0, 64):  # the first launch fills everything, the second nothing
        made.function("uninitialised_shared")((1,), (64,), (out, first), 64 * 8)
    assert np.isnan(out).all()


# ---- synchronisation -----------------------------------------------------------------------------

RACES = {
    "missing_barrier": "shared",
    "barrier_missing_before_overwriting": "shared",
    "shared_update": "shared",
    "global_update": "global",
    "vote_instead_of_syncwarp": "shared",
    "syncwarp_instead_of_barrier": "shared",
    "between_blocks": "global",
    "half_warp_too_small": "shared",
}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("name", RACES)
def test_race_detector_finds_missing_synchronisation_in_any_order(name, schedule):
    grid = 3 if name == "between_blocks" else 1
    made, _ = run("races", name, variant="race", schedule=schedule, grid=grid)
    found = made.races()
    assert found
    assert all(RACES[name] in race and "races.cu:" in race for race in found)
    assert made.races() == []  # told once


@pytest.mark.parametrize("name", ["half_warp", "floating_point_atomic"])
def test_race_detector_accepts_what_is_ordered(name):
    assert run("races", name, variant="race")[0].races() == []


def test_race_report_names_both_lines():
    made, _ = run("races", "missing_barrier", variant="race")
    lines = source("races").splitlines()  # the first is a #line directive: an index is a number
    write = lines.index("    staged[threadIdx.x] = threadIdx.x;")
    (found,) = made.races()
    assert found.count("races.cu:") == 2
    assert f"races.cu:{write}" in found
    assert f"races.cu:{write + 1}" in found


@pytest.mark.parametrize("name", ["missing_barrier", "barrier_missing_before_overwriting"])
def test_missing_barrier_gives_wrong_numbers(name):
    expected = {"missing_barrier": 63.0 - np.arange(64)}
    expected["barrier_missing_before_overwriting"] = 2 * expected["missing_barrier"] + 100.0
    for schedule in SCHEDULES:
        _, out = run("races", name, schedule=schedule)
        assert not np.array_equal(out, expected[name])


def test_floating_point_atomics_show_as_bits_that_depend_on_the_order():
    runs = [run("races", "floating_point_atomic", schedule=schedule) for schedule in SCHEDULES]
    sums = {out[0] for _, out in runs}
    assert len(sums) > 1
    assert max(sums) - min(sums) < 1e-14


WAITS = {
    "two_barriers": r"waits\.cu:\d+: divergent __syncthreads",
    "barrier_after_return": "returned",
    "barrier_for_some": "returned",
    "shuffle_after_return": "returned",
    "shuffle_for_some": "returned",
    "shuffle_against_barrier": "deadlock",
    "two_votes": "different warp functions",
    "not_in_own_mask": "not in its own mask",
}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("name", WAITS)
def test_waiting_for_who_never_comes_is_an_error(name, schedule):
    with pytest.raises(RuntimeError, match=WAITS[name]):
        run("waits", name, schedule=schedule)


@pytest.mark.parametrize("variant", ["plain", "race"])
def test_portable_switch_of_stacks_gives_the_same(variant, monkeypatch):
    reference = run_chords(variant)[1]
    machinery = (*VARIANTS[variant].machinery, "-DHOSTCUDA_UCONTEXT")
    portable = dataclasses.replace(VARIANTS[variant], machinery=machinery)
    monkeypatch.setitem(VARIANTS, variant, portable)
    for schedule in SCHEDULES:
        np.testing.assert_array_equal(run_chords(variant, schedule)[1], reference)


def test_module_works_on_after_a_failed_launch():
    with pytest.raises(RuntimeError):
        run("waits", "two_barriers")
    assert np.isnan(run("waits", "shuffle_from_outside")[1]).all()


# ---- contraction ---------------------------------------------------------------------------------


def half_chords(variant, name):
    r = np.random.default_rng(3).uniform(1.0, 20.0, 6400)
    naive, robust = np.zeros_like(r), np.zeros_like(r)
    module("contraction", variant).function(name)((100,), (64,), (r, naive, robust))
    return naive, robust


@pytest.mark.skipif(not has_fused_multiply_add(), reason="this CPU has no fused multiply-add")
@pytest.mark.parametrize("name", ["half_chord", "pixel_count"])
def test_contracted_build_shows_formulae_that_depend_on_contraction(name):
    plain, plain_robust = half_chords("plain", name)
    contracted, contracted_robust = half_chords("contracted", name)
    np.testing.assert_array_equal(plain_robust, contracted_robust)
    np.testing.assert_array_equal(plain, plain_robust)
    assert not np.array_equal(plain, contracted)
    if name == "half_chord":
        assert np.isnan(contracted).sum() > 1000
    else:
        assert (contracted != plain).sum() > 1000


# ---- arguments -----------------------------------------------------------------------------------

GOOD = {
    "values": np.arange(64.0),
    "factor": 2.0,
    "n": 64,
    "offset": 0,
    "done": np.zeros(64, np.uint8),
}


def scale(grid=(1,), block=(64,), shared_mem=512, **changes):
    arguments = {**GOOD, "done": np.zeros(64, np.uint8), **changes}
    function = module("arguments").function("scale")
    function(grid, block, tuple(arguments.values()), shared_mem)
    return arguments["done"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"factor": np.float64(2.0)},
        {"n": np.int32(64), "offset": np.int64(0)},
        {"block": (32, 2), "grid": (1, 1, 1)},
    ],
    ids=str,
)
def test_right_arguments_are_accepted(changes):
    done = scale(**changes)
    rows = 32 if "block" in changes else 64
    np.testing.assert_array_equal(done[:rows], 2 * np.arange(rows))


def test_none_is_a_null_pointer():
    assert not scale(values=None).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": np.arange(64)}, "argument 0 of scale: an array of float64 .* got int64"),
        ({"values": np.arange(64, dtype=np.float32)}, "got float32"),
        ({"values": np.arange(64, dtype=">f8")}, "got >f8"),
        ({"values": np.arange(128.0)[::2]}, "not contiguous"),
        ({"values": [1.0]}, "got list"),
        ({"done": np.zeros(64, bool)}, "an array of uint8 .* got bool"),
        ({"done": np.broadcast_to(np.uint8(0), 1)}, "read-only"),
        ({"factor": 2}, "float64 is wanted, got int"),
        ({"factor": np.float32(2.0)}, "got float32"),
        ({"n": 64.0}, "int32 is wanted, got float"),
        ({"n": np.float64(64.0)}, "got float64"),
        ({"n": np.int64(64)}, "got int64"),
        ({"n": True}, "got bool"),
        ({"n": 2**31}, "does not fit int32"),
        ({"n": np.arange(1)}, "got ndarray"),
        ({"offset": np.int32(0)}, "int64 is wanted, got int32"),
        ({"one_more": 1}, "takes 5 arguments, got 6"),
    ],
    ids=str,
)
def test_wrong_arguments_are_a_type_error(changes, message):
    with pytest.raises(TypeError, match=message):
        scale(**changes)


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        ({"block": (65,)}, "65 threads, __launch_bounds__ says 64"),
        ({"block": (1025,)}, "at most 1024 threads"),
        ({"block": (0,)}, "invalid block"),
        ({"grid": (0,)}, "invalid grid"),
        ({"grid": (1, 65536)}, "invalid grid"),
        ({"shared_mem": 49153}, "49153 bytes of shared memory"),
    ],
    ids=str,
)
def test_launch_beyond_a_limit_is_refused(launch, message):
    with pytest.raises(RuntimeError, match=message):
        scale(**launch)


def test_source_that_is_not_cuda_is_refused():
    with pytest.raises(CompilationError, match=r"kernel\.cu:1"):
        HostModule('#line 1 "kernel.cu"\nextern "C" __global__ void f(int* a) { *a = nonsense; }')


@pytest.mark.parametrize("name", ["double", "long long"])
def test_atomic_of_a_type_that_cuda_lacks_is_refused(name):
    body = f"{{ atomic{'Min' if name == 'double' else 'Add'}(a, 1); }}"
    with pytest.raises(CompilationError, match="does not exist for this type"):
        HostModule(f'extern "C" __global__ void f({name}* a) {body}')


# ---- compilation for GPUs ------------------------------------------------------------------------


@pytest.fixture(params=[12, 13])
def compiler(request):
    for found in nvrtc.installed():
        if found.version[0] == request.param:
            return found
    pytest.skip(f"NVRTC {request.param} is not installed")


def usages(compiler, stem, arch):
    found = compiler.compile(source(stem), f"{stem}.cu", arch, ("--std=c++17", "--fmad=false"))
    return {usage.name: usage for usage in found}


@pytest.mark.parametrize("arch", [75, 90, 120])
@pytest.mark.parametrize("name", ["indexed_array", "indexed_array_in_a_function"])
def test_nvrtc_shows_the_stack_frame_of_an_indexed_array(compiler, arch, name):
    usage = usages(compiler, "compiled", arch)[name]
    assert usage.stack == 16 * 8
    assert usage.spill_stores == usage.spill_loads == 0


@pytest.mark.parametrize("arch", [75, 90, 120])
def test_nvrtc_shows_spills_and_registers(compiler, arch):
    found = usages(compiler, "compiled", arch)
    assert found["spilling"].spill_stores > 0
    assert found["spilling"].spill_loads > 0
    assert found["many_registers"].spill_stores == 0
    assert found["many_registers"].registers > 48


@pytest.mark.parametrize("arch", [75, 90, 120])
def test_nvrtc_accepts_the_correct_kernel(compiler, arch):
    usage = usages(compiler, "correct", arch)["chords"]
    assert usage.stack == usage.spill_stores == usage.spill_loads == 0
    assert 0 < usage.registers <= 40
    assert usage.shared == 4 * 8


def test_nvrtc_refuses_what_only_a_host_compiler_knows(compiler):
    code = 'extern "C" __global__ void f(double* a) { *a = M_PI; }'
    with pytest.raises(nvrtc.NvrtcError, match="M_PI"):
        compiler.compile(code, "kernel.cu", 75, ())
