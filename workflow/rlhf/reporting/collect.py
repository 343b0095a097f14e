"""The files of an experiment's stages, read once; and which stages were made by older code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from rlhf.errors import UserError
from rlhf.files import JsonObject
from rlhf.phases import EVALUATIONS, PHASES, RULES
from rlhf.records.benchmark import Benchmark, read_benchmark
from rlhf.records.checks import ChecksReport, read_checks
from rlhf.records.evaluation import EvaluationRecord, Overlap, overlap, read_evaluation
from rlhf.records.experiment import ExperimentRun, Provenance, RunStages, StageCode, StageId
from rlhf.records.manifest import MANIFEST, Manifest, read_manifest
from rlhf.records.memory import MEMORY, MemoryReport, ProcessMemory, read_memory
from rlhf.records.metrics import METRICS, MetricsLine, read_metrics
from rlhf.records.plan import MEMORY_PLAN, MemoryPlan, read_plan


@dataclass(frozen=True)
class StageFiles:
    """What a finished stage left behind. Files it does not write are None or empty."""

    kind: str
    id: str
    folder: Path
    manifest: Manifest | None = None
    evaluation: EvaluationRecord | None = None
    memory: MemoryReport | None = None
    plan: MemoryPlan | None = None
    benchmark: Benchmark | None = None
    checks: ChecksReport | None = None
    metrics: list[MetricsLine] = field(default_factory=list)

    @property
    def processes(self) -> list[ProcessMemory]:
        """What was measured of each process; empty where nothing was."""
        return self.memory.get("processes", []) if self.memory is not None else []

    @property
    def execution(self) -> JsonObject:
        """How the stage ran, by its manifest or its evaluation; empty where neither tells."""
        if self.manifest:
            return cast(JsonObject, self.manifest.get("spec", {}).get("execution", {}))
        return self.evaluation.get("execution", {}) if self.evaluation else {}

    @property
    def slurm_job_id(self) -> str | None:
        """The Slurm job that made the stage; None outside of Slurm."""
        if self.manifest:
            return self.manifest.get("slurm_job_id")
        return self.evaluation.get("slurm_job_id") if self.evaluation else None


@dataclass(frozen=True)
class Experiment:
    """All runs of an experiment and the files of their stages."""

    name: str
    runs: list[ExperimentRun]
    stages: dict[tuple[str, str], StageFiles]
    root: Path

    def files(self, run: ExperimentRun, role: str) -> StageFiles | None:
        """The files of one stage of a run; None where the run has no such stage, as PPO in one that ends with SFT."""
        return self.stages[run.stage(role)] if role in run.stages else None

    def of_runs(self, runs: Iterable[ExperimentRun], role: str) -> list[StageFiles]:
        """The files of one stage of each run that has it."""
        return [stage for run in runs if (stage := self.files(run, role)) is not None]

    def note(self, phase: str, text: str) -> str:
        """A table's note, or why the table is empty."""
        return text if self.has(phase) else f"Nothing is here: `phases` of {self.name} leaves out {phase}."

    def has(self, role: str) -> bool:
        """Whether any run has such a stage."""
        return any(role in run.stages for run in self.runs)

    def points(self) -> list[list[ExperimentRun]]:
        """The runs grouped by sweep point, in the order of the runs."""
        groups: dict[str, list[ExperimentRun]] = {}
        for run in self.runs:
            groups.setdefault(json.dumps(run.point, sort_keys=True), []).append(run)
        return list(groups.values())

    def path(self, stage: StageFiles) -> str:
        """The folder of a stage, relative to the project."""
        return stage.folder.relative_to(self.root).as_posix()

    def label(self, point: Mapping[str, Any]) -> str:
        """A short name of a sweep point for legends and headings; the experiment's name where nothing is swept."""
        names = short_names(point)
        return ", ".join(f"{names[key]} = {value}" for key, value in point.items()) or self.name

    def in_order(self) -> list[StageFiles]:
        """All stages, upstream first."""
        return sorted(self.stages.values(), key=lambda stage: list(RULES).index(stage.kind))


def short_names(point: Iterable[str]) -> dict[str, str]:
    """Dotted key -> its last part, or the whole key where two keys share their last part."""
    keys = list(point)
    last = [key.rsplit(".", 1)[-1] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def read_experiment(name: str, runs: list[ExperimentRun], root: Path) -> Experiment:
    """Read the files of all stages of the runs; a stage shared by several runs is read once.

    Args:
        name: of the experiment.
        runs: as `rlhf.records.experiment.read_runs` gives them.
        root: project folder with results/, resources/ and benchmarks/.

    Raises:
        UserError: a file without which the tables would lie is missing.
    """
    needed = dict.fromkeys(run.stage(role) for run in runs for role in run.stages)
    return Experiment(name, runs, {(kind, stage): _read_stage(root, kind, stage) for kind, stage in needed}, root)


def stage_folder(root: Path, kind: str, identifier: str) -> Path:
    """Where a stage keeps its results."""
    top = root / "resources" / f"{kind}s" if kind in ("dataset", "model") else root / "results" / kind
    return top / identifier


def _read_stage(root: Path, kind: str, identifier: str) -> StageFiles:
    if kind not in RULES:
        raise UserError(f"stage kind {kind!r} of {identifier} is not known; known: {', '.join(RULES)}")
    folder = stage_folder(root, kind, identifier)
    has = {name: (folder / name).exists() for name in (MANIFEST, MEMORY, MEMORY_PLAN)}
    trained = kind in PHASES
    return StageFiles(
        kind,
        identifier,
        folder,
        manifest=read_manifest(folder) if has[MANIFEST] else None,
        evaluation=read_evaluation(folder) if kind in EVALUATIONS else None,
        memory=read_memory(folder) if has[MEMORY] else None,
        plan=read_plan(folder / MEMORY_PLAN) if has[MEMORY_PLAN] else None,
        benchmark=read_benchmark(root / "benchmarks" / kind / f"{identifier}.jsonl"),
        checks=read_checks(root / "results/check_ppo" / identifier / "checks.json") if kind == "ppo" else None,
        metrics=read_metrics(folder / METRICS) if trained else [],
    )


def largest_overlap(experiment: Experiment, runs: Iterable[ExperimentRun], stage: str) -> Overlap | None:
    """What of the data of an evaluation is trained on too, of the run of the largest share; None where nothing is."""
    found = [overlap(files.evaluation) for files in experiment.of_runs(runs, stage)]
    return max(filter(None, found), key=lambda one: one.seen / one.rows, default=None)


def provenance(experiment: Experiment, code_hash: str) -> Provenance:
    """Content of stages.json: what each run is made of, and which stages other code than the present made.

    Args:
        experiment: the runs and their files.
        code_hash: hash of the present code, as in a manifest.

    Returns:
        `stages` tells for every stage whether its code equals the present one; the entry is absent where the stage
        has no manifest. `made_by_older_code` lists those that differ.
    """
    stages = [_stage_entry(experiment, stage, code_hash) for stage in experiment.in_order()]
    older: list[StageId] = [
        {"stage": entry["stage"], "id": entry["id"]} for entry in stages if entry.get("same_code") is False
    ]
    runs: list[RunStages] = [
        {
            "point": run.point,
            "seed": run.seed,
            "stages": {
                role: {"id": run.stages[role], "path": experiment.path(experiment.stages[run.stage(role)])}
                for role in run.stages
            },
        }
        for run in experiment.runs
    ]
    return {
        "schema_version": 1,
        "experiment": experiment.name,
        "code_hash": code_hash,
        "runs": runs,
        "stages": stages,
        "made_by_older_code": older,
    }


def _stage_entry(experiment: Experiment, stage: StageFiles, code_hash: str) -> StageCode:
    entry: StageCode = {"stage": stage.kind, "id": stage.id, "path": experiment.path(stage)}
    code = (stage.manifest or {}).get("code")
    if code and code.get("hash"):
        entry["same_code"] = code["hash"] == code_hash
    return entry
