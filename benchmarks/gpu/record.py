"""A pytest plugin: one line of JSON for each test, written as it ends, so that a run that is cut off leaves them."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

FILE = "RLHF_GPU_RECORD"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test, or its set-up where that is as far as it came."""
    if report.when == "call" or not report.passed:
        _write(report.nodeid, report.outcome, report.duration, report.longrepr, dict(report.user_properties))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file that cannot be read."""
    if report.failed:
        _write(report.nodeid, report.outcome, 0.0, report.longrepr, {})


def _write(name: str, outcome: str, seconds: float, message: Any, measured: dict[str, Any]) -> None:
    if isinstance(message, tuple):  # file, line and reason of a skipped test
        message = message[2].removeprefix("Skipped: ")
    line = {"test": name, "outcome": outcome, "seconds": round(seconds, 2), "measured": measured}
    with open(os.environ[FILE], "a", encoding="utf-8") as stream:
        stream.write(json.dumps(line | {"message": str(message or "")}) + "\n")
