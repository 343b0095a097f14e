"""What experiments ask of a model, checked as soon as the model is known: before anything is trained.

The facts come from the manifest of a cached model. A new model is checked when it is cached, and one that is cached
already whenever the configuration is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rlhf.config.schema import ExperimentSettings
from rlhf.config.stages import Optimization
from rlhf.errors import UserError
from rlhf.records.manifest import ModelManifest, read_model_manifest


@dataclass(frozen=True)
class Requirement:
    """One demand: a LoRA pattern that must match, or a sequence length that must fit.

    Attributes:
        key: configuration key it comes from.
        lora_module_name: part of the name of a linear module, or None.
        positions: longest sequence in tokens, or None.
    """

    key: str
    lora_module_name: str | None = None
    positions: int | None = None


def policy_requirements(settings: ExperimentSettings, place: str) -> list[Requirement]:
    """What an experiment asks of the model that becomes the policy."""
    ppo = settings.ppo
    longest = ppo.max_prompt_seq_len + ppo.max_answer_seq_len
    return [
        *_lora(settings.sft, f"{place}.sft"),
        *_lora(ppo.actor, f"{place}.ppo.actor"),
        Requirement(f"{place}.sft.max_seq_len", positions=settings.sft.max_seq_len),
        Requirement(f"{place}.ppo.max_prompt_seq_len + max_answer_seq_len", positions=longest),
    ]


def reward_requirements(settings: ExperimentSettings, place: str) -> list[Requirement]:
    """What an experiment asks of the model that becomes the reward model."""
    ppo = settings.ppo
    longest = ppo.max_prompt_seq_len + ppo.max_answer_seq_len
    return [
        *_lora(settings.reward, f"{place}.reward"),
        *_lora(ppo.critic, f"{place}.ppo.critic"),
        Requirement(f"{place}.reward.max_seq_len", positions=settings.reward.max_seq_len),
        Requirement(f"{place}.ppo.max_prompt_seq_len + max_answer_seq_len", positions=longest),
    ]


def read_facts(manifest: Path) -> ModelManifest:
    """What the manifest of a cached model says of it.

    Raises:
        UserError: the file is damaged.
    """
    try:
        facts = read_model_manifest(manifest)
    except UserError:
        facts = {}
    if not {"linear_modules", "max_positions"} <= facts.keys():
        raise UserError(f"{manifest}: damaged; run `rlhf-verify --discard`, and snakemake makes the model again")
    return facts


def require(facts: ModelManifest, requirements: Iterable[Requirement], model: str) -> None:
    """Check requirements against a model.

    Args:
        facts: `linear_modules` (names) and `max_positions` (tokens, or None where there is no limit).
        requirements: what experiments ask of it.
        model: its place in the configuration, for messages.

    Raises:
        UserError: a requirement is not met; the message names the key and what the model has.
    """
    names, limit = facts["linear_modules"], facts["max_positions"]
    for needed in requirements:
        pattern = needed.lora_module_name
        if pattern is not None and not any(pattern in name for name in names):
            examples = ", ".join(names[:3])
            raise UserError(
                f"{needed.key}: {pattern!r} matches no linear module of {model}; they are named like {examples}"
            )
        if needed.positions is not None and limit is not None and needed.positions > limit:
            raise UserError(f"{needed.key}: {needed.positions} tokens, but {model} has {limit} positions; lower it")


def _lora(optimization: Optimization, place: str) -> list[Requirement]:
    if optimization.lora_dim == 0:
        return []
    return [Requirement(f"{place}.lora_module_name", lora_module_name=optimization.lora_module_name)]
