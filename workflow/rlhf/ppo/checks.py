"""Checks that stop a PPO stage whose numbers do not fit together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rlhf.config.stages import HALF_PRECISION_RATIO_ERROR
from rlhf.errors import UserError
from rlhf.ppo.sampling import Answer
from rlhf.training.distributed import all_gather

# Mean difference of sampling and training probabilities above which the two engines disagree (verl's FAQ). Half
# precision rounds single log-probabilities too much for a bound on their largest difference.
MAX_HALF_PRECISION_PROBABILITY_ERROR = 0.01


def sampling_error(answers: list[Answer], logprobs: Tensor, mask: Tensor) -> tuple[float, float]:
    """Difference of the log-probabilities of sampling (with a KV cache) and of training (one forward pass).

    Args:
        answers: sampled answers with their log-probabilities.
        logprobs: of the same tokens by the training pass, [samples, width] float32.
        mask: [samples, width] float32.

    Returns:
        Largest absolute difference of log-probabilities, and mean absolute difference of probabilities.
    """
    sampled = torch.zeros_like(logprobs)
    for row, answer in enumerate(answers):
        sampled[row, : len(answer.logprobs)] = torch.from_numpy(np.asarray(answer.logprobs))
    largest = ((sampled - logprobs).abs() * mask).max()
    mean = ((sampled.exp() - logprobs.exp()).abs() * mask).sum() / mask.sum()
    return float(largest), float(mean)


def require_same_distribution(error: tuple[float, float], dtype: str, limit: float) -> None:
    """Stop where sampling and training disagree.

    Raises:
        UserError: in fp32 the largest difference of log-probabilities is above `limit`; in bf16 and fp16 the mean
            difference of probabilities is above 0.01.
    """
    largest, mean = error
    if dtype == "fp32" and not largest <= limit:  # not a number is no agreement
        raise UserError(
            f"sampling and training disagree: log-probabilities of the same tokens differ by up to {largest:.2e}, "
            f"allowed is {limit:.0e} (ppo.max_sampling_logprob_error). PPO would learn from wrong ratios. "
            "Usual causes: position ids, temperature, dropout, or a model family that ignores the attention mask"
        )
    if dtype != "fp32" and not mean <= MAX_HALF_PRECISION_PROBABILITY_ERROR:
        raise UserError(
            f"sampling and training disagree: probabilities of the same tokens differ by {mean:.3f} on average, "
            f"allowed is {MAX_HALF_PRECISION_PROBABILITY_ERROR} in {dtype}. "
            "Try ppo.dtype: fp32 to tell rounding from a defect"
        )


def unit_ratio_error(ratios: Sequence[Tensor]) -> tuple[float, float]:
    """How far the ratios of a minibatch are from 1, over all processes, each of which calls this.

    Ratios that are no number do not count: the gradient of their step is judged by `ppo.on_nonfinite`.

    Args:
        ratios: pi / pi_old of this process's answer tokens, in parts of any length.

    Returns:
        Largest and mean |ratio - 1|.
    """
    own = (torch.cat([torch.ones(0), *(part.detach().float().cpu() for part in ratios)]) - 1).abs().nan_to_num(0.0)
    largest, total, tokens = zip(*all_gather((max(own.tolist(), default=0.0), float(own.sum()), len(own))), strict=True)
    return max(largest), sum(total) / sum(tokens)


def require_unit_ratio(error: tuple[float, float], dtype: str, limit: float) -> None:
    """Stop where the first minibatch of a rollout does not start at ratio 1.

    In half precision, scoring and training may take different kernels (attention with and without gradients), which
    round the same logits differently; the ratio of a single token then says nothing, and their mean is limited.

    Args:
        error: largest and mean |ratio - 1|.
        dtype: of the policy.
        limit: of the largest one in fp32.

    Raises:
        UserError: in fp32 the largest |ratio - 1| is above `limit`; in bf16 and fp16 the mean is above that of
            `HALF_PRECISION_RATIO_ERROR`.
    """
    largest, mean = error
    cause = (
        "old and new log-probabilities are not of the same computation. "
        "Usual causes: dropout, or layers that behave differently in training mode"
    )
    if dtype == "fp32" and largest > limit:
        raise UserError(
            f"the probability ratio on the first minibatch is off by up to {largest:.2e}, allowed is {limit:.0e} "
            f"(ppo.max_first_ratio_error): {cause}"
        )
    if dtype != "fp32" and mean > HALF_PRECISION_RATIO_ERROR[dtype]:
        raise UserError(
            f"the probability ratio on the first minibatch is off by {mean:.3f} on average, allowed is "
            f"{HALF_PRECISION_RATIO_ERROR[dtype]:.3f} in {dtype}: {cause}. "
            "Try ppo.dtype: fp32 to tell rounding from a defect"
        )
