"""A count of what was proven, in whichever process of the tests; ``tests/conftest.py`` shows it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set
from typing import Any

import pytest

from gpuphot.cupy_backend.kernels.registry import KERNELS

from .build import executed

# Names of the kernels that passed, by compiler and architecture.
compiled: defaultdict[tuple[str, int], set[str]] = defaultdict(set)


def pytest_sessionfinish(session: Any) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["kernels"] = (dict(executed), dict(compiled))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    # A worker that crashed has left nothing.
    executed_there, compiled_there = getattr(node, "workeroutput", {}).get("kernels", ({}, {}))
    executed.update(executed_there)
    for target, names in compiled_there.items():
        compiled[target] |= names


def pytest_terminal_summary(terminalreporter: Any) -> None:
    ran = KERNELS.keys() & executed
    if not (compiled or ran):
        return
    terminalreporter.section("kernels")
    for (compiler, arch), names in sorted(compiled.items()):
        terminalreporter.line(summary(f"compiled by {compiler} for sm_{arch}", names))
    terminalreporter.line(summary("executed on the CPU", ran))


def summary(what: str, names: Set[str]) -> str:
    """For instance: 11 of 12 kernels compiled for sm_90 (not mesh_statistics)."""
    missing = sorted(KERNELS.keys() - names)
    exceptions = f" (not {', '.join(missing)})" if missing else ""
    return f"{len(names)} of {len(KERNELS)} kernels {what}{exceptions}"
