"""progress.json in the state folder: how far a stage is that runs, or how its last attempt ended."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypedDict

from rlhf.files import JsonObject, peek, write_json

PROGRESS = "progress.json"
Status = Literal["running", "done", "interrupted", "failed"]


class Progress(TypedDict, total=False):
    """Content of progress.json; empty where the file is damaged.

    Attributes:
        slurm_job_id: empty outside of Slurm.
        gpus: as CUDA_VISIBLE_DEVICES names them; empty on the CPU.
        step, total_steps: optimizer steps, or iterations of PPO: done, and of the whole stage.
        phase: of the last line of the metrics.
        speed: useful tokens per second at that line; None where it was not measured.
        eta_seconds: None before the first step.
        updated: Unix time.
        pid, host: of rank 0.
        peak_rss: its largest resident memory in bytes.
        status: `interrupted` where the stage goes on when it is started again.
        metrics: the last line.
    """

    schema_version: int
    stage: str
    id: str
    slurm_job_id: str
    gpus: str
    step: int
    total_steps: int
    phase: str | None
    speed: float | None
    eta_seconds: float | None
    updated: float
    pid: int
    host: str
    peak_rss: int
    status: Status
    metrics: JsonObject


def read_progress(state: Path) -> Progress | None:
    """How far a stage is; None where it has never been started here.

    Args:
        state: state/<stage>/<id>/.
    """
    progress: Progress | None = peek(state / PROGRESS)
    return progress


def write_progress(state: Path, progress: Progress) -> None:
    """Say how far a stage is."""
    write_json(state / PROGRESS, progress)
