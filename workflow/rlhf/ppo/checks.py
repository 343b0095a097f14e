"""Checks that stop a PPO stage whose numbers do not fit together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlhf.config.stages import HALF_PRECISION_RATIO_ERROR
from rlhf.errors import UserError
from rlhf.ppo.samples import Answer
from rlhf.training.distributed import all_gather

# Mean difference of sampling and training probabilities above which the two engines disagree (verl's FAQ). Half
# precision rounds single log-probabilities too much for a bound on their largest difference.
MAX_HALF_PRECISION_PROBABILITY_ERROR = 0.01


class SamplingError(NamedTuple):
    """Difference of sampling and training: of log-probabilities the largest, of probabilities the mean one."""

    largest_logprob: float
    mean_probability: float


class RatioError(NamedTuple):
    """How far probability ratios are from 1: |ratio - 1| of the worst token, and its mean over tokens."""

    largest: float
    mean: float


def sampling_error(answers: list[Answer], logprobs: Tensor, mask: Tensor) -> SamplingError:
    """Difference of what sampling (token by token, with a KV cache) and training (one forward pass) say of a token.

    Args:
        answers: sampled answers with their log-probabilities.
        logprobs: of the same tokens by the training pass, [samples, width] float32.
        mask: [samples, width] float32.
    """
    sampled = torch.zeros_like(logprobs)
    for row, answer in enumerate(answers):
        sampled[row, : len(answer.logprobs)] = torch.from_numpy(np.asarray(answer.logprobs))
    largest = ((sampled - logprobs).abs() * mask).max()
    mean = ((sampled.exp() - logprobs.exp()).abs() * mask).sum() / mask.sum()
    return SamplingError(float(largest), float(mean))


def require_same_distribution(error: SamplingError, dtype: str, limit: float) -> None:
    """Stop where sampling and training disagree: PPO's ratios would be those of another policy than the sampling one.

    Args:
        error: of a rollout.
        dtype: of the policy.
        limit: of the largest difference of log-probabilities in fp32.

    Raises:
        UserError: in fp32 the largest difference of log-probabilities is above `limit`; in bf16 and fp16 the mean
            difference of probabilities is above 0.01.
    """
    largest, mean = error.largest_logprob, error.mean_probability
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


def unit_ratio_error(ratios: Sequence[Tensor]) -> RatioError:
    """How far the ratios of a minibatch are from 1, over all processes, each of which calls this.

    Ratios that are no number do not count: the gradient of their step is judged by `ppo.on_nonfinite`.

    Args:
        ratios: pi / pi_old of this process's answer tokens, in parts of any length.
    """
    own = (torch.cat([torch.ones(0), *(part.detach().float().cpu() for part in ratios)]) - 1).abs().nan_to_num(0.0)
    largest, total, tokens = zip(*all_gather((max(own.tolist(), default=0.0), float(own.sum()), len(own))), strict=True)
    return RatioError(max(largest), sum(total) / sum(tokens))


def require_unit_ratio(error: RatioError, dtype: str, limit: float) -> None:
    """Stop where the first minibatch of a rollout does not start at ratio 1.

    In half precision, scoring and training may take different kernels (attention with and without gradients), which
    round the same logits differently; the ratio of a single token then says nothing, and their mean is limited.

    Args:
        error: of all processes.
        dtype: of the policy.
        limit: of the largest one in fp32.

    Raises:
        UserError: in fp32 the largest |ratio - 1| is above `limit`; in bf16 and fp16 the mean is above that of
            `HALF_PRECISION_RATIO_ERROR`.
    """
    cause = (
        "old and new log-probabilities are not of the same computation. "
        "Usual causes: dropout, or layers that behave differently in training mode"
    )
    if dtype == "fp32" and error.largest > limit:
        raise UserError(
            f"the probability ratio on the first minibatch is off by up to {error.largest:.2e}, allowed is {limit:.0e} "
            f"(ppo.max_first_ratio_error): {cause}"
        )
    if dtype != "fp32" and error.mean > HALF_PRECISION_RATIO_ERROR[dtype]:
        raise UserError(
            f"the probability ratio on the first minibatch is off by {error.mean:.3f} on average, allowed is "
            f"{HALF_PRECISION_RATIO_ERROR[dtype]:.3f} in {dtype}: {cause}. "
            "Try ppo.dtype: fp32 to tell rounding from a defect"
        )
