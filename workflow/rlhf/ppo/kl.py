"""The KL divergence from the SFT model: estimators per token, and the coefficient of the penalty.

Shape suffixes are those of `rlhf.models.scores`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_kl(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, estimator: str) -> Tensor:
    """Estimate of KL(pi || pi_ref) at each token drawn from pi, with d = log pi - log pi_ref (Schulman 2020).

    k1 = d is unbiased, and right inside the reward (Ziegler et al. 2019). As a loss, k1 has no gradient on average;
    the gradient of k2 = d^2 / 2 is that of the divergence, and that of k3 = exp(-d) - 1 + d a biased one.

    An estimator never sees what stands outside the mask: exp(-d) of a pad position may be infinite, and infinity times
    a mask of 0 is not a number, neither in the value nor in the gradient.

    Args:
        logprobs: of the policy, [batch, width] float32.
        ref_logprobs: of the SFT model, [batch, width] float32.
        mask: 1 on answer tokens, [batch, width] float32.
        estimator: `k1`, `k2` or `k3`.

    Returns:
        [batch, width] float32, 0 outside the mask, whatever the log-probabilities are there.
    """
    difference_BT = (logprobs - ref_logprobs).masked_fill(mask == 0, 0.0)
    if estimator == "k1":
        return difference_BT
    if estimator == "k2":
        return 0.5 * difference_BT.square()
    return torch.expm1(-difference_BT) + difference_BT


class KlController:
    """The KL coefficient: fixed, or moved towards a target (Ziegler et al. 2019, section 2.2).

    beta <- beta (1 + clip(KL / target - 1, +-0.2) n / horizon) after n answers of mean KL.

    Args:
        coefficient: beta at the start.
        target: nats per answer, or None for a fixed coefficient.
        horizon: in answers.
    """

    LIMIT = 0.2

    def __init__(self, coefficient: float, target: float | None, horizon: int) -> None:
        self.coefficient = coefficient
        self._target, self._horizon = target, horizon

    def observe(self, kl: float, answers: int) -> None:
        """Adapt to the KL of a rollout.

        Args:
            kl: mean over answers of the sum over tokens of log pi - log pi_ref, in nats.
            answers: number of answers.
        """
        if self._target is not None:
            error = min(max(kl / self._target - 1, -self.LIMIT), self.LIMIT)
            self.coefficient *= 1 + error * answers / self._horizon
