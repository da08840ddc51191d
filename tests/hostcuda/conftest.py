"""What the proofs have in common: no excuses.

With ``GPUPHOT_REQUIRE_PROOF=1`` a proof that cannot be made, and would be skipped, has failed.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

REQUIRED = os.environ.get("GPUPHOT_REQUIRE_PROOF") == "1"


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
