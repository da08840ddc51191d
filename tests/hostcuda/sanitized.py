"""Run functions in a process with AddressSanitizer and UBSan, which end it at the first fault."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .compiler import sanitizer_environment

ROOT = Path(__file__).parents[2]

# Imports and compiles once; every call then dies or lives in a fork of its own.
_SCRIPT = """
import importlib, os, sys
function = getattr(importlib.import_module({module!r}), {name!r})
for arguments in {calls!r}:
    child = os.fork()
    if child == 0:
        function(*arguments)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print({mark!r}, status, file=sys.stderr, flush=True)
"""
_MARK = "exit status of the call:"


@dataclass(frozen=True)
class Outcome:
    """What became of one call: `report` is the sanitizers' text, empty if nothing was wrong."""

    passed: bool
    report: str


def run_sanitized(module: str, name: str, calls: Sequence[tuple[Any, ...]]) -> list[Outcome]:
    """Call a module's function with each tuple of plain arguments, in processes of their own.

    Parameters
    ----------
    module, name : str
        The function; it makes ``HostModule(..., variant="sanitized")`` itself.
    calls : sequence of tuple
        Arguments that ``repr`` can write.
    """
    script = _SCRIPT.format(module=module, name=name, calls=list(calls), mark=_MARK)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=sanitizer_environment(),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    outcomes = []
    lines: list[str] = []
    for line in done.stderr.splitlines():
        if line.startswith(_MARK):
            outcomes.append(Outcome(line.endswith(" 0"), "\n".join(lines)))
            lines = []
        else:
            lines.append(line)
    if done.returncode or len(outcomes) != len(calls):
        raise RuntimeError(f"the sanitized process failed:\n{done.stderr[-4000:]}")
    return outcomes
