"""Curves of the small run as files: all numbers that it determines, and what counts as moved.

The run trains and evaluates every stage on a CPU in fp32, each from the models of the one before. So a number late in
the chain moves with any before it, and what moves first tells where to look.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rlhf.files import read_json, read_jsonl
from tests.project import Project

FOLDER = Path(__file__).parent
TRAINING = ("sft", "reward", "ppo")
EVALUATION = ("evaluate_sft", "evaluate_reward", "baseline", "evaluate_ppo")
STAGES = TRAINING + EVALUATION
# Kernels for other instruction sets (AVX-512, AVX2, SSE4.1, none; of PyTorch, MKL and oneDNN) and two threads for one
# moved no number by more than 5e-5 of it plus 2e-6, and no answer by a token: noise belongs to a sample, and a gap
# between two tokens as small as rounding is rare. So sampled iterations have the limits of the others.
RELATIVE, ABSOLUTE = 2e-4, 2e-5
DIGITS = 7  # significant; more would be noise
CLOCK = ("time", "tokens_per_second")  # beginnings of names: what a machine's speed decides
SURROUNDINGS = ("execution", "schema_version", "id")  # of an evaluation: no numbers of it

Row = dict[str, str | float]


def curve(project: Project, stage: str) -> list[Row]:
    """What a finished project says of a stage: a row for each line of its metrics, or for each number it evaluated."""
    results = project.results(stage)
    if stage in TRAINING:
        return of_metrics(read_jsonl(results / "metrics.jsonl"))
    evaluation = read_json(results / "evaluation.json")
    numbers = {key: value for key, value in evaluation.items() if key not in SURROUNDINGS}
    return [{"number": name, "value": value} for name, value in _numbers(numbers)]


def of_metrics(metrics: list[dict[str, Any]]) -> list[Row]:
    """Lines of metrics without what depends on the machine's speed."""
    return [{name: value for name, value in line.items() if not name.startswith(CLOCK)} for line in metrics]


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number in nested objects and lists, with its path."""
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in entries:
            yield from _numbers(entry, f"{name}.{key}" if name else str(key))
    elif isinstance(value, int | float):
        yield name, value


def read(stage: str) -> list[Row]:
    """The stored curve; a cell without text is a number that its row does not have."""
    with (FOLDER / f"{stage}.csv").open(newline="") as stream:
        return [{name: _number(text) for name, text in line.items() if text != ""} for line in csv.DictReader(stream)]


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def write(stage: str, rows: list[Row]) -> None:
    """Store a curve."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (FOLDER / f"{stage}.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _text(value) for name, value in row.items()} for row in rows)


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.{DIGITS}g}"


def moved(found: list[Row], stored: list[Row]) -> list[tuple[str | float, str, Any, Any]]:
    """Where two curves differ by more than rounding, in order.

    Returns:
        For each number: its row (counted from 0, or what the row calls itself), its column, the number found and the
        one stored; None where it is not there.
    """
    return [
        ((old or row).get("number", place), name, row.get(name), old.get(name))
        for place, (row, old) in enumerate(zip_longest(found, stored, fillvalue={}))
        for name in {**old, **row}
        if not _same(row.get(name), old.get(name))
    ]


def _same(found: Any, stored: Any) -> bool:
    if isinstance(found, str | None) or isinstance(stored, str | None):
        return bool(found == stored)
    return bool(abs(found - stored) <= ABSOLUTE + RELATIVE * abs(stored))  # not a number is never the same
