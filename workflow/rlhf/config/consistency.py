"""What the settings of an experiment must fulfil together.

Not checks of the classes: those also validate defaults and overlays, which mean something together only.
"""

from __future__ import annotations

from collections.abc import Iterator

from rlhf.config.deepspeed import deepspeed_mistakes
from rlhf.config.schema import ExperimentSettings
from rlhf.config.stages import PpoSettings, RewardSettings, SftSettings
from rlhf.errors import UserError


def require_consistency(settings: ExperimentSettings, place: str) -> None:
    """Refuse settings that contradict each other.

    Args:
        settings: of one experiment, defaults and sweep point merged in.
        place: its place in the configuration, for messages.

    Raises:
        UserError: naming every contradiction.
    """
    mistakes = list(_data(settings, place)) + [f"{place}.ppo: {mistake}" for mistake in _ppo(settings.ppo)]
    for stage in ("sft", "reward", "ppo"):
        mistakes += [f"{place}.{stage}: {mistake}" for mistake in _engines(getattr(settings, stage))]
    if mistakes:
        raise UserError("\n  ".join(mistakes))


def _data(settings: ExperimentSettings, place: str) -> Iterator[str]:
    if not settings.data_path:
        yield f"{place}.data_path: name at least one dataset of `datasets`"


def _ppo(ppo: PpoSettings) -> Iterator[str]:
    if ppo.prompts_per_rollout % ppo.minibatches:
        yield f"minibatches ({ppo.minibatches}) must divide prompts_per_rollout ({ppo.prompts_per_rollout})"
    critic_free = ppo.advantage_estimator != "gae"
    if critic_free and ppo.answers_per_prompt < 2:
        yield f"advantage_estimator {ppo.advantage_estimator} compares answers; set answers_per_prompt above 1"
    if critic_free and ppo.critic_warmup_iterations:
        yield f"critic_warmup_iterations: {ppo.advantage_estimator} has no value model; set it to 0"
    if ppo.iterations is not None and ppo.critic_warmup_iterations >= ppo.iterations:
        yield f"critic_warmup_iterations ({ppo.critic_warmup_iterations}) must be below iterations ({ppo.iterations})"
    if ppo.kl_in == "loss" and ppo.kl_estimator == "k1":
        yield "kl_estimator k1 has no gradient on average as a loss; use k2 or k3, or kl_in: reward"
    if ppo.kl_target is not None and ppo.kl_coefficient == 0:
        yield "kl_target scales kl_coefficient, which is 0; start from a positive one, for example 0.1"
    if ppo.reference == "adapters_off" and not (ppo.actor.lora_dim and ppo.actor.only_optimize_lora):
        yield "reference: adapters_off needs actor.lora_dim and actor.only_optimize_lora, else other weights move too"


def _engines(stage: SftSettings | RewardSettings | PpoSettings) -> Iterator[str]:
    execution = stage.execution
    if isinstance(stage, PpoSettings):
        zero_stages = [stage.execution.actor_zero_stage]
        zero_stages += [stage.execution.critic_zero_stage] if stage.advantage_estimator == "gae" else []
    else:
        zero_stages = [stage.execution.zero_stage]
    if stage.dtype == "fp16" and execution.gpus_per_node == 0:
        yield "dtype fp16 needs a GPU, and execution.gpus_per_node is 0; use bf16 or fp32"
    if execution.offload and not any(zero_stages):
        yield "execution.offload has no effect with ZeRO 0; set zero_stage (ppo: actor_zero_stage) to 1, 2 or 3"
    for mistake in deepspeed_mistakes(execution.deepspeed_config, stage.dtype, zero_stages):
        yield f"execution.deepspeed_config: {mistake}"
