"""PPO's losses against float64 loops."""

import math

import pytest
import torch

from rlhf.ppo.losses import log_ratio, policy_loss, value_loss


def tables(*count: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(3, 5, generator=generator) > 0.3).float()
    return mask, [torch.randn(3, 5, generator=generator) for _ in range(*count)]


def test_policy_loss_is_the_clipped_surrogate():
    mask, (logprobs, old, advantages) = tables(3)
    ratio = log_ratio(logprobs, old, mask).exp()
    expected = 0.0
    for row in range(3):
        for t in range(5):
            if mask[row, t]:
                rho = math.exp(float(logprobs[row, t]) - float(old[row, t]))
                a = float(advantages[row, t])
                expected += max(-a * rho, -a * min(max(rho, 0.8), 1.2))
    assert float(policy_loss(ratio, advantages, mask, 0.2)) == pytest.approx(expected, rel=1e-5)


def test_value_loss_takes_the_worse_of_clipped_and_unclipped():
    mask, (values, old, returns) = tables(3, seed=1)
    expected = 0.0
    for row in range(3):
        for t in range(5):
            if mask[row, t]:
                v, o, r = (float(table[row, t]) for table in (values, old, returns))
                clipped = min(max(v, o - 0.2), o + 0.2)
                expected += 0.5 * max((v - r) ** 2, (clipped - r) ** 2)
    assert float(value_loss(values, old, returns, mask, 0.2)) == pytest.approx(expected, rel=1e-5)


def test_log_ratio_is_clamped_and_zero_outside_the_mask():
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    result = log_ratio(torch.tensor([[100.0, -100.0, 5.0]]), torch.zeros(1, 3), mask)
    assert result.tolist() == [[20.0, -20.0, 0.0]]


def test_clipped_tokens_have_no_policy_gradient():
    logprobs = torch.tensor([[1.0, 0.0]], requires_grad=True)
    ratio = log_ratio(logprobs, torch.zeros(1, 2), torch.ones(1, 2)).exp()
    policy_loss(ratio, torch.ones(1, 2), torch.ones(1, 2), 0.2).backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[0.0, -1.0]]
