"""What a state folder tells of the attempts at its stage: who is at work, why the last one failed, what was counted."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from rlhf.files import peek, read_object, write_json

FAILURES = "failures"
HOLDER = "holder.json"
MEMORY_STEPS = "memory_steps.json"
NONFINITE = "nonfinite.json"
DEVICE_MEMORY = "out_of_device_memory"


class FailureRecord(TypedDict):
    """Why one process failed: content of failures/rank-R.json, which only the last attempt leaves.

    Attributes:
        cause: one of the names in `docs/when-things-go-wrong.md`.
        message: what happened and what to do.
        time: Unix time.
    """

    cause: str
    message: str
    rank: int
    time: float
    host: str
    pid: int


class MemorySteps(TypedDict):
    """Content of memory_steps.json: how many earlier attempts ran out of device memory."""

    failures: int


class NonFinite(TypedDict):
    """The step whose loss or gradient was not finite: content of nonfinite.json.

    Attributes:
        loss, gradient_norm: as text, because NaN and infinity are no JSON.
        rows: (number of the dataset, row in its cached split) of the step's batch.
    """

    step: int
    loss: str
    gradient_norm: str
    rows: list[tuple[int, int]]


class Holder(TypedDict, total=False):
    """The process that holds the lease of the folder: content of holder.json. Empty where that is not known.

    Attributes:
        job: of Slurm; None outside.
        since: ISO 8601, with the zone.
    """

    host: str
    pid: int
    job: str | None
    since: str


def write_failure(state: Path, failure: FailureRecord) -> None:
    """Record why a process failed.

    Args:
        state: state/<stage>/<id>/, as in all functions here.
        failure: what its rank has to say.
    """
    write_json(state / FAILURES / f"rank-{failure['rank']}.json", failure)


def read_failures(state: Path) -> list[FailureRecord]:
    """What the processes of the last attempt said that failed, in the order of their ranks' names.

    Empty where the attempt is gone that left them: the next one removes what it finds.
    """
    found: list[FailureRecord | None] = [peek(file) for file in sorted((state / FAILURES).glob("rank-*.json"))]
    return [failure for failure in found if failure]


def out_of_memory_failures(state: Path) -> int:
    """How many attempts at a stage ran out of device memory: those counted, and perhaps the last one.

    Raises:
        UserError: the count is damaged.
    """
    steps = state / MEMORY_STEPS
    counted: MemorySteps = read_object(steps) if steps.exists() else {"failures": 0}
    return counted["failures"] + any(failure["cause"] == DEVICE_MEMORY for failure in read_failures(state))


def write_memory_steps(state: Path, steps: MemorySteps) -> None:
    """Keep the count when the failures that it was made of are removed."""
    write_json(state / MEMORY_STEPS, steps)


def write_nonfinite(state: Path, found: NonFinite) -> None:
    """Name the rows of a step that must not or cannot be skipped."""
    write_json(state / NONFINITE, found)


def read_holder(state: Path) -> Holder:
    """Who holds the lease; empty where nobody does, or the file is just being written."""
    holder: Holder | None = peek(state / HOLDER)
    return holder or {}


def write_holder(state: Path, holder: Holder) -> None:
    """Say who holds the lease."""
    write_json(state / HOLDER, holder)
