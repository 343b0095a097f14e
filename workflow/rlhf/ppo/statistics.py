"""What the updates of one rollout looked like."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from rlhf.ppo.checks import RatioError
from rlhf.training.distributed import all_gather, all_sum


@dataclass
class UpdateSums:
    """Sums over the answer tokens that this process has trained on, and the largest ratio among them."""

    policy_tokens: float = 0.0
    policy_loss: float = 0.0
    clipped: float = 0.0
    ratio: float = 0.0
    squared_log_ratio: float = 0.0
    ratio_max: float = 0.0
    kl_loss: float = 0.0
    value_tokens: float = 0.0
    value_loss: float = 0.0
    ptx_tokens: float = 0.0
    ptx_loss: float = 0.0


class UpdateStatistics:
    """What this process sees of all updates of a rollout; a step that is skipped leaves no trace but its number.

    Attributes:
        actor_norms: gradient norm of each step of the policy that was applied.
        critic_norms: the same of the value model.
        first_ratio_error: of the first minibatch; of no error where the policy was not trained.
    """

    def __init__(self) -> None:
        self.actor_norms: list[float] = []
        self.critic_norms: list[float] = []
        self.first_ratio_error = RatioError(0.0, 0.0)
        self._sums = UpdateSums()
        self._applied = UpdateSums()  # without the step that is being computed
        self._skipped = 0

    def add_step(self, norms: list[float], norm: float | None) -> None:
        """Count an optimizer step, after its micro-batches.

        Args:
            norms: `actor_norms` or `critic_norms`.
            norm: gradient norm, or None where the step was skipped: what was added since the step before is then taken
                back, because it is not finite.
        """
        if norm is None:
            self._skipped += 1
            self._sums = replace(self._applied)
        else:
            norms.append(norm)
            self._applied = replace(self._sums)

    def add_policy(self, loss: Tensor, log_ratios: Tensor, mask: Tensor, clip_range: float) -> None:
        """Count one micro-batch of the policy.

        Args:
            loss: sum of the clipped objective over answer tokens, a scalar.
            log_ratios: log(pi / pi_old), [batch, width] float32.
            mask: 1 on answer tokens, [batch, width] float32.
            clip_range: ratios further from 1 count as clipped.
        """
        sums, ratio = self._sums, log_ratios.exp()
        sums.policy_tokens += float(mask.sum())
        sums.policy_loss += float(loss)
        sums.clipped += float((((ratio - 1).abs() > clip_range).float() * mask).sum())
        sums.ratio += float((ratio * mask).sum())
        sums.squared_log_ratio += float((log_ratios.square() * mask).sum())
        sums.ratio_max = max(sums.ratio_max, float((ratio * mask).max()))

    def add_kl(self, kl: Tensor, weight: float) -> None:
        """Count the KL of one micro-batch, where it is part of the loss: its sum over answer tokens, a scalar."""
        self._sums.kl_loss += float(kl) * weight

    def add_value(self, loss: Tensor, mask: Tensor, weight: float) -> None:
        """Count one micro-batch of the value model: the sum of its loss over the answer tokens of the mask."""
        self._sums.value_tokens += float(mask.sum()) * weight
        self._sums.value_loss += float(loss) * weight

    def add_mix(self, loss: Tensor, tokens: int, weight: float) -> None:
        """Count one micro-batch of SFT rows: the sum of its loss over this many tokens."""
        self._sums.ptx_tokens += tokens * weight
        self._sums.ptx_loss += float(loss) * weight

    def metrics(self) -> dict[str, float]:
        """Means over all processes' tokens, and maxima over all processes; what was not trained is absent."""
        skipped = {"skipped_steps": self._skipped} if self._skipped else {}
        return {**self._policy(), **self._value(), **self._mix(), **skipped}

    def _policy(self) -> dict[str, float]:
        if not self.actor_norms:
            return {}
        own = self._sums
        names = ("policy_loss", "clip_fraction", "ratio_mean", "approx_kl", "kl_loss")
        sums = (own.policy_loss, own.clipped, own.ratio, own.squared_log_ratio, own.kl_loss)
        tokens, *totals = all_sum(own.policy_tokens, *sums)
        means = {name: total / tokens for name, total in zip(names, totals, strict=True)}
        means["approx_kl"] *= 0.5  # 1/2 (log ratio)^2, Schulman's k2
        if not totals[-1]:
            del means["kl_loss"]  # KL is part of the reward
        return means | {
            "ratio_max": max(all_gather(own.ratio_max)),
            "first_ratio_error": self.first_ratio_error.largest,
            "first_ratio_mean_error": self.first_ratio_error.mean,
            "grad_norm": float(np.mean(self.actor_norms)),
        }

    def _value(self) -> dict[str, float]:
        if not self.critic_norms:
            return {}
        tokens, loss = all_sum(self._sums.value_tokens, self._sums.value_loss)
        return {"value_loss": loss / tokens, "critic_grad_norm": float(np.mean(self.critic_norms))}

    def _mix(self) -> dict[str, float]:
        tokens, loss = all_sum(self._sums.ptx_tokens, self._sums.ptx_loss)
        return {"ptx_loss": loss / tokens} if tokens else {}
