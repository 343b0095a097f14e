"""A run that was stopped between two steps ends as one that was not: small stages with all they can hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf.errors import Interrupted
from rlhf.training.checkpoints import Checkpoints
from tests.faults.stages import at_call, request_stop
from tests.oracle.conftest import Start, starts  # noqa: F401  (a fixture)
from tests.oracle.stages import Outcome, run, weights_in

CLOCK = {"time", "tokens_per_second", "time_generate", "time_score", "time_train"}
SCHEDULE = {"lr_scheduler_type": "cosine", "num_warmup_steps": 2}
SUPERVISED: dict[str, Any] = {
    **SCHEDULE,
    "learning_rate": 3.0e-2,  # so much that the best weights are those after two steps
    "global_batch_size": 4,
    "num_train_epochs": 4,
    "eval_interval": 1,
    "keep_best": True,
    "max_seq_len": 32,
    "dropout": 0.2,
    "dtype": "fp32",
}
PPO: dict[str, Any] = {
    "iterations": 4,
    "prompts_per_rollout": 4,
    "ppo_epochs": 1,
    "minibatches": 2,
    "max_prompt_seq_len": 16,
    "max_answer_seq_len": 6,
    "kl_coefficient": 0.3,
    "kl_target": 0.01,
    "kl_horizon": 8,
    "ptx_coefficient": 0.5,
    "ptx_rows_per_step": 3,
    "ema_decay": 0.6,
    "critic_warmup_iterations": 1,
    "dtype": "fp32",
    "actor": {"learning_rate": 3.0e-3, **SCHEDULE},
    "critic": {"learning_rate": 3.0e-3, **SCHEDULE},
}


def start(kind: str, folder: Path, begin: Start) -> Outcome:
    models = {"sft": begin.policy, "reward": begin.reward} if kind == "ppo" else {"model": begin.policy}
    return run(kind, folder, [begin.data], {kind: PPO if kind == "ppo" else SUPERVISED}, **models)


def measured(outcome: Outcome) -> list[dict[str, Any]]:
    return [{key: line[key] for key in line.keys() - CLOCK} for line in outcome.jsonl("metrics.jsonl")]


@pytest.mark.parametrize(("kind", "boundary"), [("sft", 4), ("reward", 5), ("ppo", 3)])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(kind, boundary, starts, tmp_path, group):  # noqa: F811
    """Best and average weights, optimizers, schedules, KL coefficient, drawn prompts and rows, and random numbers."""
    whole = start(kind, tmp_path / "whole", starts["gpt2"])
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, Checkpoints, "boundary", boundary, request_stop)
        with pytest.raises(Interrupted):
            start(kind, tmp_path / "broken", starts["gpt2"])
    resumed = start(kind, tmp_path / "broken", starts["gpt2"])
    assert measured(resumed) == measured(whole)
    folders = ("model", "model_ema") if kind == "ppo" else ("model",)
    expected, found = ([weights_in(outcome.output / folder) for folder in folders] for outcome in (whole, resumed))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, weight in theirs.items():
            np.testing.assert_array_equal(ours[name], weight, err_msg=name)
    if kind == "ppo":
        last, average = expected
        assert any((average[name] != weight).any() for name, weight in last.items())
        assert len({line["kl_coefficient"] for line in measured(whole)}) == 4
    else:
        losses = [line["loss"] for line in whole.lines("eval")]
        assert 0 < int(np.argmin(losses)) < boundary - 1 < len(losses) - 1
