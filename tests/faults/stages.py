"""Runs stages of the small project in this process, and breaks them at chosen points."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import Interrupted
from rlhf.files import read_json, read_jsonl, sha256_tree
from rlhf.functions import load_judge
from rlhf.ppo.loop import train_ppo
from rlhf.training.reward import train_reward
from rlhf.training.sft import train_sft
from rlhf.training.stage import StagePaths, TrainingStage
from tests.project import Project
from tests.specifications import specification_of

SMALL = {
    "sft": {"num_train_epochs": 2, "global_batch_size": 32},
    "reward": {"num_train_epochs": 1, "global_batch_size": 32},
    "ppo": {"iterations": 3},
}
TIMES = ("time", "tokens_per_second", "time_generate", "time_score", "time_train")


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the stage catches it."""


@dataclass(frozen=True)
class Outcome:
    """What a finished stage left, without what depends on the clock."""

    weights: dict[str, str]
    metrics: list[dict[str, Any]]
    manifest: dict[str, Any]


def outcome_of(output: Path) -> Outcome:
    """What is in the folder of a finished stage."""
    weights = {name: digest for name, digest in sha256_tree(output).items() if name.endswith(".safetensors")}
    rows = [{key: row[key] for key in row if key not in TIMES} for row in read_jsonl(output / "metrics.jsonl")]
    return Outcome(weights, rows, read_json(output / "manifest.json"))


@dataclass
class StageRun:
    """One stage of the small project with changed settings, run again and again until it is done."""

    project: Project
    kind: str
    folder: Path
    settings: dict[str, Any]
    execution: dict[str, Any]

    @property
    def spec(self) -> Any:
        stage = self.project.plan.stages[self.kind, self.project.results(self.kind).name]
        return specification_of(stage, self.settings, self.execution)

    @property
    def state(self) -> Path:
        return self.folder / "state" / self.kind

    @property
    def journal(self) -> Path:
        """What the stage noted of its doings, where it runs slowly."""
        return self.folder / "journal.jsonl"

    def start(self) -> Outcome:
        """Run to the end, or to the exception that ends it."""
        spec = self.spec
        paths = StagePaths(
            [self.project.folder / "results/tokens" / id for id in spec.upstream.tokens],
            [self.project.folder / "results/split" / id / "rows" for id in spec.upstream.split],
            self.folder / "output",
            self.state,
        )
        with TrainingStage(spec, paths) as stage:
            if not stage.was_finished():
                self._train(stage)
        return self.outcome()

    def _train(self, stage: TrainingStage) -> None:
        if self.kind == "ppo":
            models = (self.project.results(kind) / "model" for kind in ("sft", "reward"))
            train_ppo(stage, *models, load_judge(stage.settings.gold_reward))
        else:
            train = {"sft": train_sft, "reward": train_reward}[self.kind]
            train(stage, self.project.folder / "resources/models" / stage.spec.upstream.model / "model")

    def outcome(self) -> Outcome:
        """What the finished stage left."""
        return outcome_of(self.folder / "output")

    def is_stopped(self) -> bool:
        """Start the stage; whether it stopped on request."""
        try:
            self.start()
        except Interrupted:
            return True
        return False


def at_call(
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    number: int,
    action: Callable[..., None],
    after: bool = False,
) -> None:
    """Do something before (or after) the n-th call of a function, counted from 1; the action gets its arguments."""
    original, calls = getattr(owner, name), [0]

    @functools.wraps(original)
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == number and not after:
            action(*args, **kwargs)
        result = original(*args, **kwargs)
        if calls[0] == number and after:
            action(*args, **kwargs)
        return result

    monkeypatch.setattr(owner, name, counted)


def kill(*args: Any, **kwargs: Any) -> None:
    """An action: die at once."""
    raise Killed


def request_stop(checkpoints: Any, *args: Any) -> None:
    """An action at a method of `Checkpoints`: what SIGTERM does."""
    checkpoints._interruption.reason = "SIGTERM"
