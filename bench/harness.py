"""What every benchmark needs: interleaved timing, peak memory, the machine, a Markdown table."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gpuphot

from . import THREAD_VARIABLES

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("numpy", "scipy", "astropy", "photutils", "sep-x", "stdpipe", "scikit-learn")
Call = Callable[[], Any]


@dataclass(frozen=True)
class Seconds:
    """CPU seconds of this process and wall-clock seconds of one call."""

    cpu: float
    wall: float

    def extended(self, least: Seconds, factor: float) -> Seconds:
        """With the part beyond `least` multiplied by a factor."""
        return Seconds(
            least.cpu + factor * (self.cpu - least.cpu),
            least.wall + factor * (self.wall - least.wall),
        )


def timed(call: Call) -> Seconds:
    """Time one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return Seconds(time.process_time() - cpu, time.perf_counter() - wall)


def interleaved(
    calls: dict[str, Callable[[], Seconds]], repeats: dict[str, int]
) -> dict[str, list[Seconds]]:
    """Run all calls in turn, as often as each is due: a slow minute of the machine hits all."""
    seconds: dict[str, list[Seconds]] = {name: [] for name in calls}
    for i in range(max(repeats.values())):
        for name, call in calls.items():
            if i < repeats[name]:
                seconds[name].append(call())
    return seconds


def summary(runs: Sequence[Seconds]) -> dict[str, Any]:
    """Median and range of repeated runs."""
    return {
        "repeats": len(runs),
        **{
            f"{clock}_s": {
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
            }
            for clock, values in (
                ("cpu", [run.cpu for run in runs]),
                ("wall", [run.wall for run in runs]),
            )
        },
    }


def peak_memory(call: Call) -> dict[str, int]:
    """Resident bytes of this process before a call and at its peak.

    The call runs in a forked child, whose record starts with what is resident now: earlier calls
    and peaks do not count.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_peak, args=(call, sender))
    child.start()
    sender.close()
    try:
        before, peak = receiver.recv()
    except EOFError:
        raise SystemExit("the call whose memory was measured failed, see above") from None
    child.join()
    return {"before_bytes": before, "peak_bytes": peak}


def _send_peak(call: Call, sender: Any) -> None:
    before = _resident_peak()
    call()
    sender.send((before, _resident_peak()))


def _resident_peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB


def peak_memory_of_gpuphot(
    workload: str, fluxes_given: bool, backend: str, rows: dict[str, dict[str, Any]]
) -> dict[str, dict[str, int]]:
    """Peak memory per row, in a process that has loaded no reference package."""
    request = {
        "workload": workload, "fluxes_given": fluxes_given, "backend": backend, "rows": rows
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory"],
        input=json.dumps(request), stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"measuring the memory of workload {workload} failed, see above")
    return json.loads(done.stdout)


def circumstances(backend: str, packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Machine, versions and settings: what a figure means nothing without."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m", _module_name(), *sys.argv[1:]]),
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "ram_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "os": platform.platform(),
            "load_1min_at_start": os.getloadavg()[0],
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
            "gpuphot": gpuphot.__version__,
            "commit": _commit(),
        },
        "backend": {"name": backend, "device": gpuphot.resolve_backend(backend).device},
        "threads": {name: os.environ[name] for name in THREAD_VARIABLES},
    }


def _module_name() -> str:
    return f"bench.{Path(sys.argv[0]).stem}"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str | None:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
    )  # fmt: skip
    return done.stdout.strip() or None


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], n_text: int) -> str:
    """A table with aligned columns, the first `n_text` of them text, the others numbers."""
    widths = [max(len(row[k]) for row in [head, *rows]) for k in range(len(head))]
    rule = [
        "-" * width if k < n_text else "-" * (width - 1) + ":" for k, width in enumerate(widths)
    ]
    lines = [
        " | ".join(
            cell.ljust(width) if k < n_text else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, rule, *rows]
    ]
    return "\n".join(f"| {line} |" for line in lines)
