"""What an experiment is made of: runs.json, which asks for its tables, and stages.json, which stands beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from rlhf.errors import UserError
from rlhf.files import read_json, read_object

STAGES = "stages.json"
MODEL_ROLES = ("policy", "reward_model")


@dataclass(frozen=True)
class ExperimentRun:
    """One seed at one point of the sweep: sweep key -> value, and stage kind -> stage ID."""

    point: dict[str, Any]
    seed: int
    stages: dict[str, str]

    def stage(self, role: str) -> tuple[str, str]:
        """(stage kind, ID); the roles `policy` and `reward_model` are both of kind `model`."""
        return ("model" if role in MODEL_ROLES else role), self.stages[role]


class StagePlace(TypedDict):
    """A stage's ID, and its folder relative to the project."""

    id: str
    path: str


class RunStages(TypedDict):
    """What one run is made of: role -> stage."""

    point: dict[str, Any]
    seed: int
    stages: dict[str, StagePlace]


class StageId(TypedDict):
    """Kind and ID of a stage."""

    stage: str
    id: str


class _StageCode(StageId):
    path: str


class StageCode(_StageCode, total=False):
    """Whether the present code made a stage; `same_code` is absent where that is not known."""

    same_code: bool


class Provenance(TypedDict):
    """Content of stages.json.

    Attributes:
        code_hash: of the present code, as in a manifest.
        runs: what each run is made of.
        stages: all stages of all runs.
        made_by_older_code: those that other code than the present made.
    """

    schema_version: int
    experiment: str
    code_hash: str
    runs: list[RunStages]
    stages: list[StageCode]
    made_by_older_code: list[StageId]


def runs_text(runs: Iterable[ExperimentRun]) -> str:
    """Content of runs.json. The text is a parameter of a rule, so another form of it makes all tables anew."""
    return json.dumps([{"point": run.point, "seed": run.seed, "stages": run.stages} for run in runs])


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


def provenance_text(provenance: Provenance) -> str:
    """Content of stages.json."""
    return json.dumps(provenance, indent=2, allow_nan=False) + "\n"


def read_provenance(file: Path) -> Provenance:
    """What an experiment is made of.

    Raises:
        UserError: the file is missing or damaged.
    """
    provenance: Provenance = read_object(file)
    return provenance
