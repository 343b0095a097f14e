"""PPO's optimisation of policy and value model on one rollout."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf.config.stages import PpoSettings
from rlhf.data.batching import MicroBatch, micro_batches
from rlhf.models.scores import answer_logits, inference_device, token_logprobs
from rlhf.ppo.average import WeightAverage
from rlhf.ppo.checks import require_unit_ratio, unit_ratio_error
from rlhf.ppo.experience import Experience
from rlhf.ppo.kl import token_kl
from rlhf.ppo.losses import log_ratio, policy_loss, value_loss
from rlhf.ppo.mix import PretrainingMix
from rlhf.ppo.rollout import Rectangle, Samples
from rlhf.ppo.scoring import answer_values
from rlhf.ppo.statistics import UpdateStatistics
from rlhf.training.distributed import all_sum, rank, world_size
from rlhf.training.engine import Trainer
from rlhf.training.faults import FaultCounter


def minibatches(samples: Samples, settings: PpoSettings, micro_size: int, seed: int) -> list[list[MicroBatch]]:
    """This process's micro-batches of each minibatch of one PPO epoch; the permutation follows from the seed."""
    order = np.random.default_rng(seed).permutation(len(samples))
    parts = np.array_split(order, settings.minibatches)
    return [micro_batches(part, samples.lengths, micro_size, rank(), world_size()) for part in parts]


class PpoUpdate:
    """Trains policy and value model on rollouts.

    Args:
        actor: trainer of the policy.
        critic: trainer of the value model, or None.
        settings: `PpoSettings`.
        pad_id: filler id.
        faults: judges steps whose gradients are not finite.
        mix: SFT rows mixed into the policy's steps, or None.
        average: of the policy's weights, or None.
    """

    def __init__(
        self,
        actor: Trainer,
        critic: Trainer | None,
        settings: PpoSettings,
        pad_id: int,
        faults: FaultCounter,
        mix: PretrainingMix | None = None,
        average: WeightAverage | None = None,
    ) -> None:
        self._actor, self._critic = actor, critic
        self._settings, self._pad_id, self._mix = settings, pad_id, mix
        self._faults, self._average = faults, average

    def run(
        self,
        experience: Experience,
        partitions: list[list[list[MicroBatch]]],
        iteration: int,
        places: list[tuple[int, int]],
        train_policy: bool = True,
    ) -> UpdateStatistics:
        """Train on one rollout.

        Args:
            experience: the rollout with frozen old log-probabilities, values, advantages and returns.
            partitions: for each PPO epoch, each minibatch's micro-batches of this process.
            iteration: number of the rollout, for messages.
            places: (number of the dataset, row in its cached split) of its prompts, for messages.
            train_policy: False while the value model warms up.

        Raises:
            UserError: the ratio on the first minibatch is not 1.
            FloatingPointError: gradients are not finite, and the step must not or cannot be skipped.
        """
        statistics = UpdateStatistics()
        first = True
        for shares in itertools.chain.from_iterable(partitions):
            count = _tokens(experience, shares)
            if train_policy:
                norm = self._step_policy(experience, shares, count, statistics, first)
                statistics.add_step(statistics.actor_norms, self._judged(iteration, norm, places))
            if self._critic is not None:
                losses = self._value_losses(self._critic, experience, shares, count, statistics)
                norm = self._critic.step(losses, len(shares))
                statistics.add_step(statistics.critic_norms, self._judged(iteration, norm, places))
            first = False
        return statistics

    def _judged(self, iteration: int, norm: float | None, places: list[tuple[int, int]]) -> float | None:
        return norm if self._faults.check(iteration, None, norm, places) else None

    def _step_policy(
        self, experience: Experience, shares: list[MicroBatch], count: float, statistics: UpdateStatistics, first: bool
    ) -> float | None:
        losses, micro_steps = self._policy_losses(experience, shares, count, statistics, first), len(shares)
        if self._mix is not None:
            rows = self._mix.next_rows()
            losses = itertools.chain(losses, self._mix.losses(self._actor.engine, rows, statistics))
            micro_steps += len(rows)
        norm = self._actor.step(losses, micro_steps)
        if self._average is not None and norm is not None:
            self._average.update()
        return norm

    def _policy_losses(
        self, experience: Experience, shares: list[MicroBatch], count: float, statistics: UpdateStatistics, first: bool
    ) -> Iterator[Tensor]:
        clip_range, scores = self._settings.clip_range, experience.scores
        ratios: list[Tensor] = []
        for micro in shares:
            part, old, ref, advantages = self._inputs(
                self._actor, experience, micro, scores.logprobs, scores.ref_logprobs, experience.advantages
            )
            logprobs = self._logprobs(part)
            log_ratios = log_ratio(logprobs, old, part.mask)
            loss = policy_loss(log_ratios.exp(), advantages, part.mask, clip_range)
            if micro.weight:
                statistics.add_policy(loss.detach(), log_ratios.detach(), part.mask, clip_range)
                ratios += [log_ratios.detach().exp()[part.mask == 1]] if first else []
            if self._settings.kl_in == "loss":
                kl = token_kl(logprobs, ref, part.mask, self._settings.kl_estimator).sum()
                statistics.kl_loss += float(kl.detach()) * micro.weight
                loss = loss + experience.kl_coefficient * kl
            if first and micro is shares[-1]:
                # Before the weights move: a failure here must not leave an updated policy behind.
                statistics.first_ratio_error = unit_ratio_error(ratios)
                require_unit_ratio(
                    statistics.first_ratio_error, self._settings.dtype, self._settings.max_first_ratio_error
                )
            yield loss * (micro.weight / count)

    def _logprobs(self, part: Rectangle) -> Tensor:
        logits = answer_logits(self._actor.engine, *part.inputs)
        return part.table(token_logprobs(logits / self._settings.temperature, part.targets))

    def _value_losses(
        self,
        critic: Trainer,
        experience: Experience,
        shares: list[MicroBatch],
        count: float,
        statistics: UpdateStatistics,
    ) -> Iterator[Tensor]:
        assert experience.scores.values is not None and experience.returns is not None  # there is a value model
        for micro in shares:
            part, old, returns = self._inputs(critic, experience, micro, experience.scores.values, experience.returns)
            values = answer_values(critic.engine, part)
            loss = value_loss(values, old, returns, part.mask, self._settings.value_clip_range)
            statistics.add_value(loss.detach(), part.mask, micro.weight)
            yield loss * (micro.weight / count)

    def _inputs(self, trainer: Trainer, experience: Experience, micro: MicroBatch, *tables: Tensor) -> tuple[Any, ...]:
        """The rectangle of a micro-batch, and its rows of each table: [batch, its answer width]."""
        device = inference_device(trainer.module)
        part = experience.samples.rectangle(micro.rows, self._pad_id, device)
        return part, *(table[torch.from_numpy(micro.rows), : part.width].to(device) for table in tables)


def _tokens(experience: Experience, shares: list[MicroBatch]) -> float:
    """Answer tokens of a whole minibatch, over all processes."""
    own = sum(float(experience.mask[micro.rows].sum()) * micro.weight for micro in shares)
    return all_sum(own)[0]
