"""What every tier of tests shares: hypothesis settings, and no silent skip in CI.

Knows nothing of cisfs.  Runs in pytest's own process, one test at a time.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

# No deadline: a busy machine must not fail a property.  Nothing saved as root: it may be the user's
# checkout.  Where CI runs, the same examples every time, so that a red run is red again.
settings.register_profile(
    "cisfs",
    deadline=None,
    database=None,
    derandomize=os.environ.get("CI") == "true",
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("cisfs")


def _refuse_skip(report: Report) -> Report:
    """Turn a skip into a failure where CI=true: there, everything a test may need is installed."""
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judge the report of each phase of each test."""
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Judge the report of each collected module: one may skip as a whole."""
    return _refuse_skip((yield))
