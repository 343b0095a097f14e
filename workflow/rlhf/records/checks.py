"""checks.json: a PPO run's metrics against the table of inequalities (`rlhf.reporting.inequalities`)."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from rlhf.files import read_object, write_json


class _Check(TypedDict):
    stage: str
    phase: str
    metric: str
    statistic: str
    relation: str
    bound: float
    hard: bool
    holds: bool
    cause: str


class CheckRecord(_Check, total=False):
    """One inequality in one run; `value` of the statistic is absent where the metric is."""

    value: float


class ChecksReport(TypedDict):
    """Content of checks.json.

    Attributes:
        stage, id: of the run.
        violated: how many inequalities do not hold.
        checks: all that apply to the run.
    """

    schema_version: int
    stage: str
    id: str
    violated: int
    checks: list[CheckRecord]


def read_checks(file: Path) -> ChecksReport:
    """The checks of a run.

    Raises:
        UserError: the file is missing or damaged.
    """
    report: ChecksReport = read_object(file)
    return report


def write_checks(file: Path, report: ChecksReport) -> None:
    """Write the checks of a run."""
    write_json(file, report)
