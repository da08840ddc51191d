"""What the proofs have in common: a count of what was proven, and no excuses.

With ``GPUPHOT_REQUIRE_PROOF=1`` a proof that cannot be made, and would be skipped, has failed.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Generator, Set
from typing import Any

import pytest

from gpuphot.cupy_backend.kernels.registry import KERNELS

from .build import executed

REQUIRED = os.environ.get("GPUPHOT_REQUIRE_PROOF") == "1"

# Names of the kernels that passed, by compiler and architecture.
compiled: defaultdict[tuple[object, int], set[str]] = defaultdict(set)


def as_failure(report: Any) -> Any:
    """Turn the report of a skip into one of a failure."""
    expected_to_fail = hasattr(report, "wasxfail")
    if REQUIRED and report.skipped and not expected_to_fail:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"GPUPHOT_REQUIRE_PROOF=1, but: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    return as_failure((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    return as_failure((yield))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    ran = KERNELS.keys() & executed
    if not (compiled or ran):
        return
    terminalreporter.section("kernels")
    for (compiler, arch), names in compiled.items():
        terminalreporter.line(summary(f"compiled by {compiler} for sm_{arch}", names))
    terminalreporter.line(summary("executed on the CPU", ran))


def summary(what: str, names: Set[str]) -> str:
    """For instance: 11 of 12 kernels compiled for sm_90 (not mesh_statistics)."""
    missing = sorted(KERNELS.keys() - names)
    exceptions = f" (not {', '.join(missing)})" if missing else ""
    return f"{len(names)} of {len(KERNELS)} kernels {what}{exceptions}"
