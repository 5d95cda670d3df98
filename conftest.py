"""Where ``PKVM_EMU_REQUIRE_TOOLS`` is set, a skipped test is a failed one.

Tests that need a program or package of the host (make, a compiler, an assembler) are skipped where it is missing. CI installs
them all and sets the variable, so that a test which never runs anywhere is noticed.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

_REQUIRED = os.environ.get("PKVM_EMU_REQUIRE_TOOLS", "") not in ("", "0")


def _refuse(report: pytest.TestReport | pytest.CollectReport) -> None:
    if _REQUIRED and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{reason} (PKVM_EMU_REQUIRE_TOOLS is set, so nothing may be skipped)"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test, or its set-up, that skips."""
    report = yield
    _refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A whole file that skips."""
    report = yield
    _refuse(report)
    return report
