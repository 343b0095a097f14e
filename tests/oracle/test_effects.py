"""A key that is said to have no effect has none: with any value of it, a stage computes the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.config.effects import without_effect
from rlhf.config.expand import deep_merge
from rlhf.config.stages import PpoSettings, RewardSettings, SftSettings
from rlhf.ppo.experience import make_experience
from rlhf.ppo.samples import Answer, Partition, Samples
from rlhf.ppo.scoring import Scores
from tests.oracle.conftest import Start
from tests.oracle.stages import Outcome, run, weights_in

RATES: dict[str, Any] = {"learning_rate": 2.0e-3, "lora_module_name": "attn"}
CONSTANT = {"lr_scheduler_type": "constant"}
LORA = {"lora_dim": 2, "lora_learning_rate": 6.0e-3}
ALONE = {**LORA, "only_optimize_lora": True}
SUPERVISED: dict[str, Any] = {"global_batch_size": 4, "max_seq_len": 32, "dropout": 0.0, "dtype": "fp32", **RATES}
PPO: dict[str, Any] = {
    "iterations": 2,
    "prompts_per_rollout": 4,
    "minibatches": 2,
    "ppo_epochs": 2,
    "max_prompt_seq_len": 16,
    "max_answer_seq_len": 6,
    "dtype": "fp32",
    "actor": {**RATES, "num_warmup_steps": 0},
    "critic": {**RATES, "num_warmup_steps": 0},
}
ONE_STEP = {"minibatches": 1, "ppo_epochs": 1}
CRITIC_FREE = {"answers_per_prompt": 2, "whiten_advantages": True}
# Name -> stage, what is set, and odd values of all keys without effect.
IDLE_LORA = {"lora_alpha": 7.0, "lora_learning_rate": 0.3, "only_optimize_lora": True, "lora_module_name": "c_"}
IDLE_PPO = {"kl_horizon": 3, "ptx_rows_per_step": 2, "num_train_epochs": 5}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "sft, whole": ("sft", CONSTANT, {**IDLE_LORA, "num_warmup_steps": 6}),
    "sft, adapters alone": ("sft", ALONE, {"learning_rate": 0.7}),
    "sft, patience": ("sft", {"num_train_epochs": 2}, {"early_stopping_patience": 2, **IDLE_LORA}),
    "reward, whole": ("reward", CONSTANT, {**IDLE_LORA, "num_warmup_steps": 6}),
    "ppo, adapters alone, no penalty": (
        "ppo",
        {"actor": ALONE, "kl_coefficient": 0.0},
        {**IDLE_PPO, "actor": {"learning_rate": 0.7}, "critic": IDLE_LORA, "kl_estimator": "k3", "kl_in": "loss"},
    ),
    "ppo, one step": (
        "ppo",
        {**ONE_STEP, "critic": CONSTANT},
        {**IDLE_PPO, "clip_range": 1e-3, "value_clip_range": 1e-3, "critic": {"num_warmup_steps": 9}},
    ),
    **{
        f"ppo, {estimator}": (
            "ppo",
            {**CRITIC_FREE, "advantage_estimator": estimator},
            {**IDLE_PPO, "critic": {"learning_rate": 0.7, "lora_dim": 3}, "gamma": 0.3, "gae_lambda": 0.2},
        )
        for estimator in ("rloo", "grpo")
    },
}
SETTINGS = {"sft": SftSettings, "reward": RewardSettings, "ppo": PpoSettings}
CLOCK = {"time", "tokens_per_second", "time_generate", "time_score", "time_train"}


def measured(outcome: Outcome) -> list[dict[str, Any]]:
    """The metrics, without those of the clock and what is measured of a loss whose weight is 0."""
    rows = outcome.jsonl("metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in CLOCK | {"kl_loss"}} for row in rows]


@pytest.mark.parametrize("name", CASES)
def test_keys_without_effect_have_none(starts: dict[str, Start], group: None, tmp_path: Path, name: str) -> None:
    kind, given, idle = CASES[name]
    start = starts["gpt2"]
    base = PPO if kind == "ppo" else SUPERVISED
    own = base | given | {key: base[key] | value for key, value in given.items() if isinstance(value, dict)}
    unused = without_effect(SETTINGS[kind].model_validate(deep_merge(own, idle)))
    assert {key for key in dotted(idle) if not {key, key.partition(".")[0]} & unused.keys()} == set()
    models = {"ppo": {"sft": start.policy, "reward": start.reward}}.get(kind, {"model": start.policy})
    plain, odd = (
        run(kind, tmp_path / title, [start.data], {kind: own}, idle=keys, **models)
        for title, keys in (("plain", {}), ("odd", idle))
    )
    assert measured(plain) == measured(odd)
    before, after = (weights_in(outcome.output / "model") for outcome in (plain, odd))
    assert before.keys() == after.keys()
    for weight in before:
        np.testing.assert_array_equal(before[weight], after[weight])


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_the_scale_of_rewards_is_divided_out(estimator: str) -> None:
    """So far as the small terms in the denominators allow, on rewards of a deviation near 1."""
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(6) < torch.tensor([[6], [3], [5], [1]])).float()
    samples = Samples(
        [np.array([5])] * 4, [Answer(np.arange(int(n)), np.zeros(int(n)), True) for n in mask.sum(1)], [0, 0, 1, 1]
    )
    tables = [torch.randn(4, 6, generator=generator) * mask for _ in range(2)]
    scores = Scores(
        logprobs=tables[0],
        ref_logprobs=tables[1],
        entropy=torch.zeros(4, 6),
        values=None,
        score=torch.randn(4, generator=generator),
        partition=Partition([]),
    )
    settings = {"advantage_estimator": estimator, **CRITIC_FREE, "normalise_score": False}
    plain, scaled = (
        make_experience(samples, scores, PpoSettings(**settings, whiten_rewards=whiten), 0.1).advantages
        for whiten in (False, True)
    )
    torch.testing.assert_close(plain, scaled, rtol=1e-3, atol=1e-3)
    assert "whiten_rewards" in without_effect(PpoSettings(**settings))


def dotted(keys: dict[str, Any], prefix: str = "") -> list[str]:
    return [
        leaf
        for key, value in keys.items()
        for leaf in (dotted(value, f"{key}.") if isinstance(value, dict) else [f"{prefix}{key}"])
    ]
