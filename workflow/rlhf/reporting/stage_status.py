"""The state of every stage of a project.

Running stages are found by the progress.json in their state folder, finished ones by their manifest, and jobs that
wait for a cluster's nodes, or have only just got them, by Slurm's queue.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from rlhf.files import tail
from rlhf.phases import RULES
from rlhf.records.evaluation import peek_evaluation
from rlhf.records.manifest import MANIFEST, Manifest, peek_manifest
from rlhf.records.memory import peek_memory
from rlhf.records.metrics import METRICS, last_lines
from rlhf.records.progress import PROGRESS, Progress, read_progress
from rlhf.reporting.slurm import Job, job_log
from rlhf.runtime.progress import format_seconds

STALLED_AFTER_SECONDS = 120.0


@dataclass(frozen=True)
class StageStatus:
    """One line of the table. Fields that are not known are None."""

    stage: str
    id: str
    status: str
    step: int | None = None
    total_steps: int | None = None
    speed: float | None = None
    seconds: float | None = None
    metrics: Mapping[str, object] = field(default_factory=dict)
    note: str = ""
    job: str = ""  # Slurm's job ID
    node: str = ""
    gpus: str = ""  # as CUDA_VISIBLE_DEVICES names them
    peak_rss: int | None = None  # bytes: of rank 0 while it runs, of the largest process when done
    mem_mb: int | None = None  # asked for


def read_status(
    root: Path, now: float | None = None, jobs: dict[tuple[str, str], Job] | None = None
) -> list[StageStatus]:
    """The state of every stage of a project, in the order of the workflow.

    Args:
        root: project folder with state/, results/ and logs/.
        now: Unix time; unset takes the clock.
        jobs: Slurm's queue.

    Returns:
        One entry per stage. A stage with a manifest is done, unless it has been started again since.
    """
    present = time.time() if now is None else now
    found: dict[tuple[str, str], StageStatus] = {}
    finished_at: dict[tuple[str, str], float] = {}
    for file in root.glob(f"results/*/*/{MANIFEST}"):
        manifest = peek_manifest(file.parent)
        if manifest is not None:
            place = (file.parent.parent.name, file.parent.name)
            found[place] = _finished(file, manifest)
            finished_at[place] = _timestamp(manifest.get("finished"))
    for file in root.glob(f"state/*/*/{PROGRESS}"):
        progress = read_progress(file.parent)
        place = (file.parent.parent.name, file.parent.name)
        if progress is not None and not _is_older(progress, finished_at.get(place)):
            found[place] = _started(root, *place, progress, present)
    for place, job in (jobs or {}).items():
        found[place] = _with_job(found.get(place), job)
    return sorted(found.values(), key=lambda entry: (_rank(entry.stage), entry.id))


def _with_job(entry: StageStatus | None, job: Job) -> StageStatus:
    """What Slurm's queue adds: a stage that waits, or has not said anything yet, is known from it only."""
    if entry is None or entry.status in ("failed", "interrupted", "done", "stalled"):  # nothing, or an earlier attempt
        entry = StageStatus(job.stage, job.identifier, "starting")
    if job.state == "PENDING":
        entry = replace(entry, status="queued", note=job.reason)
    return replace(entry, job=job.id, node=job.nodes, mem_mb=job.mem_mb)


def _rank(stage: str) -> int:
    """Place in the workflow's order; other folders, which a user may have made, come last."""
    return list(RULES).index(stage) if stage in RULES else len(RULES)


def _timestamp(text: str | None) -> float:
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def _is_older(progress: Progress, finished: float | None) -> bool:
    """Whether a progress file is a leftover of the run whose manifest was written at `finished`."""
    return finished is not None and (progress.get("status") == "done" or progress.get("updated", 0.0) <= finished)


def _finished(manifest_file: Path, manifest: Manifest) -> StageStatus:
    folder = manifest_file.parent
    stage, identifier = folder.parent.name, folder.name
    if not manifest:
        return StageStatus(stage, identifier, "unreadable", note=f"{manifest_file} is not valid JSON")
    memory = peek_memory(folder)
    return StageStatus(
        stage,
        identifier,
        "done",
        seconds=manifest.get("wall_seconds"),
        metrics=peek_evaluation(folder) or _last_metrics(folder),
        job=manifest.get("slurm_job_id", ""),
        node=manifest.get("host", ""),
        gpus=manifest.get("gpus", ""),
        peak_rss=memory.get("peak_rss") if memory else None,
        mem_mb=manifest.get("spec", {}).get("execution", {}).get("mem_mb"),
    )


def _last_metrics(folder: Path) -> dict[str, float]:
    """The last training metrics, overlaid with the last ones on unseen data."""
    last = last_lines(folder / METRICS)
    train, unseen = last.get("train"), last.get("eval")
    return {**(train.values if train else {}), **(unseen.values if unseen else {})}


def _started(root: Path, stage: str, identifier: str, progress: Progress, now: float) -> StageStatus:
    if not progress:
        return StageStatus(stage, identifier, "unreadable", note=f"state/{stage}/{identifier}/progress.json is broken")
    status, note = _condition(progress, now)
    if status in ("failed", "stalled"):
        note = "; ".join(part for part in (note, _log_note(root, stage, identifier)) if part)
    return StageStatus(
        stage,
        identifier,
        status,
        step=progress.get("step"),
        total_steps=progress.get("total_steps"),
        speed=progress.get("speed") if status == "running" else None,
        seconds=progress.get("eta_seconds") if status == "running" else None,
        metrics=progress.get("metrics") or {},
        note=note,
        job=progress.get("slurm_job_id", ""),
        node=progress.get("host", ""),
        gpus=progress.get("gpus", ""),
        peak_rss=progress.get("peak_rss"),
    )


def _condition(progress: Progress, now: float) -> tuple[str, str]:
    """(status, why): a stage that says it runs is stalled if its process is gone or it has been silent too long."""
    status = progress.get("status", "running")
    if status != "running":
        return status, ""
    if progress.get("host") == socket.gethostname() and not _is_alive(progress.get("pid")):
        return "stalled", f"process {progress.get('pid')} is gone"
    silent = now - progress.get("updated", now)
    if silent > STALLED_AFTER_SECONDS:
        return "stalled", f"no news for {format_seconds(silent)} from {progress.get('host')}"
    return "running", ""


def _is_alive(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists and belongs to another user
        return True
    return True


def _log_note(root: Path, stage: str, identifier: str) -> str:
    """The last line of the stage's log, and where to read on: there, and in the log of its Slurm job."""
    lines = [line.strip() for line in tail(root / "logs" / stage / f"{identifier}.log") if line.strip()]
    if not lines:
        return ""
    logs = [f"logs/{stage}/{identifier}.log", job_log(root, stage, identifier)]
    return f"{lines[-1]} (see {', '.join(filter(None, logs))})"
