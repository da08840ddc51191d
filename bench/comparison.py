"""Side-by-side benchmark of `gpuphot.measure_objects`: agreement first, then times, then a report.

A script lists its rows and calls `main`; nothing here knows which algorithm is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

import gpuphot

from . import harness
from .harness import Seconds
from .references import stdpipe_measure
from .workloads import SIZES, Workload, build

AGREEMENT = 1e-9
AGREEMENT_SOURCES = 2000
REFERENCE_NAMES = ("stdpipe", "photutils", "sep_x")
STDPIPE_CALL = "photometry_measure.measure_objects(same arguments)"
Measure = Callable[[Workload, NDArray[np.intp]], Any]


@dataclass(frozen=True)
class Reference:
    """The nearest equivalent of a row in another package.

    Attributes
    ----------
    called : str
        Which functions of the package that is.
    measure : callable
        Takes the workload and the rows of its table to measure, returns their fluxes.
    """

    called: str
    measure: Callable[[Workload, NDArray[np.intp]], NDArray]


@dataclass(frozen=True)
class Row:
    """One way to call `measure_objects`, and its equivalents elsewhere.

    Attributes
    ----------
    key, title : str
    options : dict
        Arguments of `measure_objects`, of types that JSON has.
    maps_given : bool
        Hand over background and noise map; else they are estimated in the call.
    references : dict of str to Reference
        By package; stdpipe is always there.
    """

    key: str
    title: str
    options: dict[str, Any]
    maps_given: bool = True
    references: dict[str, Reference] = field(default_factory=dict)


def main(benchmark: str, rows: Sequence[Row]) -> None:
    """Run a benchmark from the command line."""
    arguments = _parser(benchmark, [row.key for row in rows]).parse_args()
    rows = [row for row in rows if row.key in arguments.rows]
    try:
        report = {"benchmark": benchmark, **harness.circumstances(arguments.backend)}
    except gpuphot.BackendError as error:
        raise SystemExit(str(error)) from None
    report["called"] = {
        row.key: {name: reference.called for name, reference in row.references.items()}
        for row in rows
    }
    report["results"], report["memory"] = [], {}
    for name in arguments.workloads:
        _progress(f"{name}: peak memory")
        report["memory"][name] = harness.peak_memory_of_gpuphot(
            name,
            arguments.backend,
            {row.key: {"options": row.options, "maps_given": row.maps_given} for row in rows},
        )
        workload = build(name)
        for row in rows:
            report["results"].append(_run(workload, row, arguments))
    print(_as_markdown(report, rows))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def _parser(benchmark: str, keys: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m bench.{benchmark}",
        description="Time gpuphot.measure_objects next to stdpipe, photutils and sep_x.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--workloads", nargs="+", choices=SIZES, default=["S", "M"])
    parser.add_argument("--rows", nargs="+", choices=keys, default=keys)
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of gpuphot")
    parser.add_argument(
        "--reference-repeats",
        type=int,
        help="timed calls of each reference; None: 3, above 10000 sources 2",
    )
    parser.add_argument(
        "--reference-sources",
        type=int,
        default=100_000,
        help="with background and noise map given, a reference measures no more than this and "
        "its time per source is scaled",
    )
    parser.add_argument("--backend", default="numpy", help="of gpuphot")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    return parser


def _run(workload: Workload, row: Row, arguments: argparse.Namespace) -> dict[str, Any]:
    """Check and time one row on one workload."""
    label = f"{workload.name}: {row.title}"
    _progress(f"{label}: agreement")
    options = workload.arguments(row.options, row.maps_given)
    ours = partial(
        gpuphot.measure_objects,
        workload.table,
        workload.image,
        **options,
        backend=arguments.backend,
    )
    others: dict[str, Measure] = {
        name: reference.measure for name, reference in row.references.items()
    }
    stdpipe: Measure = partial(stdpipe_measure, arguments=options)
    # These calls are the warm-up, too.
    checked = workload.sample(AGREEMENT_SOURCES)
    measured = ours()[checked]
    agreement = _agreement(label, measured, stdpipe(workload, checked))
    for name, measure in others.items():
        agreement[name] = _typical_difference(measured, measure(workload, checked))

    _progress(f"{label}: times")
    n = len(workload.table)
    # Where a reference estimates the background, that takes most of the time, and differences of
    # such times are too noisy to be scaled.
    sources = workload.sample(min(n, arguments.reference_sources) if row.maps_given else n)
    calls: dict[str, Callable[[], Seconds]] = {"gpuphot": partial(harness.timed, ours)}
    for name, measure in {"stdpipe": stdpipe, **others}.items():
        calls[name] = partial(_timed_reference, measure, workload, sources)
    repeats = dict.fromkeys(calls, arguments.reference_repeats or (3 if n <= 10_000 else 2))
    repeats["gpuphot"] = arguments.repeats
    summaries = {
        name: harness.summary(runs) for name, runs in harness.interleaved(calls, repeats).items()
    }
    return _result(workload.name, row.key, n, len(sources), agreement, summaries)


def _result(
    workload: str,
    key: str,
    n: int,
    n_timed: int,
    agreement: dict[str, Any],
    summaries: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """One row of the report."""
    for item in summaries.values():
        item["sources_per_cpu_s"] = n / item["cpu_s"]["median"]
    ours = summaries.pop("gpuphot")
    for item in summaries.values():
        item["ratio"] = item["cpu_s"]["median"] / ours["cpu_s"]["median"]
    return {
        "workload": workload,
        "row": key,
        "sources": n,
        "reference_sources": n_timed,
        "agreement": agreement,
        "gpuphot": ours,
        "references": summaries,
    }


def _timed_reference(measure: Measure, workload: Workload, sources: NDArray[np.intp]) -> Seconds:
    """Time of a reference for all sources of the workload.

    If it measures only some of them, what it takes beyond a call with one source, and nothing
    else, is scaled: the cost of the image stays what it is.
    """
    seconds = harness.timed(partial(measure, workload, sources))
    n = len(workload.table)
    if len(sources) == n:
        return seconds
    image_only = harness.timed(partial(measure, workload, sources[:1]))
    return seconds.extended(image_only, (n - 1) / (len(sources) - 1))


def _agreement(label: str, ours: Table, theirs: Table) -> dict[str, Any]:
    """Largest relative differences to stdpipe; ends the benchmark if one is too large."""
    flux, fluxerr = np.asarray(theirs["flux"]), np.asarray(theirs["fluxerr"])
    unit = {"flux": np.maximum(np.abs(flux), fluxerr), "fluxerr": fluxerr}
    differences = {}
    for name, scale in unit.items():
        relative = np.abs(np.asarray(ours[name]) - np.asarray(theirs[name])) / scale
        worst = int(np.argmax(np.where(np.isfinite(relative), relative, np.inf)))
        differences[name] = float(relative[worst])
        if not relative[worst] <= AGREEMENT:
            raise SystemExit(
                f"{label}: gpuphot and stdpipe disagree, nothing is timed: {name} differs by "
                f"{relative[worst]:.2g} at x={ours['x'][worst]:.3f}, y={ours['y'][worst]:.3f}: "
                f"{ours[name][worst]!r} and {theirs[name][worst]!r}; {AGREEMENT} is allowed"
            )
    if not np.array_equal(ours["flags"], theirs["flags"]):
        raise SystemExit(f"{label}: gpuphot and stdpipe set different flags, nothing is timed")
    return {"stdpipe": differences}


def _typical_difference(ours: Table, flux: NDArray) -> float:
    """Median difference of fluxes in units of their error: is it the same measurement at all?"""
    return float(np.median(np.abs(flux - ours["flux"]) / ours["fluxerr"]))


def _as_markdown(report: dict[str, Any], rows: Sequence[Row]) -> str:
    titles = {row.key: row.title for row in rows}
    parts = [
        _machine_lines(report),
        _time_table(report, titles),
        _notes(report, titles),
        "Microseconds of CPU per source, everything included:",
        _cost_table(report, titles),
        "Peak resident memory of a process that makes one call of gpuphot, GB:",
        _memory_table(report, titles),
    ]
    return "\n\n".join(parts)


def _machine_lines(report: dict[str, Any]) -> str:
    machine = report["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    threads = ", ".join(f"{name}={value}" for name, value in report["threads"].items())
    return (
        f"`{report['command']}`, {report['date'][:10]}, backend {report['backend']['name']}; "
        f"{machine['cpu']}, {machine['cores']} cores, {machine['ram_bytes'] / 1e9:.0f} GB, "
        f"{machine['os']}, load {machine['load_1min_at_start']:.1f}, {threads}; {versions}."
    )


def _time_table(report: dict[str, Any], titles: dict[str, str]) -> str:
    head = ["workload", "row", "gpuphot CPU s", "min..max", "wall s", "sources/s"]
    for name in REFERENCE_NAMES:
        head += [f"{name} CPU s", "ratio"]
    lines = []
    for result in report["results"]:
        ours = result["gpuphot"]
        cpu = ours["cpu_s"]
        line = [
            result["workload"],
            titles[result["row"]],
            _figure(cpu["median"]),
            f"{_figure(cpu['min'])}..{_figure(cpu['max'])}",
            _figure(ours["wall_s"]["median"]),
            f"{float(format(ours['sources_per_cpu_s'], '.3g')):,.0f}",
        ]
        for name in REFERENCE_NAMES:
            mark = "~" if result["reference_sources"] < result["sources"] else ""
            line += _reference_cells(result["references"].get(name), mark)
        lines.append(line)
    return harness.markdown_table(head, lines, n_text=2)


def _reference_cells(reference: dict[str, Any] | None, mark: str) -> list[str]:
    if reference is None:
        return ["", ""]
    seconds, ratio = reference["cpu_s"]["median"], reference["ratio"]
    return [f"{mark}{_figure(seconds)}", f"{mark}{_figure(ratio)}x"]


def _notes(report: dict[str, Any], titles: dict[str, str]) -> str:
    results = report["results"]
    worst = max(max(result["agreement"]["stdpipe"].values()) for result in results)
    lines = [
        f"- stdpipe: {STDPIPE_CALL}. Largest relative difference of a flux or error: {worst:.1e}."
    ]
    for key, title in titles.items():
        for name, called in report["called"][key].items():
            differences = [r["agreement"][name] for r in results if r["row"] == key]
            lines.append(
                f"- {title}, {name}: {called}. Fluxes differ by {max(differences):.1g} of their "
                "error (median)."
            )
    scaled = {
        f"- ~ at {r['workload']}: only {r['reference_sources']} of {r['sources']} sources were "
        "measured. The time beyond a call with one source is scaled per source, that of this "
        "call is not."
        for r in results
        if r["reference_sources"] < r["sources"]
    }
    lines += sorted(scaled)
    return "Called, and checked against gpuphot:\n\n" + "\n".join(lines)


def _cost_table(report: dict[str, Any], titles: dict[str, str]) -> str:
    names = list(report["memory"])
    cost = {
        (result["row"], result["workload"]): 1e6 / result["gpuphot"]["sources_per_cpu_s"]
        for result in report["results"]
    }
    lines = [
        [title, *(_figure(cost[key, name]) for name in names)] for key, title in titles.items()
    ]
    return harness.markdown_table(["row", *names], lines, n_text=1)


def _memory_table(report: dict[str, Any], titles: dict[str, str]) -> str:
    memory = report["memory"]
    before = [next(iter(peaks.values()))["before_bytes"] for peaks in memory.values()]
    lines = [["before the call, inputs included", *(f"{value / 1e9:.2f}" for value in before)]]
    for key, title in titles.items():
        peaks = [memory[name][key]["peak_bytes"] for name in memory]
        lines.append([title, *(f"{value / 1e9:.2f}" for value in peaks)])
    return harness.markdown_table(["row", *memory], lines, n_text=1)


def _figure(value: float) -> str:
    """Three significant digits, without exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
