"""What the proofs of all kernels share: how they are run on the stand-in, and what is an error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gpuphot
from gpuphot.cupy_backend import probe

from . import standin
from .sanitized import run_sanitized

SCHEDULES = ({"order": "reverse"}, *({"order": "random", "seed": seed} for seed in (1, 2)))
"""Other orders of threads than the usual one."""


@contextmanager
def running(variant: str, schedule: dict[str, Any] | None = None) -> Iterator[Any]:
    """The primitives of the CuPy backend, with kernels of a variant; what races is an error."""
    probe.find_gpu.cache_clear()
    try:
        with standin.installed():
            standin.machine.variant = variant
            standin.machine.schedule = schedule or {}
            yield gpuphot.resolve_backend("cupy").primitives
            assert variant != "race" or standin.races() == []
    finally:
        probe.find_gpu.cache_clear()


def assert_sanitizers_pass(module: str, calls: Sequence[tuple[Any, ...]]) -> None:
    """Call the function ``run`` of a module with sanitized kernels, each time in a process."""
    for call, outcome in zip(calls, run_sanitized(module, "run", calls), strict=True):
        assert outcome.passed, (call, outcome.report)
        assert outcome.report == ""
