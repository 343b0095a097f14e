"""PPO's optimisation of policy and value model on one rollout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf.data.batching import MicroBatch, micro_batches
from rlhf.models.scores import answer_logits, inference_device, token_logprobs
from rlhf.ppo.checks import require_unit_ratio
from rlhf.ppo.experience import Experience
from rlhf.ppo.losses import log_ratio, policy_loss, value_loss
from rlhf.ppo.rollout import Rectangle, Samples, answer_values
from rlhf.training.distributed import all_gather, all_sum, rank, world_size
from rlhf.training.engine import Trainer


@dataclass
class UpdateStatistics:
    """Sums over the answer tokens of all updates of a rollout, on this process."""

    tokens: float = 0.0
    policy_loss: float = 0.0
    value_loss: float = 0.0
    clipped: float = 0.0
    ratio: float = 0.0
    squared_log_ratio: float = 0.0
    ratio_max: float = 0.0
    first_ratio_error: float = 0.0
    norms: list[tuple[float, float]] = field(default_factory=list)

    def add_policy(self, loss: Tensor, log_ratios: Tensor, mask: Tensor, clip_range: float) -> None:
        """Count one micro-batch of the policy."""
        ratio = log_ratios.exp()
        self.tokens += float(mask.sum())
        self.policy_loss += float(loss)
        self.clipped += float((((ratio - 1).abs() > clip_range).float() * mask).sum())
        self.ratio += float((ratio * mask).sum())
        self.squared_log_ratio += float((log_ratios.square() * mask).sum())
        self.ratio_max = max(self.ratio_max, float((ratio * mask).max()))

    def metrics(self) -> dict[str, float]:
        """Means over all processes' tokens, and maxima over all processes."""
        sums = (self.policy_loss, self.value_loss, self.clipped, self.ratio, self.squared_log_ratio)
        tokens, *totals = all_sum(self.tokens, *sums)
        names = ("policy_loss", "value_loss", "clip_fraction", "ratio_mean", "approx_kl")
        means = {name: total / tokens for name, total in zip(names, totals, strict=True)}
        means["approx_kl"] *= 0.5  # 1/2 (log ratio)^2, Schulman's k2
        norms = np.mean(self.norms, axis=0)
        return means | {
            "ratio_max": max(all_gather(self.ratio_max)),
            "first_ratio_error": self.first_ratio_error,
            "grad_norm": float(norms[0]),
            "critic_grad_norm": float(norms[1]),
        }


def minibatches(samples: Samples, settings: dict[str, Any], micro_size: int, seed: int) -> list[list[MicroBatch]]:
    """This process's micro-batches of each minibatch of one PPO epoch; the permutation follows from the seed."""
    order = np.random.default_rng(seed).permutation(len(samples))
    parts = np.array_split(order, settings["minibatches"])
    return [micro_batches(part, samples.lengths, micro_size, rank(), world_size()) for part in parts]


def update(
    actor: Trainer,
    critic: Trainer,
    experience: Experience,
    partitions: list[list[list[MicroBatch]]],
    settings: dict[str, Any],
    pad_id: int,
) -> UpdateStatistics:
    """Train on one rollout.

    Args:
        actor: trainer of the policy.
        critic: trainer of the value model.
        experience: the rollout with frozen old log-probabilities, values, advantages and returns.
        partitions: for each PPO epoch, each minibatch's micro-batches of this process.
        settings: `PpoSettings`.
        pad_id: filler id.

    Raises:
        UserError: the ratio on the first minibatch is not 1.
    """
    statistics = UpdateStatistics()
    first = True
    for epoch in partitions:
        for shares in epoch:
            count = _tokens(experience, shares)
            actor_norm = actor.step(
                _policy_losses(actor, experience, shares, count, settings, pad_id, statistics, first), len(shares)
            )
            critic_norm = critic.step(
                _value_losses(critic, experience, shares, count, settings, pad_id, statistics), len(shares)
            )
            statistics.norms.append((actor_norm, critic_norm))
            first = False
    return statistics


def _tokens(experience: Experience, shares: list[MicroBatch]) -> float:
    """Answer tokens of a whole minibatch, over all processes."""
    own = sum(float(experience.mask[micro.rows].sum()) * micro.weight for micro in shares)
    return all_sum(own)[0]


def _policy_losses(
    actor: Trainer,
    experience: Experience,
    shares: list[MicroBatch],
    count: float,
    settings: dict[str, Any],
    pad_id: int,
    statistics: UpdateStatistics,
    first: bool,
) -> Iterator[Tensor]:
    error = 0.0
    for micro in shares:
        part, old, advantages = _inputs(
            actor, experience, micro, pad_id, experience.scores.logprobs, experience.advantages
        )
        logits = answer_logits(actor.engine, part.input_ids, part.attention_mask, part.width) / settings["temperature"]
        log_ratios = log_ratio(token_logprobs(logits, part.answers), old, part.mask)
        loss = policy_loss(log_ratios.exp(), advantages, part.mask, settings["clip_range"])
        if micro.weight:
            statistics.add_policy(loss.detach(), log_ratios.detach(), part.mask, settings["clip_range"])
            error = max(error, float((log_ratios.detach().exp() - 1).abs().max()))
        if first and micro is shares[-1]:
            # Before the weights move: a failure here must not leave an updated policy behind.
            statistics.first_ratio_error = max(all_gather(error))
            require_unit_ratio(statistics.first_ratio_error, settings["max_first_ratio_error"])
        yield loss * (micro.weight / count)


def _value_losses(
    critic: Trainer,
    experience: Experience,
    shares: list[MicroBatch],
    count: float,
    settings: dict[str, Any],
    pad_id: int,
    statistics: UpdateStatistics,
) -> Iterator[Tensor]:
    for micro in shares:
        part, old, returns = _inputs(critic, experience, micro, pad_id, experience.scores.values, experience.returns)
        loss = value_loss(answer_values(critic.engine, part), old, returns, part.mask, settings["value_clip_range"])
        statistics.value_loss += float(loss.detach()) * micro.weight
        yield loss * (micro.weight / count)


def _inputs(
    trainer: Trainer, experience: Experience, micro: MicroBatch, pad_id: int, *tables: Tensor
) -> tuple[Rectangle, Tensor, Tensor]:
    device = inference_device(trainer.module)
    part = experience.samples.rectangle(micro.rows, pad_id, device)
    first, second = (table[torch.from_numpy(micro.rows), : part.width].to(device) for table in tables)
    return part, first, second
