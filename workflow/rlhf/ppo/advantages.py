"""Rewards and advantages of one rollout; pure functions on right-padded rectangles.

Answers of one prompt stand side by side: answer i belongs to prompt i // answers_per_prompt.

Column t of every tensor is the state before answer token t and the action that draws it. `mask` is 1 on the answer's
tokens, its first EOS included, and 0 after. Shape suffixes are those of `rlhf.models.scores`.
"""

from __future__ import annotations

import torch
from torch import Tensor

WHITENING_EPSILON = 1e-8
GROUP_EPSILON = 1e-4


def final_score(score: Tensor, finished: Tensor, clip: float, missing_eos_penalty: float) -> Tensor:
    """What an answer is worth as a whole: its clipped score, less the penalty if it was cut off before its EOS.

    The penalty is outside the clip, or an answer of the lowest score would lose nothing by never ending.

    Args:
        score: of the reward model, [batch] float32.
        finished: whether the answer ends with EOS, [batch] bool.
        clip: scores are clamped to +-clip.
        missing_eos_penalty: subtracted from unfinished answers.

    Returns:
        [batch] float32.
    """
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
    last_B = mask.sum(1).long() - 1
    return (-penalty * mask).scatter_add(1, last_B.unsqueeze(1), score.unsqueeze(1))


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
    values_BT = values * mask
    advantages_BT = torch.zeros_like(rewards)
    following_B = torch.zeros_like(rewards[:, 0])
    next_value_B = torch.zeros_like(following_B)
    for t in reversed(range(rewards.shape[1])):
        delta_B = rewards[:, t] + gamma * next_value_B - values_BT[:, t]
        following_B = (delta_B + gamma * gae_lambda * following_B) * mask[:, t]
        advantages_BT[:, t] = following_B
        next_value_B = values_BT[:, t]
    return advantages_BT, advantages_BT + values_BT


def leave_one_out_advantages(rewards: Tensor, mask: Tensor, answers_per_prompt: int) -> Tensor:
    """RLOO (Ahmadian et al. 2024): an answer's whole reward minus the mean of the prompt's other answers.

    Args:
        rewards: of each token, [batch, width] float32; batch = prompts x answers_per_prompt.
        mask: [batch, width] float32.
        answers_per_prompt: at least 2.

    Returns:
        [batch, width] float32, equal at all tokens of an answer, 0 outside the mask.
    """
    total_GK = (rewards * mask).sum(1).view(-1, answers_per_prompt)
    others_GK = (total_GK.sum(1, keepdim=True) - total_GK) / (answers_per_prompt - 1)
    return (total_GK - others_GK).view(-1, 1) * mask


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
    total_GK = (rewards * mask).sum(1).view(-1, answers_per_prompt)
    scaled_GK = (total_GK - total_GK.mean(1, keepdim=True)) / (total_GK.std(1, keepdim=True) + GROUP_EPSILON)
    return scaled_GK.view(-1, 1) * mask


def scale_rewards(rewards: Tensor, mask: Tensor) -> Tensor:
    """Rewards divided by their deviation. Their mean stays: shifted, an answer's sum would change with its length.

    Huang et al. 2024, "The N Implementation Details of RLHF with PPO": reward whitening. Biased variance, epsilon 1e-8.
    """
    return rewards * (_moments(rewards, mask)[1] + WHITENING_EPSILON).rsqrt() * mask


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Values at mean 0 and variance 1 over all masked entries (biased variance, epsilon 1e-8), and 0 outside."""
    mean, variance = _moments(values, mask)
    return (values - mean) * (variance + WHITENING_EPSILON).rsqrt() * mask


def _moments(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the entries inside the mask; padding has no part in either."""
    count = mask.sum()
    mean = (values * mask).sum() / count
    return mean, ((values - mean).square() * mask).sum() / count
