"""PPO's optimisation of policy and value model on one rollout. Shape suffixes are those of `rlhf.models.scores`."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from rlhf.config.stages import PpoSettings
from rlhf.data.batching import MicroBatch
from rlhf.models.scores import answer_logits, inference_device
from rlhf.ppo.checks import require_unit_ratio, unit_ratio_error
from rlhf.ppo.experience import Experience
from rlhf.ppo.kl import token_kl
from rlhf.ppo.losses import log_ratio, policy_loss, value_loss
from rlhf.ppo.mix import PretrainingMix
from rlhf.ppo.samples import Rectangle
from rlhf.ppo.scoring import answer_values
from rlhf.ppo.statistics import UpdateStatistics
from rlhf.training.distributed import all_sum
from rlhf.training.engine import LazyLoss, Trainer
from rlhf.training.faults import FaultCounter
from rlhf.training.weights import WeightAverage


class PpoUpdate:
    """Trains policy and value model on rollouts.

    Args:
        actor: trainer of the policy.
        critic: trainer of the value model, or None.
        settings: `PpoSettings`.
        pad_id: filler id.
        faults: decides what becomes of a step whose gradients are not finite.
        mix: SFT rows whose loss is added in each of the policy's steps, or None.
        average: of the policy's weights, moved after each of its steps, or None.
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
        self, experience: Experience, iteration: int, places: list[tuple[int, int]], train_policy: bool = True
    ) -> UpdateStatistics:
        """Train on one rollout, by the partition by which it was scored.

        Args:
            experience: the rollout with frozen old log-probabilities, values, advantages and returns.
            iteration: number of the rollout, for messages.
            places: (number of the dataset, row in its cached split) of its prompts, for messages.
            train_policy: False while the value model warms up.

        Raises:
            UserError: the ratio on the first minibatch is not 1.
            FloatingPointError: gradients are not finite, and the step must not or cannot be skipped.
        """
        statistics = UpdateStatistics()
        for number, shares in enumerate(experience.scores.partition.minibatches):
            count = _tokens(experience, shares)
            if train_policy:
                norm = self._step_policy(experience, shares, count, statistics, first=number == 0)
                statistics.add_step(statistics.actor_norms, self._judged(iteration, norm, places))
            if self._critic is not None:
                losses = self._value_losses(self._critic, experience, shares, count, statistics)
                norm = self._critic.step(losses)
                statistics.add_step(statistics.critic_norms, self._judged(iteration, norm, places))
        return statistics

    def _judged(self, iteration: int, norm: float | None, places: list[tuple[int, int]]) -> float | None:
        return norm if self._faults.check(iteration, None, norm, places) else None

    def _step_policy(
        self, experience: Experience, shares: list[MicroBatch], count: float, statistics: UpdateStatistics, first: bool
    ) -> float | None:
        """One step of the policy; returns its gradient norm, None where it was skipped."""
        ratios: list[Tensor] = []  # of this process's answer tokens

        def loss_of(micro: MicroBatch) -> Tensor:
            loss = self._policy_loss(experience, micro, statistics, ratios if first else None)
            return loss * (micro.weight / count)

        def require_first_ratios() -> None:
            statistics.first_ratio_error = unit_ratio_error(ratios)
            settings = self._settings
            require_unit_ratio(statistics.first_ratio_error, settings.dtype, settings.max_first_ratio_error)

        losses: list[LazyLoss] = [partial(loss_of, micro) for micro in shares]
        if self._mix is not None:
            losses += self._mix.losses(self._actor.engine, self._mix.next_batch(), statistics)
        # Before the weights move: a failure must not leave an updated policy behind.
        norm = self._actor.step(losses, require_first_ratios) if first else self._actor.step(losses)
        if self._average is not None and norm is not None:
            self._average.update()
        return norm

    def _policy_loss(
        self, experience: Experience, micro: MicroBatch, statistics: UpdateStatistics, ratios: list[Tensor] | None
    ) -> Tensor:
        """Summed loss of a micro-batch; adds it to the statistics, and its ratios to a list, unless it is a filler."""
        settings, scores = self._settings, experience.scores
        part = self._rectangle(self._actor, experience, micro)
        logprobs_BT = self._logprobs(part)
        log_ratios_BT = log_ratio(logprobs_BT, _rows(scores.logprobs, micro, part), part.mask)
        advantages_BT = _rows(experience.advantages, micro, part)
        loss = policy_loss(log_ratios_BT.exp(), advantages_BT, part.mask, settings.clip_range)
        if micro.weight:
            statistics.add_policy(loss.detach(), log_ratios_BT.detach(), part.mask, settings.clip_range)
            if ratios is not None:
                ratios.append(log_ratios_BT.detach().exp()[part.mask == 1])
        if settings.kl_in == "loss":
            ref_BT = _rows(scores.ref_logprobs, micro, part)
            kl = token_kl(logprobs_BT, ref_BT, part.mask, settings.kl_estimator).sum()
            statistics.add_kl(kl.detach(), micro.weight)
            loss = loss + experience.kl_coefficient * kl
        return loss

    def _logprobs(self, part: Rectangle) -> Tensor:
        """Log-probabilities under the policy; a function, so that logits, a vocabulary wide, do not outlive it."""
        logits_NV = answer_logits(self._actor.engine, *part.inputs)
        return part.logprobs(logits_NV / self._settings.temperature)

    def _value_losses(
        self,
        critic: Trainer,
        experience: Experience,
        shares: list[MicroBatch],
        count: float,
        statistics: UpdateStatistics,
    ) -> list[LazyLoss]:
        old_values, all_returns = experience.scores.values, experience.returns
        assert old_values is not None and all_returns is not None  # there is a value model

        def loss_of(micro: MicroBatch) -> Tensor:
            part = self._rectangle(critic, experience, micro)
            old_BT, returns_BT = _rows(old_values, micro, part), _rows(all_returns, micro, part)
            values_BT = answer_values(critic.engine, part)
            loss = value_loss(values_BT, old_BT, returns_BT, part.mask, self._settings.value_clip_range)
            statistics.add_value(loss.detach(), part.mask, micro.weight)
            return loss * (micro.weight / count)

        return [partial(loss_of, micro) for micro in shares]

    def _rectangle(self, trainer: Trainer, experience: Experience, micro: MicroBatch) -> Rectangle:
        return experience.samples.rectangle(micro.rows, self._pad_id, inference_device(trainer.module))


def _rows(table: Tensor, micro: MicroBatch, part: Rectangle) -> Tensor:
    """A micro-batch's rows of a table of the whole rollout, beside its mask: [batch, answer width] float32."""
    return table[torch.from_numpy(micro.rows), : part.width].to(part.mask.device)


def _tokens(experience: Experience, shares: list[MicroBatch]) -> float:
    """Answer tokens of a whole minibatch, over all processes."""
    own = sum(float(experience.mask[micro.rows].sum()) * micro.weight for micro in shares)
    return all_sum(own)[0]
