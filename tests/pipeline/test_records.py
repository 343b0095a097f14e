"""What real stages leave is what the types of these files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from rlhf.records.benchmark import Benchmark
from rlhf.records.checks import ChecksReport
from rlhf.records.evaluation import BaselineEvaluation, EvaluatedStage, PpoEvaluation, RewardEvaluation, SftEvaluation
from rlhf.records.experiment import Provenance
from rlhf.records.manifest import Manifest, ModelManifest
from rlhf.records.memory import MemoryReport
from rlhf.records.metrics import read_metrics
from rlhf.records.plan import StagePlan
from rlhf.records.samples import BaselineSample, SamplePair
from tests.project import Project
from tests.records import problems

FILES: dict[str, Any] = {
    "results/sft/*/manifest.json": Manifest,
    "results/reward/*/manifest.json": Manifest,
    "results/ppo/*/manifest.json": Manifest,
    "resources/models/*/manifest.json": ModelManifest,
    "results/*/*/memory.json": MemoryReport,
    "results/*/*/memory_plan.json": StagePlan,
    "results/check_ppo/*/checks.json": ChecksReport,
    "results/experiments/*/stages.json": Provenance,
    "results/baseline/*/samples.jsonl": BaselineSample,
    "results/evaluate_ppo/*/samples.jsonl": SamplePair,
}
EVALUATIONS: dict[str, Any] = {
    "evaluate_sft": SftEvaluation,
    "evaluate_reward": RewardEvaluation,
    "baseline": BaselineEvaluation,
    "evaluate_ppo": PpoEvaluation,
}


def contents(project: Project, pattern: str) -> list[tuple[Path, Any]]:
    """Each file with what it holds, or with each of its lines."""
    files = sorted(project.folder.glob(pattern))
    assert files, pattern
    return [
        (file, json.loads(text))
        for file in files
        for text in (file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()])
    ]


@pytest.mark.slow
def test_files_of_a_project_are_of_their_types(finished: Project) -> None:
    for pattern, kind in FILES.items():
        for file, content in contents(finished, pattern):
            assert problems(content, kind) == [], file


@pytest.mark.slow
def test_evaluations_are_of_the_types_of_their_kinds(finished: Project) -> None:
    for stage, kind in EVALUATIONS.items():
        for file, content in contents(finished, f"results/{stage}/*/evaluation.json"):
            head = {key: value for key, value in content.items() if key in get_type_hints(EvaluatedStage)}
            assert problems(head, EvaluatedStage) == [], file
            assert problems({key: content[key] for key in content.keys() - head}, kind) == [], file


@pytest.mark.slow
def test_metrics_are_finite_numbers_at_steps_in_order(finished: Project) -> None:
    for kind in ("sft", "reward", "ppo"):
        for file in finished.folder.glob(f"results/{kind}/*/metrics.jsonl"):
            lines = read_metrics(file)
            assert [line.step for line in lines] == sorted(line.step for line in lines)
            assert {type(value) for line in lines for value in line.numbers.values()} <= {int, float}, file


@pytest.mark.slow
def test_benchmarks_have_what_is_read_of_them(finished: Project) -> None:
    known = get_type_hints(Benchmark)
    for file, content in contents(finished, "benchmarks/*/*.jsonl"):
        assert known.keys() <= content.keys(), file
        assert problems({key: content[key] for key in known}, Benchmark) == [], file
