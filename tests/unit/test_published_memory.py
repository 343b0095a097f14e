"""The closed forms against published measurements: the accuracy that the benchmark reports."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "memory"


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    sys.path.insert(0, str(BENCHMARK))
    try:
        return runpy.run_path(str(BENCHMARK / "validate.py"))["replay"](BENCHMARK / "published.csv")
    finally:
        sys.path.remove(str(BENCHMARK))


def test_allocated_peaks_are_predicted(result: dict[str, Any]) -> None:
    errors = result["summary"]["errors"]["allocated peak"]
    assert errors["rows"] >= 19
    assert errors["median"] <= 0.02
    assert errors["mean"] <= 0.05
    assert abs(errors["worst"]) <= 0.15


def test_what_went_out_of_memory_is_refused(result: dict[str, Any]) -> None:
    verdicts = result["summary"]["verdicts"]
    assert verdicts["out of memory, predicted: does not fit"] >= 3
    assert "out of memory, predicted: fits" not in verdicts
    assert verdicts["ran, predicted: fits"] > verdicts["ran, predicted: does not fit"]


def test_the_upper_bound_is_rarely_too_low(result: dict[str, Any]) -> None:
    bound = result["summary"]["upper_bound_too_low"]
    assert bound["rows"] >= 30
    assert len(bound["too_low"]) <= 0.05 * bound["rows"]


def test_a_row_that_says_too_little_is_listed(result: dict[str, Any]) -> None:
    skipped = {row["id"]: row["reason"] for row in result["not_predicted"]}
    assert skipped["coati-ppo-tp8-b1"] == "no zero_stage"
    assert len(result["rows"]) + len(skipped) == 56
