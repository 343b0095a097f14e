"""The files of an experiment's stages, read once; and which stages were made by older code."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.errors import UserError
from rlhf.files import read_json, read_jsonl

MODEL_ROLES = ("policy", "reward_model")
TRAINED = ("sft", "reward", "ppo")
EVALUATED = ("evaluate_sft", "evaluate_reward", "baseline", "evaluate_ppo")
STAGE_ORDER = (
    "dataset",
    "model",
    "sft",
    "evaluate_sft",
    "reward",
    "evaluate_reward",
    "baseline",
    "ppo",
    "evaluate_ppo",
)

Row = dict[str, Any]


@dataclass(frozen=True)
class ExperimentRun:
    """One seed at one point of the sweep: sweep key -> value, and stage kind -> stage ID."""

    point: dict[str, Any]
    seed: int
    stages: dict[str, str]

    def stage(self, role: str) -> tuple[str, str]:
        """(stage kind, ID); the roles `policy` and `reward_model` are both of kind `model`."""
        return ("model" if role in MODEL_ROLES else role), self.stages[role]


@dataclass(frozen=True)
class StageFiles:
    """What a finished stage left behind. Files it does not write are None or empty."""

    kind: str
    id: str
    folder: Path
    manifest: Row | None = None
    evaluation: Row | None = None
    memory: Row | None = None
    plan: Row | None = None
    benchmark: Row | None = None
    checks: Row | None = None
    metrics: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Experiment:
    """All runs of an experiment and the files of their stages."""

    name: str
    runs: list[ExperimentRun]
    stages: dict[tuple[str, str], StageFiles]
    root: Path

    def files(self, run: ExperimentRun, role: str) -> StageFiles:
        """The files of one stage of a run."""
        return self.stages[run.stage(role)]

    def points(self) -> list[list[ExperimentRun]]:
        """The runs grouped by sweep point, in the order of the runs."""
        groups: dict[str, list[ExperimentRun]] = {}
        for run in self.runs:
            groups.setdefault(json.dumps(run.point, sort_keys=True), []).append(run)
        return list(groups.values())

    def path(self, stage: StageFiles) -> str:
        """The folder of a stage, relative to the project."""
        return stage.folder.relative_to(self.root).as_posix()

    def label(self, point: dict[str, Any]) -> str:
        """A short name of a sweep point for legends and headings; the experiment's name where nothing is swept."""
        names = short_names(point)
        return ", ".join(f"{names[key]} = {value}" for key, value in point.items()) or self.name

    def in_order(self) -> list[StageFiles]:
        """All stages, upstream first."""
        return sorted(self.stages.values(), key=lambda stage: STAGE_ORDER.index(stage.kind))


def short_names(point: Iterable[str]) -> dict[str, str]:
    """Dotted key -> its last part, or the whole key where two keys share their last part."""
    keys = list(point)
    last = [key.rsplit(".", 1)[-1] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def read_runs(path: Path) -> list[ExperimentRun]:
    """The runs of an experiment from a list of `{"point": {...}, "seed": int, "stages": {kind: id}}`.

    Raises:
        UserError: the file is missing, is not of this form, or names no run.
    """
    rows = read_json(path)
    try:
        runs = [ExperimentRun(row["point"], int(row["seed"]), row["stages"]) for row in rows]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: each run needs point, seed and stages ({error!r}); run snakemake again") from None
    if not runs:
        raise UserError(f"{path}: names no run; check `seeds` and `sweep` of the experiment")
    return runs


def read_experiment(name: str, runs: list[ExperimentRun], root: Path) -> Experiment:
    """Read the files of all stages of the runs; a stage shared by several runs is read once.

    Args:
        name: of the experiment.
        runs: as `read_runs` gives them.
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
    if kind not in STAGE_ORDER:
        raise UserError(f"stage kind {kind!r} of {identifier} is not known; known: {', '.join(STAGE_ORDER)}")
    folder = stage_folder(root, kind, identifier)
    benchmarks = _optional_rows(root / "benchmarks" / kind / f"{identifier}.jsonl")
    metrics = folder / "metrics.jsonl"
    return StageFiles(
        kind,
        identifier,
        folder,
        manifest=_optional(folder / "manifest.json"),
        evaluation=read_json(folder / "evaluation.json") if kind in EVALUATED else None,
        memory=_optional(folder / "memory.json"),
        plan=_optional(folder / "memory_plan.json") if kind in TRAINED else None,
        benchmark=benchmarks[-1] if benchmarks else None,
        checks=read_json(root / "results/check_ppo" / identifier / "checks.json") if kind == "ppo" else None,
        metrics=_required_rows(metrics) if kind in TRAINED else _optional_rows(metrics),
    )


def _optional(path: Path) -> Row | None:
    return read_json(path) if path.exists() else None


def _optional_rows(path: Path) -> list[Row]:
    return read_jsonl(path) if path.exists() else []


def _required_rows(path: Path) -> list[Row]:
    if not path.exists():
        raise UserError(f"{path}: file not found; run the step that makes it (`snakemake -n` names it)")
    return read_jsonl(path)


def provenance(experiment: Experiment, code_hash: str) -> Row:
    """Content of stages.json: what each run is made of, and which stages other code than the present made.

    Args:
        experiment: the runs and their files.
        code_hash: hash of the present code, as in a manifest.

    Returns:
        `stages` tells for every stage whether its code equals the present one; the entry is absent where the stage
        has no manifest. `made_by_older_code` lists those that differ.
    """
    stages = [_stage_entry(experiment, stage, code_hash) for stage in experiment.in_order()]
    older = [{"stage": entry["stage"], "id": entry["id"]} for entry in stages if entry.get("same_code") is False]
    runs = [
        {
            "point": run.point,
            "seed": run.seed,
            "stages": {
                role: {"id": run.stages[role], "path": experiment.path(experiment.files(run, role))}
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


def _stage_entry(experiment: Experiment, stage: StageFiles, code_hash: str) -> Row:
    entry: Row = {"stage": stage.kind, "id": stage.id, "path": experiment.path(stage)}
    made_by = ((stage.manifest or {}).get("code") or {}).get("hash")
    return {**entry, "same_code": made_by == code_hash} if made_by else entry
