"""Rewards and advantages of one rollout; pure functions on right-padded rectangles.

Answers of one prompt stand side by side: answer i belongs to prompt i // answers_per_prompt.

Column t of every tensor is the state before answer token t and the action that draws it. `mask` is 1 on the answer's
tokens, its first EOS included, and 0 after.
"""

from __future__ import annotations

import torch
from torch import Tensor

WHITENING_EPSILON = 1e-8
GROUP_EPSILON = 1e-4


def final_score(score: Tensor, finished: Tensor, clip: float, missing_eos_penalty: float) -> Tensor:
    """Clipped score, minus the penalty of an answer that was cut off. All [batch]; `finished` is bool."""
    return score.clamp(-clip, clip) - missing_eos_penalty * (~finished).float()


def token_rewards(penalty: Tensor, score: Tensor, mask: Tensor) -> Tensor:
    """Reward of each answer token: minus its penalty, plus the score once, at the last token.

    Args:
        penalty: KL coefficient times `token_kl`, or 0 where KL is part of the loss, [batch, width] float32.
        score: [batch] float32.
        mask: [batch, width] float32; every row has at least one token.

    Returns:
        [batch, width] float32, 0 outside the mask.
    """
    last = mask.sum(1).long() - 1
    return (-penalty * mask).scatter_add(1, last.unsqueeze(1), score.unsqueeze(1))


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


def leave_one_out_advantages(rewards: Tensor, mask: Tensor, answers_per_prompt: int) -> Tensor:
    """RLOO (Ahmadian et al. 2024): an answer's whole reward minus the mean of the prompt's other answers.

    Args:
        rewards: of each token, [batch, width] float32; batch = prompts x answers_per_prompt.
        mask: [batch, width] float32.
        answers_per_prompt: at least 2.

    Returns:
        [batch, width] float32, equal at all tokens of an answer, 0 outside the mask.
    """
    total = (rewards * mask).sum(1).view(-1, answers_per_prompt)
    others = (total.sum(1, keepdim=True) - total) / (answers_per_prompt - 1)
    return (total - others).view(-1, 1) * mask


def group_relative_advantages(rewards: Tensor, mask: Tensor, answers_per_prompt: int) -> Tensor:
    """GRPO (Shao et al. 2024): an answer's whole reward, centred and scaled among the answers of its prompt.

    (R - mean) / (deviation + 1e-4), with the unbiased deviation; a group of equal rewards gets advantages of 0.

    Args:
        rewards: of each token, [batch, width] float32; batch = prompts x answers_per_prompt.
        mask: [batch, width] float32.
        answers_per_prompt: at least 2.

    Returns:
        [batch, width] float32, equal at all tokens of an answer, 0 outside the mask.
    """
    total = (rewards * mask).sum(1).view(-1, answers_per_prompt)
    scaled = (total - total.mean(1, keepdim=True)) / (total.std(1, keepdim=True) + GROUP_EPSILON)
    return scaled.view(-1, 1) * mask


def scale_rewards(rewards: Tensor, mask: Tensor) -> Tensor:
    """Rewards over their deviation; the mean is not shifted, or the sum over an answer would change with its length.

    Huang et al. 2024, "The N Implementation Details of RLHF with PPO": reward whitening. Biased variance, epsilon 1e-8.
    """
    return rewards * (_moments(rewards, mask)[1] + WHITENING_EPSILON).rsqrt() * mask


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over all masked entries (biased variance, epsilon 1e-8), 0 outside the mask."""
    mean, variance = _moments(values, mask)
    return (values - mean) * (variance + WHITENING_EPSILON).rsqrt() * mask


def _moments(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the masked entries."""
    count = mask.sum()
    mean = (values * mask).sum() / count
    return mean, ((values - mean).square() * mask).sum() / count
