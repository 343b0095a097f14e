"""Rewards and advantages against float64 loops written from the definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.ppo.advantages import (
    final_score,
    generalised_advantages,
    group_relative_advantages,
    leave_one_out_advantages,
    scale_rewards,
    token_rewards,
    whiten,
)


def random_rollout(seed: int, batch: int = 4, width: int = 7):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (batch,), generator=generator)
    mask = (torch.arange(width) < lengths[:, None]).float()
    tables = [torch.randn(batch, width, generator=generator) for _ in range(2)]
    return lengths, mask, *tables


def advantages_by_definition(rewards, values, length, gamma, gae_lambda):
    """A_t = sum over k of (gamma lambda)^k delta_{t+k}; O(T^2)."""
    value = [*values[:length], 0.0]
    delta = [rewards[t] + gamma * value[t + 1] - value[t] for t in range(length)]
    return [sum((gamma * gae_lambda) ** (k - t) * delta[k] for k in range(t, length)) for t in range(length)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 1.0), st.floats(0.0, 1.0))
def test_advantages_follow_the_definition(seed, gamma, gae_lambda):
    lengths, mask, rewards, values = random_rollout(seed)
    advantages, returns = generalised_advantages(rewards * mask, values, mask, gamma, gae_lambda)
    for row, length in enumerate(lengths.tolist()):
        expected = advantages_by_definition(
            rewards[row].double().tolist(), values[row].double().tolist(), length, gamma, gae_lambda
        )
        np.testing.assert_allclose(advantages[row, :length], expected, atol=1e-5)
        np.testing.assert_allclose(returns[row, :length], np.array(expected) + values[row, :length].numpy(), atol=1e-5)
    assert torch.all(advantages[mask == 0] == 0)
    assert torch.all(returns[mask == 0] == 0)


def test_an_answer_of_one_token_has_the_advantage_of_its_reward():
    advantages, returns = generalised_advantages(
        torch.tensor([[2.0], [0.5]]), torch.tensor([[0.5], [1.0]]), torch.ones(2, 1), 0.9, 0.5
    )
    assert advantages.tolist() == [[1.5], [-0.5]]
    assert returns.tolist() == [[2.0], [0.5]]


def test_what_lies_after_the_end_cannot_influence_advantages():
    _, mask, rewards, values = random_rollout(3)
    clean = generalised_advantages(rewards * mask, values, mask, 0.99, 0.95)
    noise = values + 1000 * (1 - mask)
    noisy = generalised_advantages(rewards * mask, noise, mask, 0.99, 0.95)
    assert all(torch.equal(a, b) for a, b in zip(clean, noisy, strict=True))


def test_score_is_added_once_at_the_last_token():
    lengths, mask, *_ = random_rollout(5)
    score = torch.tensor([1.0, -2.0, 3.0, 4.0])
    rewards = token_rewards(torch.zeros_like(mask), score, mask)
    for row, length in enumerate(lengths.tolist()):
        expected = [0.0] * mask.shape[1]
        expected[length - 1] = float(score[row])
        assert rewards[row].tolist() == expected


def test_a_penalty_counts_at_its_token_and_inside_the_mask_only():
    lengths, mask, penalty, _ = random_rollout(6)
    rewards = token_rewards(penalty, torch.zeros(4), mask)
    for row, length in enumerate(lengths.tolist()):
        expected = [-float(penalty[row, t]) if t < length else 0.0 for t in range(mask.shape[1])]
        assert rewards[row].tolist() == pytest.approx(expected)


def groups(rewards, mask, size):
    """Whole reward of each answer, by prompt, in float64."""
    totals = (rewards.double() * mask.double()).sum(1).tolist()
    return [totals[start : start + size] for start in range(0, len(totals), size)]


@pytest.mark.parametrize("size", [2, 3, 6])
def test_leave_one_out_subtracts_the_mean_of_the_others(size):
    lengths, mask, rewards, _ = random_rollout(8, batch=6)
    advantages = leave_one_out_advantages(rewards, mask, size)
    for prompt, group in enumerate(groups(rewards, mask, size)):
        for place, total in enumerate(group):
            others = [value for other, value in enumerate(group) if other != place]
            row = prompt * size + place
            expected = total - sum(others) / len(others)
            np.testing.assert_allclose(advantages[row, : lengths[row]], expected, atol=1e-5)
            assert torch.all(advantages[row, lengths[row] :] == 0)


@pytest.mark.parametrize("size", [2, 3, 6])
def test_group_relative_advantages_are_centred_and_scaled_within_a_prompt(size):
    lengths, mask, rewards, _ = random_rollout(9, batch=6)
    advantages = group_relative_advantages(rewards, mask, size)
    for prompt, group in enumerate(groups(rewards, mask, size)):
        mean, deviation = np.mean(group), np.std(group, ddof=1)
        for place, total in enumerate(group):
            row = prompt * size + place
            expected = (total - mean) / (deviation + 1e-4)
            np.testing.assert_allclose(advantages[row, : lengths[row]], expected, atol=1e-4)
            assert torch.all(advantages[row, lengths[row] :] == 0)


def test_a_group_of_equal_rewards_teaches_nothing():
    mask = torch.ones(4, 3)
    for estimate in (leave_one_out_advantages, group_relative_advantages):
        assert torch.all(estimate(mask * 2.0, mask, 4) == 0)


def test_scaled_rewards_keep_their_sign_and_ratio():
    _, mask, rewards, _ = random_rollout(10)
    scaled = scale_rewards(rewards, mask)
    valid = rewards[mask.bool()].double().numpy()
    np.testing.assert_allclose(scaled[mask.bool()], valid / np.sqrt(valid.var() + 1e-8), atol=1e-5)
    assert torch.all(scaled[mask == 0] == 0)


def test_whitening_covers_all_valid_tokens_with_biased_variance():
    _, mask, values, _ = random_rollout(7)
    white = whiten(values, mask)
    valid = values[mask.bool()].double().numpy()
    expected = (valid - valid.mean()) / np.sqrt(valid.var() + 1e-8)
    np.testing.assert_allclose(white[mask.bool()], expected, atol=1e-5)
    assert torch.all(white[mask == 0] == 0)


def test_final_score_clips_then_subtracts_the_penalty():
    score = final_score(torch.tensor([7.0, -7.0, 1.0, -7.0]), torch.tensor([True, True, False, False]), 5.0, 1.5)
    assert score.tolist() == [5.0, -5.0, -0.5, -6.5]
