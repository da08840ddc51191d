"""The GPU benchmark and ``gpuphot info --compile`` run; what they print here is no measurement."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time

import numpy as np
import pytest

from bench import gpu, static
from bench.traffic import (
    WORK,
    Case,
    disk_pixels,
    group_pixels,
    padded,
    rim_pixels,
    ring_pixels,
    sampled_pixels,
)
from bench.workloads import MARGIN, make
from gpuphot import cli
from gpuphot.cupy_backend import probe
from gpuphot.cupy_backend.kernels.registry import FILES, KERNELS
from gpuphot.measure.inputs import make_positions
from gpuphot.models.psf import PSFModel
from gpuphot.numpy_backend.neighbours import link_groups

from . import nvrtc, standin

pytest.importorskip("sep_x")

TINY = [
    "--repeats=1", "--numpy-repeats=1", "--side=128", "--sources=120", "--stamp=7",
    "--whole-side=128", "--whole-sources=5", "--crossover-sides=96", "--counts", "2", "4",
    "--copy-bytes=4096", "--rounds=1", "--launches=1",
]  # fmt: skip


class Event:
    """A mark on the host's clock: the stand-in has no other."""

    def record(self):
        self.time = time.perf_counter()

    def synchronize(self):
        pass


@pytest.fixture
def stand_in(monkeypatch):
    """A stand-in for CuPy with a clock."""
    if shutil.which("g++") is None:
        pytest.skip("kernels run on the CPU only where there is g++")
    probe.find_gpu.cache_clear()
    with standin.installed() as cupy:
        elapsed = lambda start, stop: 1000 * (stop.time - start.time) + 1e-6  # noqa: E731
        monkeypatch.setattr(cupy.cuda, "Event", Event)
        monkeypatch.setattr(cupy.cuda, "get_elapsed_time", elapsed, raising=False)
        monkeypatch.setattr(sys.modules["cupyx"], "empty_pinned", np.empty, raising=False)
        yield
    probe.find_gpu.cache_clear()


def run_benchmark(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["bench/gpu.py", *TINY, *map(str, arguments)])
    monkeypatch.setattr(gpu, "FIT", dataclasses.replace(gpu.FIT, maxiter=1))
    gpu.main()


def test_benchmark_of_a_gpu_runs(stand_in, monkeypatch, tmp_path, capsys):
    # A large group has to be all of so small a field.
    rows = [dataclasses.replace(row, share=1.0) if row.dense else row for row in gpu.ROWS]
    monkeypatch.setattr(gpu, "ROWS", rows)
    run_benchmark(monkeypatch, "--json", tmp_path / "gpu.json")
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "gpu.json").read_text())
    launched = {row["row"]: set(row["by_kernel_s"]) for row in report["kernels"]}
    assert launched == {
        row.key: {name.partition("/")[0] for name in row.kernels} for row in gpu.ROWS
    }
    assert set().union(*launched.values()) == set(KERNELS)
    assert {row["arrays"] for row in report["whole"]} == {"device", "host"}
    assert len(report["crossover"]) == 4
    assert report["gpu"]["name"] == "stand-in for a GPU"
    assert all(row.title in printed for row in (*gpu.ROWS, *gpu.WHOLE_ROWS))


def test_benchmark_times_nothing_if_the_backends_disagree(stand_in, monkeypatch):
    name_length = lambda on: {"n": on.ops.xp.ones(1) * len(on.ops.__name__)}  # noqa: E731
    row = gpu.Row("x", "x", ["aperture_sums"], name_length)
    monkeypatch.setattr(gpu, "ROWS", (row,))
    with pytest.raises(SystemExit, match="x: the backends disagree, nothing more is timed"):
        run_benchmark(monkeypatch, "--parts", "kernels")


def fits(n, n_unlike=0, **difference):
    results = {name: np.full(n, 5.0) for name in ("flux", "fluxerr", "x", "y")}
    results["flag"] = np.zeros(n, int)
    for name, value in difference.items():
        results[name][:n_unlike] += value
    return results


@pytest.mark.parametrize(
    "difference", [{"flux": 0.06}, {"fluxerr": 0.06}, {"x": 0.02}, {"y": np.nan}, {"flag": 1}]
)
def test_a_hundredth_of_all_fits_may_be_unlike(difference):
    few, many = fits(1000, 9, **difference), fits(1000, 11, **difference)
    assert gpu.OF_FITS.check("fits", few, fits(1000), None) == 0
    with pytest.raises(SystemExit, match=f"fits: .*: {next(iter(difference))} by"):
        gpu.OF_FITS.check("fits", many, fits(1000), None)


def test_fits_are_compared_in_errors_and_pixels():
    found = fits(10, 10, flux=0.04, x=0.005)
    assert gpu.OF_FITS.check("fits", found, fits(10), None) == pytest.approx(0.04 / 5)


def test_benchmark_without_groups_ends_with_a_sentence(stand_in, monkeypatch):
    monkeypatch.setattr(gpu, "ROWS", [row for row in gpu.ROWS if row.key == "grouped"])
    with pytest.raises(SystemExit, match="no sources are linked: --sources or --link-radius must"):
        run_benchmark(monkeypatch, "--parts", "kernels", "--sources=2", "--link-radius=0.01")


def test_sources_that_are_checked_have_groups():
    workload = make("dense", 2048, 50_000)
    rows = gpu._checked_sources(workload)
    assert len(rows) <= gpu.AGREEMENT_SOURCES
    x, y = (np.asarray(workload.table[name])[rows] for name in ("x", "y"))
    assert min(np.ptp(x), np.ptp(y)) > 0.9 * (2048 - 2 * MARGIN)
    groups = link_groups(make_positions(x, y, np.ones(len(x), bool), np), 3.0)
    assert np.count_nonzero(groups.size > 1) > 0.3 * len(x)


def test_models_are_given_to_whole_calls_that_ask_for_them():
    psf = PSFModel.gaussian(2.0)
    given = {row.key: row.with_psf(psf).options.get("psf") for row in gpu.WHOLE_ROWS}
    asking = {"grouped-model", "sep-fit", "sep-fit-grouped", "deblended"}
    assert given == {key: psf if key in asking else None for key in given}


def test_benchmark_without_a_gpu_ends_with_a_sentence(monkeypatch):
    monkeypatch.setattr(probe, "find_gpu", lambda: probe.Gpu(None, "There is no GPU."))
    with pytest.raises(SystemExit, match=r"There is no GPU\."):
        run_benchmark(monkeypatch)


def test_info_compiles_all_kernels(stand_in, capsys):
    assert cli.main(["info", "--compile"]) == 0
    words = capsys.readouterr().out.split()
    assert words[:2] == [str(len(KERNELS)), "kernels"]
    assert all(name in words for name in (*KERNELS, *FILES))


@pytest.mark.parametrize(
    ("times", "least"),
    [
        ([(10, 2, 1), (20, 1, 2), (30, 1, 3)], 20),
        ([(10, 1, 2), (20, 2, 1), (30, 1, 3)], 30),
        ([(10, 1, 2), (20, 1, 3)], 10),
        ([(10, 1, 2), (20, 3, 3)], None),
    ],
)
def test_crossover_is_where_the_gpu_begins_to_win_for_good(times, least):
    rows = [
        {"sources": n, "cupy_wall_s": {"median": cupy}, "numpy_wall_s": {"median": numpy}}
        for n, cupy, numpy in times
    ]
    assert gpu.crossover(rows) == least


# What is counted by hand


def test_every_kernel_is_counted():
    assert set(KERNELS) <= set(WORK)


@pytest.mark.parametrize("r", [1.3, 5.0])
def test_counts_of_pixels_are_right_on_average(r):
    rng = np.random.default_rng(1)
    pixel = np.arange(-8, 9)
    sample = np.arange(-2, 3) / 5
    touched = crossed = centred = sampled = 0
    for x, y in rng.uniform(-0.5, 0.5, (2000, 2)):
        dx, dy = np.abs(pixel - x), np.abs(pixel - y)[:, None]
        near = np.hypot(np.maximum(dx - 0.5, 0), np.maximum(dy - 0.5, 0)) < r
        inside = np.hypot(dx + 0.5, dy + 0.5) <= r
        touched, crossed = touched + near.sum(), crossed + (near & ~inside).sum()
        centred += (np.hypot(dx, dy) < r).sum()
        nearest_x, nearest_y = (np.abs(d[..., None] - sample).min(axis=-1) for d in (dx, dy))
        sampled += (np.hypot(nearest_x, nearest_y) < r).sum()
    assert touched / 2000 == pytest.approx(disk_pixels(r), rel=0.01)
    assert crossed / 2000 == pytest.approx(rim_pixels(r), rel=0.03)
    assert centred / 2000 == pytest.approx(ring_pixels((0, r)), rel=0.01)
    assert sampled / 2000 == pytest.approx(sampled_pixels(r), rel=0.03)


def test_least_bytes_count_shared_pixels_once():
    case = Case(n_sources=200, side=64)
    work = WORK["com_centroid"](case)
    rng = np.random.default_rng(1)
    image = np.zeros((64, 64), bool)
    for row, column in rng.integers(0, 64, (200, 2)):
        box = np.arange(5)
        image[np.ix_((row + box) % 64, (column + box) % 64)] = True
    expected = image.sum() * work.bytes_per_pixel + 200 * work.own_bytes
    assert work.least_bytes(case) == pytest.approx(expected, rel=0.05)


@pytest.fixture(scope="module")
def example():
    """Positions as dense as in the example, and their groups."""
    n = 60_000
    x, y = np.random.default_rng(1).uniform(0, np.sqrt(n / Case().density), (2, n))
    pos = make_positions(x, y, np.ones(n, bool), np)
    return pos, link_groups(pos, Case().link_radius / 2)


def test_groups_of_the_example_are_those_of_a_field_at_random(example):
    case, (_, groups) = Case(), example
    found = case.with_groups(groups.size)
    assert found.n_members / len(groups.size) == pytest.approx(
        case.n_members / case.n_sources, rel=0.02
    )
    for name in ("neighbours", "system", "core"):
        assert getattr(found, name) == pytest.approx(getattr(case, name), rel=0.1)


def test_pixels_of_groups_are_about_right(example):
    case, (pos, groups) = Case(), example
    half = case.gaussian_stamp // 2
    offset = np.indices((2 * half + 1, 2 * half + 1)).reshape(2, -1) - half
    counts = []
    for k in np.flatnonzero(groups.size > 1)[:500]:
        i = np.flatnonzero(groups.id == groups.id[k])
        row, column = np.rint([pos.y[k], pos.x[k]])[:, None] + offset
        distance = np.hypot(row[:, None] - pos.y[i], column[:, None] - pos.x[i])
        counts.append(np.count_nonzero(distance.min(axis=1) <= case.clip))
    assert group_pixels(case) == pytest.approx(np.mean(counts), rel=0.3)


def test_large_groups_are_solved_in_blocks():
    case = Case(n_sources=10_000, side=500).with_groups(np.full(10_000, 10_000))
    assert case.n_members == 10_000
    assert case.core == pytest.approx(0.04 * 32**2)
    assert case.system == pytest.approx(0.04 * (32 + 2 * 32) ** 2)
    assert case.neighbours == pytest.approx(0.04 * 37**2)


def test_large_groups_are_fitted_in_blocks():
    sizes, n_iter = np.full(10_000, 10_000), np.full(10_000, 7)
    sizes[:100], n_iter[:100] = 1, 3
    case = Case(n_sources=10_000, side=500).with_fits(sizes, n_iter)
    assert (case.n_members, case.passes, case.group_passes) == (9900, 3, 7)
    assert case.core == pytest.approx(0.04 * 16**2)
    assert case.system == 64
    assert WORK["sep_fit_sources/single"](case).n_units(case) == 100


def test_annuli_that_shared_memory_does_not_hold_are_left_to_another_kernel():
    case = Case(annulus=(30.0, 50.0))
    for name in ("sep_annulus_median", "sep_annulus_means"):
        assert WORK[name](case).operations == 0
        assert WORK[f"{name}_streaming"](case).operations > 0


def test_members_of_groups_are_counted_apart_from_sources():
    case = Case(n_sources=100, side=64, n_members=30)
    work = WORK["group_totals"](case)
    assert work.least_bytes(case) == 30 * work.own_bytes


def test_cut_stamps_are_stored_in_part():
    whole, cut = (WORK["psf_stamps"](Case(cut_stamps=cut)) for cut in (False, True))
    assert whole.own_bytes - cut.own_bytes == 8 * (25**2 - 7**2)
    assert whole.shared == cut.shared


def test_shared_memory_is_counted_as_it_is_asked_for(stand_in, monkeypatch):
    from bench import device  # Needs CuPy

    asked = {}

    def note(clock, name, n_blocks, arguments, shared=0):
        asked[name] = shared
        clock._launch(name, n_blocks, arguments, shared)

    monkeypatch.setattr(device.KernelClock, "launch", note)
    case = Case(n_sources=40, side=128)
    on = gpu.prepare("cupy", make("small", 128, 40), np.arange(40), case)
    with device.kernel_clock():
        for row in gpu.ROWS:
            if not row.changes:
                row.run(row.prepared(on))
    assert {"aperture_sums", "psf_stamps", "psf_centroid", "gaussian_centroid"} <= set(asked)
    assert asked == {name: WORK[name](case).shared for name in asked}


@pytest.mark.parametrize(("n", "expected"), [(1, 1), (2.9, 2), (64, 64), (65.5, 128)])
def test_samples_are_padded_to_a_power_of_two(n, expected):
    assert padded(n) == expected


@pytest.mark.parametrize(
    ("registers", "shared", "block", "expected"),
    [
        (32, 0, 128, 1.0),
        (64, 0, 256, 0.5),
        (255, 0, 128, 0.125),
        (33, 0, 256, 0.75),  # 40 registers are handed out
        (32, 0, 32, 0.5),  # 32 blocks are all there may be
        (32, 46 * 1024, 128, 0.25),
        (32, 47 * 1024, 128, 0.25),  # with what is reserved
        (32, 57 * 1024, 128, 0.1875),
    ],
)
def test_occupancy_is_that_of_nvidias_calculator(registers, shared, block, expected):
    assert static.occupancy(registers, shared, block) == expected


def test_static_report_has_every_kernel():
    if not nvrtc.installed():
        pytest.skip("NVRTC is not installed")
    report = static.report(Case())
    assert all(f"| {name} " in report for name in KERNELS)
