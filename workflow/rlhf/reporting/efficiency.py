"""What each stage asked for against what it used, so that requests can be tightened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf.reporting.collect import Experiment, Row, StageFiles
from rlhf.reporting.tables import Column, number

EFFICIENCY_NOTE = (
    "Memory is that of the node with the most, summed over its processes; a Slurm job needs about 300 MB more, for "
    "Snakemake. Time is that of the attempt that finished. CPU use is Slurm's, where it keeps accounts."
)


def _percent(value: float) -> str:
    return f"{value:.0%}"


EFFICIENCY_COLUMNS = (
    Column("stage", "stage"),
    Column("id", "ID"),
    Column("job", "Slurm job"),
    Column("nodes", "nodes"),
    Column("gpus", "GPUs"),
    Column("gpu_reserved_mb", "device memory used (MB)", number(0)),
    Column("mem_mb", "memory asked (MB)", number(0)),
    Column("used_mb", "memory used (MB)", number(0)),
    Column("mem_share", "memory used", _percent),
    Column("runtime", "time asked (min)", number(0)),
    Column("minutes", "time used (min)", number(1)),
    Column("time_share", "time used", _percent),
    Column("cpu_share", "CPU use", _percent),
)


def jobs_of(experiment: Experiment) -> list[str]:
    """IDs of the Slurm jobs that made an experiment's stages."""
    return [job for stage in experiment.in_order() if (job := _record(stage).get("slurm_job_id"))]


def efficiency_rows(experiment: Experiment, cpu_use: Mapping[str, float]) -> list[Row]:
    """One row per stage whose request is known.

    Args:
        experiment: the runs and their files.
        cpu_use: share of the CPU time that a Slurm job used, by job ID.

    Returns:
        Rows with the keys of `EFFICIENCY_COLUMNS`; what was not measured is left out. MB are 10^6 bytes.
    """
    stages = [stage for stage in experiment.in_order() if _execution(stage)]
    return [_row(stage, cpu_use) for stage in stages]


def _row(stage: StageFiles, cpu_use: Mapping[str, float]) -> Row:
    asked, job = _execution(stage), _record(stage).get("slurm_job_id")
    used, minutes = _used_mb(stage), _minutes(stage)
    row = {
        "stage": stage.kind,
        "id": stage.id,
        "job": job,
        "nodes": asked["nodes"],
        "gpus": asked["nodes"] * asked["gpus_per_node"],
        "gpu_reserved_mb": _gpu_reserved_mb(stage),
        "mem_mb": asked["mem_mb"],
        "used_mb": used,
        "mem_share": None if used is None else used / asked["mem_mb"],
        "runtime": asked["runtime"],
        "minutes": minutes,
        "time_share": None if minutes is None else minutes / asked["runtime"],
        "cpu_share": cpu_use.get(job or ""),
    }
    return {key: value for key, value in row.items() if value is not None}


def _record(stage: StageFiles) -> Row:
    """What tells of the stage's job: its manifest, or the result of an evaluation."""
    return stage.manifest or stage.evaluation or {}


def _execution(stage: StageFiles) -> dict[str, Any]:
    record = _record(stage)
    found: dict[str, Any] = record.get("spec", record).get("execution", {})
    return found


def _used_mb(stage: StageFiles) -> float | None:
    """Peak memory of the fullest node."""
    hosts: dict[str, float] = {}
    for process in (stage.memory or {}).get("processes", []):
        hosts[process["host"]] = hosts.get(process["host"], 0.0) + process["peak_rss"] / 1e6
    if hosts:
        return max(hosts.values())
    measured = (stage.benchmark or {}).get("max_rss")  # MiB; an evaluation is one process
    return measured * 2**20 / 1e6 if isinstance(measured, int | float) else None


def _minutes(stage: StageFiles) -> float | None:
    measured = (stage.benchmark or {}).get("s", (stage.manifest or {}).get("wall_seconds"))
    return measured / 60 if isinstance(measured, int | float) else None


def _gpu_reserved_mb(stage: StageFiles) -> float | None:
    phases = [phase for process in (stage.memory or {}).get("processes", []) for phase in process["phases"]]
    peaks = [phase["peak_reserved"] / 1e6 for phase in phases if "peak_reserved" in phase]
    return max(peaks, default=None)
