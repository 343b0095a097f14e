"""Requested against used: from the files of a finished stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf.records.experiment import ExperimentRun
from rlhf.reporting.collect import Experiment, StageFiles
from rlhf.reporting.resources import EFFICIENCY_COLUMNS, efficiency_rows, jobs_of, resource_rows

EXECUTION = {"nodes": 2, "gpus_per_node": 4, "mem_mb": 8000, "runtime": 60}


def process(host: str, peak: int, **phase: int) -> dict[str, Any]:
    return {"rank": 0, "host": host, "peak_rss": peak, "phases": [{"name": "train", "peak_rss": peak, **phase}]}


def experiment(**stages: StageFiles) -> Experiment:
    files = {(kind, stage.id): stage for kind, stage in stages.items()}
    run = ExperimentRun({}, 1, {kind: stage.id for kind, stage in stages.items()})
    return Experiment("e", [run], files, Path("."))


TRAINED = StageFiles(
    "sft",
    "a",
    Path("results/sft/a"),
    manifest={"spec": {"execution": EXECUTION}, "slurm_job_id": "7", "wall_seconds": 500.0},
    memory={
        "peak_rss": 3 * 10**9,
        "processes": [
            process("n1", 10**9),
            process("n2", 3 * 10**9, peak_reserved=5 * 10**9),
            process("n1", 10**9, peak_reserved=6 * 10**9),
        ],
    },
    benchmark={"s": 600.0, "max_rss": 9.0, "cpu_time": 0.1},
)
JUDGED = StageFiles(
    "evaluate_sft",
    "b",
    Path("results/evaluate_sft/b"),
    evaluation={"loss": 1.0, "execution": EXECUTION | {"nodes": 1, "gpus_per_node": 0}},
    benchmark={"s": 30.0, "max_rss": 1000.0},
)


def test_memory_is_that_of_the_fullest_node_and_time_that_of_the_job() -> None:
    (row,) = efficiency_rows(experiment(sft=TRAINED), {"7": 0.25, "8": 1.0})
    assert row == {
        "stage": "sft",
        "id": "a",
        "job": "7",
        "nodes": 2,
        "gpus": 8,
        "gpu_reserved_mb": 6000.0,
        "mem_mb": 8000,
        "used_mb": 3000.0,
        "mem_share": 0.375,
        "runtime": 60,
        "minutes": 10.0,
        "time_share": pytest.approx(1 / 6),
        "cpu_share": 0.25,
    }
    assert row.keys() == {column.key for column in EFFICIENCY_COLUMNS}


def test_an_evaluation_is_measured_by_its_benchmark() -> None:
    (row,) = efficiency_rows(experiment(evaluate_sft=JUDGED), {})
    assert (row["used_mb"], row["minutes"]) == (pytest.approx(1048.576), 0.5)
    assert not {"job", "cpu_share", "gpu_reserved_mb"} & row.keys()


def test_a_stage_without_a_known_request_has_no_row() -> None:
    found = experiment(sft=StageFiles("sft", "a", Path("results/sft/a"), manifest={"wall_seconds": 1.0}))
    assert efficiency_rows(found, {}) == []


def test_jobs_are_those_of_slurm() -> None:
    assert jobs_of(experiment(sft=TRAINED, evaluate_sft=JUDGED)) == ["7"]


def test_the_benchmark_of_a_trainer_under_srun_is_not_taken_for_the_jobs() -> None:
    """It measured the client of srun: 9 MiB."""
    under_srun, alone = resource_rows(experiment(sft=TRAINED, evaluate_sft=JUDGED))
    assert not {"job_max_rss_mib", "job_cpu_seconds"} & under_srun.keys()
    assert alone["job_max_rss_mib"] == 1000.0
    submitted = replace(JUDGED, evaluation={**JUDGED.evaluation, "slurm_job_id": "8"})  # type: ignore[typeddict-item]
    (evaluated,) = resource_rows(experiment(evaluate_sft=submitted))
    assert not {"job_max_rss_mib", "job_cpu_seconds"} & evaluated.keys()
