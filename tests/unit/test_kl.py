"""KL estimators against exact divergences, and the controller against its closed form."""

import math

import pytest
import torch

from rlhf.ppo.kl import KlController, token_kl
from rlhf.ppo.losses import log_ratio

EVERYWHERE = torch.ones(())


def categoricals(scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    policy, reference = (scale * torch.randn(2, 5, generator=generator, dtype=torch.float64)).log_softmax(-1)
    return policy, reference


def exact(policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return (policy.exp() * (policy - reference)).sum()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator):
    """The expectation over the policy is a finite sum: no sampling error."""
    policy, reference = categoricals()
    expected = (policy.exp() * token_kl(policy, reference, EVERYWHERE, estimator)).sum()
    assert float(expected) == pytest.approx(float(exact(policy, reference)), rel=1e-12)


def test_k2_is_close_for_near_distributions_and_k3_is_never_negative():
    policy, reference = categoricals(0.05)
    expected = (policy.exp() * token_kl(policy, reference, EVERYWHERE, "k2")).sum()
    assert float(expected) == pytest.approx(float(exact(policy, reference)), rel=0.1)
    assert torch.all(token_kl(*categoricals(3.0), EVERYWHERE, "k3") >= 0)


def test_per_token_values():
    difference = 0.7
    logprobs, ref = torch.tensor([[-1.0]]), torch.tensor([[-1.0 - difference]])
    assert float(token_kl(logprobs, ref, EVERYWHERE, "k1")) == pytest.approx(difference)
    assert float(token_kl(logprobs, ref, EVERYWHERE, "k2")) == pytest.approx(difference**2 / 2)
    k3 = math.exp(-difference) - 1 + difference
    assert float(token_kl(logprobs, ref, EVERYWHERE, "k3")) == pytest.approx(k3, rel=1e-5)


def gradient(estimator: str) -> torch.Tensor:
    """Mean gradient of the estimator as a loss, over the policy's own draws, at the logits."""
    policy, reference = categoricals()
    logits = policy.clone().requires_grad_(True)
    logprobs = logits.log_softmax(-1)
    (policy.exp() * token_kl(logprobs, reference, EVERYWHERE, estimator)).sum().backward()
    return logits.grad


def test_only_k2_as_a_loss_has_the_gradient_of_the_divergence():
    policy, reference = categoricals()
    logits = policy.clone().requires_grad_(True)
    exact(logits.log_softmax(-1), reference).backward()
    assert torch.allclose(gradient("k2"), logits.grad, atol=1e-12)
    assert torch.allclose(gradient("k1"), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    assert not torch.allclose(gradient("k3"), logits.grad, atol=1e-3)


@pytest.mark.parametrize("pad", [-95.0, -math.inf])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_an_estimator_never_sees_padding(estimator, pad):
    """A policy may find the padding token impossible: exp(95) is infinite in float32, and 0 x infinity no number."""
    derivative = {"k1": lambda d: 1.0, "k2": lambda d: d, "k3": lambda d: 1 - math.exp(-d)}[estimator]
    value = {"k1": lambda d: d, "k2": lambda d: d**2 / 2, "k3": lambda d: math.exp(-d) - 1 + d}[estimator]
    logprobs = torch.tensor([[-1.0, -2.5, pad], [-0.5, pad, pad]], requires_grad=True)
    ref = torch.tensor([[-1.25, -2.0, 0.0], [-0.75, 0.0, 0.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    kl = token_kl(logprobs, ref, mask, estimator)
    kl.sum().backward()
    differences = [[0.25, -0.5], [0.25]]
    expected = [[value(d) for d in row] + [0.0] * (3 - len(row)) for row in differences]
    slopes = [[derivative(d) for d in row] + [0.0] * (3 - len(row)) for row in differences]
    torch.testing.assert_close(kl.detach(), torch.tensor(expected))
    torch.testing.assert_close(logprobs.grad, torch.tensor(slopes))


@pytest.mark.parametrize("pad", [-95.0, -math.inf])
def test_a_ratio_never_sees_padding(pad):
    logprobs = torch.tensor([[-1.0, pad]], requires_grad=True)
    ratios = log_ratio(logprobs, torch.tensor([[-1.5, 0.0]]), torch.tensor([[1.0, 0.0]]))
    ratios.sum().backward()
    assert ratios.tolist() == [[0.5, 0.0]]
    assert logprobs.grad.tolist() == [[1.0, 0.0]]


def test_an_adaptive_coefficient_follows_the_closed_form():
    """Three rollouts of 64 answers at twice, one tenth and nearly the target; the error is limited to 0.2."""
    controller = KlController(0.15, target=6.0, horizon=10_000)
    for kl in (12.0, 0.6, 6.3):
        controller.observe(kl, answers=64)
    share = 64 / 10_000
    expected = 0.15 * (1 + 0.2 * share) * (1 - 0.2 * share) * (1 + 0.05 * share)
    assert controller.coefficient == pytest.approx(expected, rel=1e-12)


def test_without_a_target_the_coefficient_stays():
    controller = KlController(0.1, target=None, horizon=1)
    controller.observe(100.0, answers=64)
    assert controller.coefficient == 0.1
