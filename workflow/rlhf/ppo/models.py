"""The models of PPO: policy and value model, which train, and reference and reward model, which do not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.errors import UserError
from rlhf.models.loading import load_policy, load_reward, load_tokenizer
from rlhf.models.lora import add_lora
from rlhf.models.scores import TokenScorer
from rlhf.training.distributed import device
from rlhf.training.engine import EngineSettings, Trainer, deepspeed_config
from rlhf.training.stage import Stage


@dataclass
class PpoModels:
    """Two trained models and two frozen ones."""

    actor: Trainer
    critic: Trainer
    reference: nn.Module
    reward: nn.Module
    policy: PreTrainedModel
    adapted: Any
    tokenizer: PreTrainedTokenizerBase


def load_models(stage: Stage, sft: Path, reward: Path, total_steps: int) -> PpoModels:
    """The four models of PPO: the policy and its reference from SFT, the value and the reward model from phase 2.

    Raises:
        UserError: a folder is damaged, or a LoRA pattern matches nothing.
    """
    settings, execution = stage.settings, stage.execution
    dtype, actor, critic = settings["dtype"], settings["actor"], settings["critic"]
    policy = load_policy(sft, dtype, actor["dropout"])
    adapted = add_lora(policy, actor, "ppo.actor")
    value = load_reward(reward, dtype, critic["dropout"])
    add_lora(value, critic, "ppo.critic")
    return PpoModels(
        actor=Trainer(policy, actor, _engine_settings(stage, "actor"), total_steps),
        critic=Trainer(TokenScorer.normalised(value), critic, _engine_settings(stage, "critic"), total_steps),
        reference=_frozen(stage, load_policy(sft, dtype, 0.0), actor, "actor", execution["offload_reference_model"]),
        reward=_frozen(
            stage,
            TokenScorer.normalised(load_reward(reward, dtype, 0.0)),
            critic,
            "critic",
            execution["offload_reward_model"],
        ),
        policy=policy,
        adapted=adapted,
        tokenizer=load_tokenizer(sft),
    )


def require_one_tokenizer(sft: Path, reward: Path) -> None:
    """Policy and reward model must read the same ids.

    Raises:
        UserError: their vocabularies or end tokens differ.
    """
    first, second = load_tokenizer(sft), load_tokenizer(reward)
    if first.get_vocab() != second.get_vocab() or first.eos_token_id != second.eos_token_id:
        raise UserError(
            f"{sft} and {reward} have different tokenizers ({len(first)} and {len(second)} tokens), so the reward "
            "model would misread the policy's answers; choose policy and reward_model of one family"
        )


def _engine_settings(stage: Stage, role: str) -> EngineSettings:
    execution = stage.execution
    return EngineSettings(
        zero_stage=execution[f"{role}_zero_stage"],
        dtype=stage.settings["dtype"],
        micro_batch_size=execution["per_device_training_batch_size"],
        offload=execution["offload"],
        gradient_checkpointing=execution[f"{role}_gradient_checkpointing"],
        overrides=execution["deepspeed_config"],
    )


def _frozen(stage: Stage, model: nn.Module, optimization: dict[str, Any], role: str, offload: bool) -> nn.Module:
    """A model for scoring only: partitioned where its trained twin is under ZeRO-3, else whole on every process."""
    model.eval().requires_grad_(False)
    settings = _engine_settings(stage, role)
    if settings.zero_stage < 3:
        return model if offload else model.to(device())
    config = deepspeed_config(optimization, settings)
    config["zero_optimization"] = {"stage": 3} | ({"offload_param": {"device": "cpu"}} if offload else {})
    engine, *_ = deepspeed.initialize(model=model, config=config)
    engine.eval()
    return engine
