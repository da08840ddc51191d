"""The report of a side-by-side benchmark in Markdown."""

from __future__ import annotations

from typing import Any

from . import harness
from .agreement import LEAST_SEPARATION

REFERENCE_NAMES = ("stdpipe", "photutils", "sep_x")


def as_markdown(report: dict[str, Any], titles: dict[str, str]) -> str:
    """Times, notes, costs and memory; titles by the keys of the rows."""
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
    names = [
        name
        for name in REFERENCE_NAMES
        if any(name in result["references"] for result in report["results"])
    ]
    for name in names:
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
        for name in names:
            line += _reference_cells(result["references"].get(name), _mark(result))
        lines.append(line)
    return harness.markdown_table(head, lines, n_text=2)


def _mark(result: dict[str, Any]) -> str:
    """What goes before figures of references that measured some sources only."""
    if result["reference_sources"] == result["sources"]:
        return ""
    return ">" if result["grouped"] else "~"


def _reference_cells(reference: dict[str, Any] | None, mark: str) -> list[str]:
    if reference is None:
        return ["", ""]
    seconds, ratio = reference["cpu_s"]["median"], reference["ratio"]
    return [f"{mark}{_figure(seconds)}", f"{mark}{_figure(ratio)}x"]


def _notes(report: dict[str, Any], titles: dict[str, str]) -> str:
    results = report["results"]
    lines = _agreement_notes(results, report["called"])
    for key, title in titles.items():
        for name, called in report["called"][key].items():
            if name == "stdpipe":
                continue
            differences = [
                r["agreement"][name] for r in results if r["row"] == key and name in r["agreement"]
            ]
            if differences:
                lines.append(
                    f"- {title}, {name}: {called}. Fluxes differ by {max(differences):.1g} of "
                    "their error (median)."
                )
    lines += sorted({_scaling_note(r) for r in results if r["references"]} - {""})
    lines += [
        f"- {titles[r['row']]} at {r['workload']}: there is no reference, and nothing to agree "
        f"with. Groups have more than {report['largest_group']} members, and stdpipe's matrices "
        "would not fit into memory."
        for r in results
        if not r["references"]
    ]
    return "Called, and checked against gpuphot:\n\n" + "\n".join(lines)


def _agreement_notes(results: list[dict[str, Any]], called: dict[str, Any]) -> list[str]:
    """How well gpuphot agrees with stdpipe, for each of its functions."""
    worst: dict[str, float] = {}
    for r in results:
        if "stdpipe" in r["agreement"]:
            function = called[r["row"]]["stdpipe"]
            found = [
                value for name, value in r["agreement"]["stdpipe"].items() if name != "sources"
            ]
            worst[function] = max(*found, worst.get(function, 0.0))
    lines = [
        f"- stdpipe: {function}. Largest relative difference: {value:.1e}."
        for function, value in worst.items()
    ]
    checked = [r for r in results if r["grouped"] and r["agreement"]]
    grouped = [r["agreement"]["stdpipe"]["sources"] for r in checked]
    if grouped:
        lines.append(
            "- Compared are groups that are complete in the part of the image that stdpipe "
            f"measures, without members within {LEAST_SEPARATION} px of each other: "
            f"{min(grouped)} sources or more."
        )
    return lines


def _scaling_note(result: dict[str, Any]) -> str:
    """How the time of a reference was extended to all sources."""
    mark = _mark(result)
    measured = f"{result['reference_sources']} of {result['sources']} sources"
    if mark == ">":
        return (
            f"- > at {result['workload']}: only a corner of the image with {measured} was "
            "measured, and its time multiplied with the ratio of these numbers. That is a lower "
            "limit for stdpipe, whose time grows with the pairs of sources, and with the image "
            "for every group."
        )
    if mark == "~" and result["corner"]:
        return (
            f"- ~ at {result['workload']}: only a corner of the image with {measured} was "
            "measured, and its time multiplied with the ratio of these numbers."
        )
    if mark == "~":
        return (
            f"- ~ at {result['workload']}: only {measured} were measured. The time beyond a call "
            "with one source is scaled per source, that of this call is not."
        )
    return ""


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
