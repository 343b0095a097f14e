"""What the settings of an experiment must fulfil together.

Not checks of the classes: those also validate defaults and overlays, which mean something together only.
"""

from __future__ import annotations

from collections.abc import Iterator

from rlhf.config.schema import ExperimentSettings
from rlhf.config.stages import PpoSettings
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
    if mistakes:
        raise UserError("\n  ".join(mistakes))


def _data(settings: ExperimentSettings, place: str) -> Iterator[str]:
    if not settings.data_path:
        yield f"{place}.data_path: name at least one dataset of `datasets`"
    for name in sorted(settings.data_weights.keys() - set(settings.data_path)):
        yield f"{place}.data_weights: {name!r} is not in data_path: {', '.join(settings.data_path)}"


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
