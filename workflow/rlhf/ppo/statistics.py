"""What the updates of one rollout looked like."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from rlhf.training.distributed import all_gather, all_sum

SUMS = (
    *("policy_tokens", "policy_loss", "clipped", "ratio", "squared_log_ratio", "ratio_max", "kl_loss"),
    *("value_tokens", "value_loss", "ptx_tokens", "ptx_loss"),
)


@dataclass
class UpdateStatistics:
    """Sums over the answer tokens of all updates of a rollout, on this process; those of skipped steps do not count."""

    policy_tokens: float = 0.0
    policy_loss: float = 0.0
    clipped: float = 0.0
    ratio: float = 0.0
    squared_log_ratio: float = 0.0
    ratio_max: float = 0.0
    kl_loss: float = 0.0
    first_ratio_error: tuple[float, float] = (0.0, 0.0)  # largest and mean
    value_tokens: float = 0.0
    value_loss: float = 0.0
    ptx_tokens: float = 0.0
    ptx_loss: float = 0.0
    actor_norms: list[float] = field(default_factory=list)
    critic_norms: list[float] = field(default_factory=list)
    skipped: int = 0
    _counted: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0.0))

    def add_step(self, norms: list[float], norm: float | None) -> None:
        """Count an optimizer step by its gradient norm.

        None is one that was skipped: what was added since the step before is taken back, because it is not finite.
        """
        if norm is None:
            self.skipped += 1
            vars(self).update(self._counted)
        else:
            norms.append(norm)
            self._counted = {name: getattr(self, name) for name in SUMS}

    def add_policy(self, loss: Tensor, log_ratios: Tensor, mask: Tensor, clip_range: float) -> None:
        """Count one micro-batch of the policy."""
        ratio = log_ratios.exp()
        self.policy_tokens += float(mask.sum())
        self.policy_loss += float(loss)
        self.clipped += float((((ratio - 1).abs() > clip_range).float() * mask).sum())
        self.ratio += float((ratio * mask).sum())
        self.squared_log_ratio += float((log_ratios.square() * mask).sum())
        self.ratio_max = max(self.ratio_max, float((ratio * mask).max()))

    def add_value(self, loss: Tensor, mask: Tensor, weight: float) -> None:
        """Count one micro-batch of the value model."""
        self.value_tokens += float(mask.sum()) * weight
        self.value_loss += float(loss) * weight

    def add_mix(self, loss: Tensor, tokens: int, weight: float) -> None:
        """Count one micro-batch of SFT rows."""
        self.ptx_tokens += tokens * weight
        self.ptx_loss += float(loss) * weight

    def metrics(self) -> dict[str, float]:
        """Means over all processes' tokens, and maxima over all processes; what was not trained is absent."""
        skipped = {"skipped_steps": self.skipped} if self.skipped else {}
        return {**self._policy(), **self._value(), **self._mix(), **skipped}

    def _policy(self) -> dict[str, float]:
        if not self.actor_norms:
            return {}
        names = ("policy_loss", "clip_fraction", "ratio_mean", "approx_kl", "kl_loss")
        sums = (self.policy_loss, self.clipped, self.ratio, self.squared_log_ratio, self.kl_loss)
        tokens, *totals = all_sum(self.policy_tokens, *sums)
        means = {name: total / tokens for name, total in zip(names, totals, strict=True)}
        means["approx_kl"] *= 0.5  # 1/2 (log ratio)^2, Schulman's k2
        if not totals[-1]:
            del means["kl_loss"]  # KL is part of the reward
        return means | {
            "ratio_max": max(all_gather(self.ratio_max)),
            "first_ratio_error": self.first_ratio_error[0],
            "first_ratio_mean_error": self.first_ratio_error[1],
            "grad_norm": float(np.mean(self.actor_norms)),
        }

    def _value(self) -> dict[str, float]:
        if not self.critic_norms:
            return {}
        tokens, loss = all_sum(self.value_tokens, self.value_loss)
        return {"value_loss": loss / tokens, "critic_grad_norm": float(np.mean(self.critic_norms))}

    def _mix(self) -> dict[str, float]:
        tokens, loss = all_sum(self.ptx_tokens, self.ptx_loss)
        return {"ptx_loss": loss / tokens} if tokens else {}
