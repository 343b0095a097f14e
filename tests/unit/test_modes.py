"""What computes with dropout and gradients, and what without; and that dropout follows the seed of the stage."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rlhf.errors import UserError
from rlhf.ppo import loop
from rlhf.ppo.checks import SamplingError
from rlhf.training.reward import GroupPreference
from rlhf.training.sft import AnswerLikelihood
from rlhf.training.stage import StagePaths, TrainingStage
from tests.oracle.conftest import Start, starts  # noqa: F401  (a fixture)
from tests.oracle.stages import Outcome, run
from tests.specifications import specification

SUPERVISED: dict[str, Any] = {
    "global_batch_size": 4,
    "num_train_epochs": 2,
    "eval_interval": 1,
    "max_seq_len": 32,
    "dtype": "fp32",
    "learning_rate": 1.0e-3,
}
OBJECTIVES: dict[str, Any] = {"sft": AnswerLikelihood, "reward": GroupPreference}


def train(kind: str, folder: Path, begin: Start, **settings: Any) -> Outcome:
    return run(kind, folder, [begin.data], {kind: SUPERVISED | settings}, model=begin.policy)


@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_steps_drop_units_and_evaluations_do_not(kind, starts, tmp_path, group, monkeypatch):  # noqa: F811
    """An evaluation in the middle leaves training as it was; the loss before the first step is that without dropout."""
    seen: list[tuple[bool, bool]] = []
    rates: set[float] = set()
    loss = OBJECTIVES[kind].loss

    def watched(self: Any, model: nn.Module, *args: Any) -> Any:
        seen.append((model.module.training, torch.is_grad_enabled()))  # an engine has no mode of its own
        rates.update(module.p for module in model.modules() if isinstance(module, nn.Dropout))
        return loss(self, model, *args)

    monkeypatch.setattr(OBJECTIVES[kind], "loss", watched)
    dropped = train(kind, tmp_path / "dropped", starts["gpt2"], dropout=0.3)
    assert set(seen) == {(True, True), (False, False)}
    changes = [a != b for a, b in zip(seen, seen[1:], strict=False)]
    assert sum(changes) == 2 * len(dropped.lines("train"))  # evaluation, step, evaluation, step, ..., evaluation
    assert rates == {0.3}
    plain = train(kind, tmp_path / "plain", starts["gpt2"], dropout=0.0)
    assert dropped.lines("eval")[0]["loss"] == plain.lines("eval")[0]["loss"]
    for a, b in zip(dropped.lines("train"), plain.lines("train"), strict=True):
        assert a["loss"] != pytest.approx(b["loss"], rel=1e-4)


def test_libraries_draw_from_the_seed_of_the_stage(tmp_path, group):
    drawn = []
    for number, seed in enumerate((1, 1, 2)):
        torch.manual_seed(99)
        paths = StagePaths([], [], tmp_path / f"output-{number}", tmp_path / f"state-{number}")
        with TrainingStage(specification("sft", seed=seed), paths):
            drawn.append((float(torch.rand(1)), float(np.random.rand()), random.random()))
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in zip(drawn[0], drawn[2], strict=True))


PPO: dict[str, Any] = {
    "iterations": 1,
    "prompts_per_rollout": 4,
    "max_prompt_seq_len": 16,
    "max_answer_seq_len": 6,
    "dtype": "fp32",
    "actor": {"num_warmup_steps": 0},
    "critic": {"num_warmup_steps": 0},
}


def optimise(folder: Path, begin: Start) -> Outcome:
    return run("ppo", folder, [begin.data], {"ppo": PPO}, sft=begin.policy, reward=begin.reward)


def test_a_rollout_is_sampled_and_scored_in_evaluation_mode(starts, tmp_path, group, monkeypatch):  # noqa: F811
    modes: dict[str, list[bool]] = {}
    generate, score = loop.generate, loop.score_samples

    def generated(model: nn.Module, *args: Any) -> Any:
        modes["generate"] = [model.training]
        return generate(model, *args)

    def scored(samples: Any, partition: Any, scorers: Any, *args: Any) -> Any:
        modes["score"] = [engine.module.training for engine in (scorers.policy, scorers.critic)]
        return score(samples, partition, scorers, *args)

    monkeypatch.setattr(loop, "generate", generated)
    monkeypatch.setattr(loop, "score_samples", scored)
    outcome = optimise(tmp_path / "ppo", starts["gpt2"])
    assert modes == {"generate": [False], "score": [False, False]}
    assert all(trainer.module.training for trainer in outcome.witness.trainers)


def test_a_rollout_that_sampling_and_training_see_differently_is_not_trained_on(
    starts,  # noqa: F811
    tmp_path,
    group,
    monkeypatch,
):
    monkeypatch.setattr(loop, "sampling_error", lambda *args: SamplingError(1.0, 0.5))
    with pytest.raises(UserError, match=r"log-probabilities of the same tokens differ by up to 1\.00"):
        optimise(tmp_path / "ppo", starts["gpt2"])
    assert not (tmp_path / "ppo/model").exists()
