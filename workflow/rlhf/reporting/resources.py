"""What each stage used of time and memory, and what it had asked for, so that requests can be tightened."""

from __future__ import annotations

from collections.abc import Mapping

from rlhf.records.benchmark import Benchmark, measured
from rlhf.reporting.collect import Experiment, StageFiles
from rlhf.reporting.tables import Column, Row, number, percent

MIB = 2**20

RESOURCE_COLUMNS = (
    Column("stage", "stage"),
    Column("id", "ID"),
    Column("processes", "processes"),
    Column("seconds", "time (s)", number(1)),
    Column("tokens_per_second", "useful tokens/s", number(0)),
    Column("peak_rss_mib", "peak RSS (MiB)", number(0)),
    Column("peak_allocated_mib", "peak device memory (MiB)", number(0)),
    Column("job_max_rss_mib", "peak RSS of the job (MiB)", number(0)),
    Column("job_cpu_seconds", "CPU time of the job (s)", number(1)),
)


def resource_rows(experiment: Experiment) -> list[Row]:
    """One row per stage: time, memory and speed, as far as they were measured."""
    return [_resources(stage) for stage in experiment.in_order()]


def _resources(stage: StageFiles) -> Row:
    manifest = stage.manifest or {}
    # In a Slurm job srun starts the program: the benchmark sees the client of srun only.
    seconds, job = _benchmark(stage), {} if stage.slurm_job_id else _benchmark(stage)
    row = {
        "stage": stage.kind,
        "id": stage.id,
        "processes": len(stage.processes) or manifest.get("world_size"),
        "seconds": manifest.get("wall_seconds", measured(seconds.get("s"))),
        "tokens_per_second": _mean_speed(stage),
        "peak_rss_mib": stage.memory["peak_rss"] / MIB if stage.memory else None,
        "peak_allocated_mib": _peak_allocated(stage),
        "job_max_rss_mib": measured(job.get("max_rss")),
        "job_cpu_seconds": measured(job.get("cpu_time")),
    }
    return {key: value for key, value in row.items() if value is not None}


def _benchmark(stage: StageFiles) -> Benchmark:
    return stage.benchmark or {}


def _mean_speed(stage: StageFiles) -> float | None:
    speeds = [line.values["tokens_per_second"] for line in stage.metrics if "tokens_per_second" in line.values]
    return sum(speeds) / len(speeds) if speeds else None


def _peak_allocated(stage: StageFiles) -> float | None:
    phases = [phase for process in stage.processes for phase in process["phases"]]
    peaks = [phase["peak_allocated"] for phase in phases if "peak_allocated" in phase]
    return max(peaks) / MIB if peaks else None


MEMORY_COLUMNS = (
    "stage",
    "id",
    "rank",
    "host",
    "phase",
    "seconds",
    "start_rss",
    "peak_rss",
    "end_rss",
    "end_pss",
    "peak_allocated",
    "peak_active",
    "peak_reserved",
    "peak_inactive_split",
    "peak_device",
    "alloc_retries",
    "ooms",
)


def memory_rows(experiment: Experiment) -> list[Row]:
    """One row per stage, process and phase, in bytes; device figures only where an accelerator was used."""
    return [
        {"stage": stage.kind, "id": stage.id, "rank": process["rank"], "host": process["host"]}
        | {("phase" if key == "name" else key): value for key, value in phase.items()}
        for stage in experiment.in_order()
        for process in stage.processes
        for phase in process["phases"]
    ]


EFFICIENCY_NOTE = (
    "Memory is that of the node with the most, summed over its processes; a Slurm job needs about 300 MB more, for "
    "Snakemake. Time is that of the attempt that finished. CPU use is Slurm's, where it keeps accounts."
)


EFFICIENCY_COLUMNS = (
    Column("stage", "stage"),
    Column("id", "ID"),
    Column("job", "Slurm job"),
    Column("nodes", "nodes"),
    Column("gpus", "GPUs"),
    Column("gpu_reserved_mb", "device memory used (MB)", number(0)),
    Column("mem_mb", "memory asked (MB)", number(0)),
    Column("used_mb", "memory used (MB)", number(0)),
    Column("mem_share", "memory used", percent),
    Column("runtime", "time asked (min)", number(0)),
    Column("minutes", "time used (min)", number(1)),
    Column("time_share", "time used", percent),
    Column("cpu_share", "CPU use", percent),
)


def jobs_of(experiment: Experiment) -> list[str]:
    """IDs of the Slurm jobs that made an experiment's stages."""
    return [stage.slurm_job_id for stage in experiment.in_order() if stage.slurm_job_id]


def efficiency_rows(experiment: Experiment, cpu_use: Mapping[str, float]) -> list[Row]:
    """One row per stage whose request is known.

    Args:
        experiment: the runs and their files.
        cpu_use: share of the CPU time that a Slurm job used, by job ID.

    Returns:
        Rows with the keys of `EFFICIENCY_COLUMNS`; what was not measured is left out. MB are 10^6 bytes.
    """
    return [_efficiency(stage, cpu_use) for stage in experiment.in_order() if stage.execution]


def _efficiency(stage: StageFiles, cpu_use: Mapping[str, float]) -> Row:
    asked, job = stage.execution, stage.slurm_job_id
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


def _used_mb(stage: StageFiles) -> float | None:
    """Peak memory of the fullest node."""
    hosts: dict[str, float] = {}
    for process in stage.processes:
        hosts[process["host"]] = hosts.get(process["host"], 0.0) + process["peak_rss"] / 1e6
    if hosts:
        return max(hosts.values())
    job = measured(_benchmark(stage).get("max_rss"))  # MiB, of all processes of the job
    return None if job is None else job * MIB / 1e6


def _minutes(stage: StageFiles) -> float | None:
    seconds = measured(_benchmark(stage).get("s", (stage.manifest or {}).get("wall_seconds")))
    return None if seconds is None else seconds / 60


def _gpu_reserved_mb(stage: StageFiles) -> float | None:
    phases = [phase for process in stage.processes for phase in process["phases"]]
    peaks = [phase["peak_reserved"] / 1e6 for phase in phases if "peak_reserved" in phase]
    return max(peaks, default=None)
