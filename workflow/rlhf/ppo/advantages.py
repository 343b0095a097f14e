"""Rewards and advantages of one rollout; pure functions on right-padded rectangles.

Column t of every tensor is the state before answer token t and the action that draws it. `mask` is 1 on the answer's
tokens, its first EOS included, and 0 after.
"""

from __future__ import annotations

import torch
from torch import Tensor

WHITENING_EPSILON = 1e-8


def final_score(score: Tensor, finished: Tensor, clip: float, missing_eos_penalty: float) -> Tensor:
    """Clipped score, minus the penalty of an answer that was cut off. All [batch]; `finished` is bool."""
    return score.clamp(-clip, clip) - missing_eos_penalty * (~finished).float()


def token_rewards(logprobs: Tensor, ref_logprobs: Tensor, score: Tensor, mask: Tensor, kl_coefficient: float) -> Tensor:
    """Reward of each answer token: -beta (log pi_old - log pi_ref), plus the score once, at the last token.

    The penalty is the k1 estimator (Schulman 2020), right inside the reward (Ziegler et al. 2019).

    Args:
        logprobs: of the sampling policy, [batch, width] float32.
        ref_logprobs: of the SFT model, [batch, width] float32.
        score: [batch] float32.
        mask: [batch, width] float32; every row has at least one token.
        kl_coefficient: beta.

    Returns:
        [batch, width] float32, 0 outside the mask.
    """
    rewards = -kl_coefficient * (logprobs - ref_logprobs) * mask
    last = mask.sum(1).long() - 1
    return rewards.scatter_add(1, last.unsqueeze(1), score.unsqueeze(1))


def generalised_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016) up to each row's last token.

    delta_t = r_t + gamma V_{t+1} - V_t with V = 0 after the last token; A_t = delta_t + gamma lambda A_{t+1}.

    Args:
        rewards: [batch, width] float32.
        values: of the value model before the update, [batch, width] float32.
        mask: [batch, width] float32.
        gamma: discount.
        gae_lambda: lambda.

    Returns:
        Advantages and returns (advantages + values, before any whitening), each [batch, width], 0 outside the mask.
    """
    values = values * mask
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(following)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = (delta + gamma * gae_lambda * following) * mask[:, t]
        advantages[:, t] = following
        next_value = values[:, t]
    return advantages, advantages + values


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over all masked entries (biased variance, epsilon 1e-8), 0 outside the mask."""
    count = mask.sum()
    mean = (values * mask).sum() / count
    variance = ((values - mean).square() * mask).sum() / count
    return (values - mean) * (variance + WHITENING_EPSILON).rsqrt() * mask
