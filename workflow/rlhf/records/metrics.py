"""metrics.jsonl: one line for each training step and each evaluation of a stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlhf.errors import UserError
from rlhf.files import JsonObject, append_jsonl, read_jsonl, tail

METRICS = "metrics.jsonl"
Phase = Literal["train", "eval"]


@dataclass(frozen=True)
class MetricsLine:
    """What was measured at one step.

    Attributes:
        step: steps finished, 1-based for training; 0 before the first.
        phase: `train`, or `eval` for unseen rows.
        time: seconds of the stage so far, those of earlier attempts included.
        values: metric -> value; what was not measured is absent.
    """

    step: int
    phase: Phase
    time: float
    values: Mapping[str, float]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> MetricsLine:
        """From the object that a line of the file holds."""
        head = {"step", "phase", "time"}
        values = {name: value for name, value in row.items() if name not in head}
        return cls(row["step"], row["phase"], row["time"], values)

    def row(self) -> JsonObject:
        """The object that a line of the file holds."""
        return {"step": self.step, "phase": self.phase, "time": self.time, **self.values}

    @property
    def numbers(self) -> dict[str, float]:
        """All numbers of the line by name, its step and its time among them."""
        return {"step": self.step, "time": self.time, **self.values}


def read_metrics(file: Path) -> list[MetricsLine]:
    """All lines of a stage's metrics, in the order in which they were written.

    Raises:
        UserError: the file is missing, or a line of it is damaged.
    """
    try:
        return [MetricsLine.of(row) for row in read_jsonl(file)]
    except KeyError as error:
        raise UserError(f"{file}: a line has no {error}; remove the stage's folder and run snakemake again") from None


def last_lines(file: Path) -> dict[Phase, MetricsLine]:
    """The last line of each phase near the end of a file that may be long, or be written meanwhile."""
    last: dict[Phase, MetricsLine] = {}
    for text in tail(file):
        with suppress(ValueError, KeyError, TypeError):  # a line that is cut, or not yet whole
            line = MetricsLine.of(json.loads(text))
            last[line.phase] = line
    return last


def append_metrics(file: Path, line: MetricsLine) -> None:
    """Add a line, so that a reader sees whole lines only."""
    append_jsonl(file, line.row())
