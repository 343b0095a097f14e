"""The losses of PPO (Schulman et al. 2017), as sums over answer tokens.

Whoever takes the step divides them by the number of tokens, which is that of all micro-batches and processes. Shape
suffixes are those of `rlhf.models.scores`.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0


def log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """log(pi / pi_old), clamped to +-20 so that its exponential is finite; 0 outside the mask, whatever is there."""
    return (logprobs - old_logprobs).masked_fill(mask == 0, 0.0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def policy_loss(ratio: Tensor, advantages: Tensor, mask: Tensor, clip_range: float) -> Tensor:
    """Sum of max(-A rho, -A clip(rho, 1 - c, 1 + c)) over the mask.

    Args:
        ratio: pi / pi_old, [batch, width] float32.
        advantages: [batch, width] float32.
        mask: [batch, width] float32.
        clip_range: c.
    """
    clipped_BT = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    return (torch.maximum(-advantages * ratio, -advantages * clipped_BT) * mask).sum()


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float | None) -> Tensor:
    """Sum of 1/2 max((V - R)^2, (clip(V, V_old +- c) - R)^2) over the mask; all [batch, width] float32.

    Without a clip range, the sum of 1/2 (V - R)^2.
    """
    if clip_range is None:
        return 0.5 * ((values - returns).square() * mask).sum()
    clipped_BT = torch.clamp(values, old_values - clip_range, old_values + clip_range)
    return 0.5 * (torch.maximum((values - returns).square(), (clipped_BT - returns).square()) * mask).sum()
