"""Side-by-side benchmark of a function of gpuphot: agreement first, then times, then a report.

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
from numpy.typing import NDArray

import gpuphot

from . import agreement, calls, harness
from .harness import Seconds
from .references import stdpipe_measure
from .report import as_markdown
from .workloads import SIZES, Workload

AGREEMENT_SOURCES = 2000
LARGEST_GROUP = 500
"""stdpipe's design matrix of such a group has members x pixels elements, and it makes several."""
Measure = Callable[[Workload], Any]


@dataclass(frozen=True)
class Reference:
    """The nearest equivalent of a row in another package.

    Attributes
    ----------
    called : str
        Which functions of the package that is.
    measure : callable
        Takes a workload, returns the fluxes of its sources, or what is compared instead.
    """

    called: str
    measure: Measure


@dataclass(frozen=True)
class Row:
    """One way to call a function, and its equivalents elsewhere.

    Attributes
    ----------
    key, title : str
    options : dict
        Arguments of the function, of types that JSON has.
    maps_given : bool
        Hand over background and noise map; else they are estimated in the call.
    psf_given : bool
        Hand over the workload's PSF model.
    grouped : bool
        Neighbours are measured together: to measure part of the sources, a reference needs all
        of those in part of the image.
    corner : bool
        It needs them for another reason.
    link : float or None
        Pixels up to which the function links sources, if its table has no column for groups.
    function : str
        Of gpuphot, as `calls` calls it.
    references : dict of str to Reference
        By package; for stdpipe by default its function of the same name.
    check : callable or None
        Takes a label, what gpuphot and what stdpipe return, and ends the benchmark if these differ
        too much; returns the largest differences. By default, tables are compared by columns.
    """

    key: str
    title: str
    options: dict[str, Any] = field(default_factory=dict)
    maps_given: bool = True
    psf_given: bool = False
    grouped: bool = False
    corner: bool = False
    link: float | None = None
    function: str = "measure_objects"
    references: dict[str, Reference] = field(default_factory=dict)
    check: Callable[[str, Any, Any], dict[str, float]] | None = None

    def call(self) -> dict[str, Any]:
        """What `Workload.arguments` takes."""
        return {
            "options": self.options, "maps_given": self.maps_given, "psf_given": self.psf_given
        }  # fmt: skip

    def measure(self, workload: Workload, backend: str) -> Any:
        """The call itself."""
        return getattr(calls, self.function)(workload, backend, **self.call())

    @property
    def in_corner(self) -> bool:
        """Whether part of the sources are those of a corner of the image."""
        return self.grouped or self.corner

    def measured_by(self) -> dict[str, Reference]:
        """What measures the same, by package."""
        same = Reference(
            f"photometry_measure.{self.function}(same arguments)",
            partial(stdpipe_measure, function=self.function, row=self.call()),
        )
        return {"stdpipe": same, **self.references}

    def compare(self, label: str, ours: Any, theirs: Any) -> dict[str, float]:
        """Largest differences from stdpipe; ends the benchmark if they are too large."""
        if self.check is None:
            return agreement.check(label, ours, theirs, self.link)
        return self.check(label, ours, theirs)


@dataclass(frozen=True)
class Part:
    """What a reference is to measure: some rows of a workload, as a workload of their own."""

    rows: NDArray[np.intp]
    workload: Workload


def main(benchmark: str, rows: Sequence[Row], fluxes_given: bool = False) -> None:
    """Run a benchmark from the command line; its calls may need fluxes of the stars."""
    arguments = _parser(benchmark, [row.key for row in rows]).parse_args()
    rows = [row for row in rows if row.key in arguments.rows]
    try:
        report = {"benchmark": benchmark, **harness.circumstances(arguments.backend)}
    except gpuphot.BackendError as error:
        raise SystemExit(str(error)) from None
    report["called"] = {
        row.key: {name: reference.called for name, reference in row.measured_by().items()}
        for row in rows
    }
    report["largest_group"] = LARGEST_GROUP
    report["results"], report["memory"] = [], {}
    for name in arguments.workloads:
        _progress(f"{name}: peak memory")
        report["memory"][name] = harness.peak_memory_of_gpuphot(
            name,
            fluxes_given,
            arguments.backend,
            {row.key: {"function": row.function, "call": row.call()} for row in rows},
        )
        workload = calls.built(name, fluxes_given)
        for row in rows:
            report["results"].append(_run(workload, row, arguments))
    print(as_markdown(report, {row.key: row.title for row in rows}))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def _parser(benchmark: str, keys: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m bench.{benchmark}",
        description="Time gpuphot next to stdpipe, photutils and sep_x.",
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
    parser.add_argument(
        "--grouped-reference-sources",
        type=int,
        default=10_000,
        help="where neighbours matter, a reference measures a corner of the image with no more "
        "than this, for stdpipe keeps the distance of every pair of sources that it groups",
    )
    parser.add_argument("--backend", default="numpy", help="of gpuphot")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    return parser


def _run(workload: Workload, row: Row, arguments: argparse.Namespace) -> dict[str, Any]:
    """Check and time one row on one workload."""
    label = f"{workload.name}: {row.title}"
    _progress(f"{label}: agreement")
    ours = partial(row.measure, workload, arguments.backend)
    measures: dict[str, Measure] = {
        name: reference.measure for name, reference in row.measured_by().items()
    }
    # These calls are the warm-up, too.
    measured = ours()
    has_groups = "group_size" in getattr(measured, "colnames", ())
    if has_groups and np.max(measured["group_size"]) > LARGEST_GROUP:
        measures = {}
    agreements: dict[str, Any] = {}
    checked = _part(workload, row, AGREEMENT_SOURCES)
    # Without a column for groups, it takes the same sources to be sure that groups are the same.
    same = row.corner or (row.grouped and not has_groups)
    mine = row.measure(checked.workload, arguments.backend) if same else measured[checked.rows]
    for name, measure in measures.items():
        theirs = measure(checked.workload)
        agreements[name] = (
            row.compare(label, mine, theirs)
            if name == "stdpipe"
            else agreement.typical_difference(mine, theirs)
        )

    _progress(f"{label}: times")
    n = len(workload.table)
    part = _part(workload, row, _n_timed(row, n, arguments))
    calls: dict[str, Callable[[], Seconds]] = {"gpuphot": partial(harness.timed, ours)}
    for name, measure in measures.items():
        calls[name] = partial(_timed_reference, measure, part, row, n)
    repeats = dict.fromkeys(calls, arguments.reference_repeats or (3 if n <= 10_000 else 2))
    repeats["gpuphot"] = arguments.repeats
    summaries = {
        name: harness.summary(runs) for name, runs in harness.interleaved(calls, repeats).items()
    }
    return {
        "grouped": row.grouped,
        "corner": row.corner,
        **_result(workload.name, row.key, n, len(part.rows), agreements, summaries),
    }


def _n_timed(row: Row, n: int, arguments: argparse.Namespace) -> int:
    """How many sources a reference is to measure."""
    if row.in_corner:
        return min(n, arguments.grouped_reference_sources)
    # Where a reference estimates the background, that takes most of the time, and differences of
    # such times are too noisy to be scaled.
    return min(n, arguments.reference_sources) if row.maps_given else n


def _part(workload: Workload, row: Row, n: int) -> Part:
    """At most n sources: all over the image, or all of those in its corner."""
    if row.in_corner:
        return Part(*workload.corner(n))
    rows = workload.sample(n)
    return Part(rows, workload.only(rows))


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


def _timed_reference(measure: Measure, part: Part, row: Row, n: int) -> Seconds:
    """Time of a reference for all n sources of the workload.

    If it measures a corner, its time is scaled by the number of sources: the image is scaled with
    them. Else, what it takes beyond a call with one source, and nothing else, is scaled: the cost
    of the image stays what it is.
    """
    seconds = harness.timed(partial(measure, part.workload))
    if len(part.rows) == n:
        return seconds
    if row.in_corner:
        return seconds.extended(Seconds(0.0, 0.0), n / len(part.rows))
    image_only = harness.timed(partial(measure, part.workload.only(np.arange(1))))
    return seconds.extended(image_only, (n - 1) / (len(part.rows) - 1))


def _progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
