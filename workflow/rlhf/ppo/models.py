"""The models of PPO: policy and value model, which train, and reference and reward model, which do not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.config.stages import Role, adapters_off
from rlhf.data.corpus import Corpus
from rlhf.models.loading import load_policy, load_reward, load_reward_backbone, load_tokenizer
from rlhf.models.lora import add_lora
from rlhf.models.offload import OffloadedModel
from rlhf.models.scores import TokenScorer, answer_logits
from rlhf.ppo.reward import RewardScorer, reward_scorer, same_tokens
from rlhf.ppo.samples import Rectangle
from rlhf.ppo.scoring import Scorers
from rlhf.runtime.logging import get_logger
from rlhf.runtime.seeds import derive_seed
from rlhf.training.distributed import device
from rlhf.training.engine import EngineSettings, Trainer, partitioned_loading
from rlhf.training.inference import for_inference, inference_config
from rlhf.training.stage import PpoStage

logger = get_logger(__name__)


@dataclass
class PpoModels:
    """All models of a run: policy and perhaps value model, which train, and those that only score answers."""

    actor: Trainer
    critic: Trainer | None
    reference: nn.Module | None  # None where it is the policy with its adapters off
    reward_scorer: RewardScorer
    policy: PreTrainedModel
    adapted: Any
    tokenizer: PreTrainedTokenizerBase
    offloaded: list[OffloadedModel]  # those that are on the device only while they score

    @contextmanager
    def scoring(self) -> Iterator[Scorers]:
        """In the block all models are in evaluation mode, and those that rest on the host are on the device."""
        critic = self.critic
        with ExitStack() as stack:
            for model in self.offloaded:
                stack.enter_context(model.in_use())
            stack.enter_context(self.actor.evaluation())
            if critic is not None:
                stack.enter_context(critic.evaluation())
            value_model = None if critic is None else critic.engine
            yield Scorers(self.actor.engine, self._reference_logits, value_model, self.reward_scorer)

    def _reference_logits(self, part: Rectangle) -> Tensor:
        """Logits of the answer tokens under the SFT model: [answer tokens, vocab]."""
        if self.reference is not None:
            return answer_logits(self.reference, *part.inputs)
        with self.adapted.disable_adapter():
            return answer_logits(self.actor.engine, *part.inputs)


def load_models(
    stage: PpoStage, sft: Path, reward: Path, prompts: Corpus, policy_steps: int, value_steps: int
) -> PpoModels:
    """The models of PPO: the policy and its reference from SFT, the value and the reward model from phase 2.

    A reward model with another tokenizer than the policy's cannot become the value model, which reads the policy's
    ids: the value model then starts from the SFT model, with a fresh head.

    Args:
        stage: specification.
        sft: model folder of phase 1.
        reward: model folder of phase 2.
        policy_steps: optimizer steps of the policy, for its schedule.
        value_steps: optimizer steps of the value model, which trains while the policy waits, too.

    Raises:
        UserError: a folder is damaged, or a LoRA pattern matches nothing.
    """
    settings = stage.settings
    dtype = settings.dtype
    policy = load_policy(sft, dtype, settings.actor.dropout, _trained_loading(stage, "actor"))
    adapted = add_lora(policy, settings.actor, "ppo.actor")
    tokenizer, reward_tokenizer = load_tokenizer(sft), load_tokenizer(reward)
    scorer = _token_scorer(stage, load_reward(reward, dtype, 0.0, _frozen_config(stage, "critic")))
    reference = None
    if not adapters_off(settings, stage.execution):
        reference = _frozen(stage, load_policy(sft, dtype, 0.0, _frozen_config(stage, "actor")), "actor")
    critic = None
    if settings.advantage_estimator == "gae":
        value = _value_model(stage, sft, reward, same_tokens(tokenizer, reward_tokenizer))
        critic = Trainer(value, settings.critic, ppo_engine(stage, "critic"), value_steps)
    positions = getattr(scorer.model.config, "max_position_embeddings", None)
    frozen = _frozen(stage, scorer, "critic")
    return PpoModels(
        actor=Trainer(policy, settings.actor, ppo_engine(stage, "actor"), policy_steps),
        critic=critic,
        reference=reference,
        reward_scorer=reward_scorer(frozen, positions, reward_tokenizer, tokenizer, prompts, settings.score_at),
        policy=policy,
        adapted=adapted,
        tokenizer=tokenizer,
        offloaded=_offloaded(stage, reference, frozen),
    )


def ppo_engine(stage: PpoStage, role: Role) -> EngineSettings:
    """How the engine of the `actor` or the `critic` runs."""
    execution = stage.execution
    return EngineSettings(
        zero_stage=execution.zero_stage(role),
        dtype=stage.settings.dtype,
        micro_batch_size=execution.per_device_training_batch_size,
        offload=execution.offload,
        gradient_checkpointing=execution.gradient_checkpointing(role),
        overrides=execution.deepspeed_config,
    )


def _token_scorer(stage: PpoStage, model: PreTrainedModel) -> TokenScorer:
    return TokenScorer.normalised(model) if stage.settings.normalise_score else TokenScorer(model)


def _value_model(stage: PpoStage, sft: Path, reward: Path, same: bool) -> TokenScorer:
    settings = stage.settings
    dtype, dropout, zero3 = settings.dtype, settings.critic.dropout, _trained_loading(stage, "critic")
    if same:
        scorer = _token_scorer(stage, load_reward(reward, dtype, dropout, zero3))
    else:
        logger.info("the reward model has another tokenizer: it reads text, and the value model starts from the policy")
        scorer = TokenScorer(load_reward_backbone(sft, dtype, derive_seed(stage.seed, "value head"), dropout, zero3))
    add_lora(scorer.model, settings.critic, "ppo.critic")
    return scorer


def _trained_loading(stage: PpoStage, role: Role) -> dict[str, Any] | None:
    return partitioned_loading(stage.settings.optimization(role), ppo_engine(stage, role))


def _frozen(stage: PpoStage, model: nn.Module, role: Role) -> nn.Module:
    """A model for scoring only: partitioned where its trained twin is under ZeRO-3, else whole on every process."""
    return for_inference(model, _frozen_config(stage, role), stays_on_host=_offload(stage, role))


def _frozen_config(stage: PpoStage, role: Role) -> dict[str, Any] | None:
    """The DeepSpeed configuration of a model for scoring only; None where it needs no engine."""
    return inference_config(_trained_loading(stage, role), _offload(stage, role))


def _offload(stage: PpoStage, role: Role) -> bool:
    return stage.execution.offloads_frozen(role)


def _offloaded(stage: PpoStage, reference: nn.Module | None, reward: nn.Module) -> list[OffloadedModel]:
    """The frozen models that are copied from the host to the device to score; under ZeRO-3 DeepSpeed does that."""
    models: list[tuple[nn.Module | None, Role]] = [(reference, "actor"), (reward, "critic")]
    return [
        OffloadedModel(model, device())
        for model, role in models
        if model is not None and _offload(stage, role) and not isinstance(model, deepspeed.DeepSpeedEngine)
    ]
