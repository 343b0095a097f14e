"""Losses and gradients on the device: against the CPU in fp32, and in half precision against fp32.

Small models with large weights, so that a wrong mask, position or cast is far above rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlhf.models.loading import load_policy, load_reward_backbone
from rlhf.models.scores import TokenScorer, answer_logits, token_logprobs
from rlhf.ppo.losses import log_ratio, policy_loss, value_loss
from rlhf.ppo.samples import collate
from rlhf.ppo.scoring import answer_values
from rlhf.training.reward import GroupPreference
from rlhf.training.sft import AnswerLikelihood
from tests.gpu.runs import FAMILIES
from tests.unit.conftest import ListCorpus, make_model

pytestmark = pytest.mark.gpu
Loss = Callable[[nn.Module], Tensor]
Note = Callable[[str, Any], None]

# ||difference|| / ||reference|| of all gradients together. Rounding of one number: 6e-8, 4e-3 (bf16), 5e-4 (fp16).
LIMITS = {"fp32": 1e-4, "bf16": 0.1, "fp16": 0.02}
LOSS_SHARE = 0.2  # of these limits, for the loss itself
LOSS_SCALE = 2.0**10  # as in training, small gradients would be 0 in fp16; a power of two rounds nothing
CORPUS: Any = ListCorpus(12, seed=3)
GROUPS: Any = ListCorpus(6, seed=4, ranks=((0, 1), (0, 1, 2, 3), (0, 0, 1)))


def supervised(objective: Any, corpus: Any) -> Loss:
    """The summed loss of all rows, by the objective's mean."""
    rows = np.arange(len(corpus))
    return lambda model: objective.loss(model, corpus, rows)[0] / objective.count(corpus, rows)


def samples(device: torch.device) -> Any:
    """Prompts and answers of the corpus, as a rollout has them."""
    rows = range(len(CORPUS))
    return collate([CORPUS.prompt(row) for row in rows], [CORPUS.chosen(row) for row in rows], 0, device)


def table(shape: torch.Size, seed: int, device: torch.device) -> Tensor:
    """Random numbers that are the same on all devices: [samples, width] float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def policy(model: nn.Module) -> Tensor:
    """PPO's clipped surrogate, with ratios on both sides of the clip range."""
    part = samples(next(model.parameters()).device)
    logits = answer_logits(model, *part.inputs) / 0.7
    logprobs = part.table(token_logprobs(logits, part.targets))
    # What a policy near this one would have said: the same on all devices, up to rounding.
    old = logprobs.detach() + 0.3 * table(part.mask.shape, 0, part.mask.device)
    ratio = log_ratio(logprobs, old, part.mask).exp()
    return policy_loss(ratio, table(part.mask.shape, 1, part.mask.device), part.mask, 0.2) / part.mask.sum()


def value(model: nn.Module) -> Tensor:
    """PPO's clipped value loss."""
    part = samples(next(model.parameters()).device)
    values = answer_values(model, part)
    old = values.detach() + 0.3 * table(part.mask.shape, 2, part.mask.device)
    returns = values.detach() + table(part.mask.shape, 3, part.mask.device)
    return value_loss(values, old, returns, part.mask, 0.2) / part.mask.sum()


LOSSES: dict[str, tuple[str, Loss]] = {
    "sft": ("lm", supervised(AnswerLikelihood(), CORPUS)),
    "sft on all tokens": ("lm", supervised(AnswerLikelihood("all"), CORPUS)),
    "sft packed": ("lm", supervised(AnswerLikelihood(capacity=32), CORPUS)),
    "reward": ("score", supervised(GroupPreference(), GROUPS)),
    "reward token-wise": ("score", supervised(GroupPreference("token_wise"), GROUPS)),
    "reward shared prompt": ("score", supervised(GroupPreference(share_prompt=True), GROUPS)),
    "policy": ("lm", policy),
    "value": ("score", value),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each family."""
    folder = tmp_path_factory.mktemp("models")
    return {family: make_model(folder / family, family) for family in FAMILIES}


def load(folder: Path, head: str, dtype: str) -> nn.Module:
    """A model on the CPU, without dropout."""
    if head == "lm":
        return load_policy(folder, dtype).train()
    return TokenScorer(load_reward_backbone(folder, dtype, seed=0)).train()


def measured(model: nn.Module, loss: Loss) -> tuple[float, Tensor]:
    """A loss, and the gradients of all parameters in one: [parameters] float64 on the CPU."""
    result = loss(model)
    (LOSS_SCALE * result).backward()
    gradients = [p.grad.flatten().double().cpu() for p in model.parameters() if p.grad is not None]
    return float(result.detach()), torch.cat(gradients) / LOSS_SCALE


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_are_those_of_the_cpu_in_fp32(
    folders: dict[str, Path], device: torch.device, family: str, name: str, dtype: str, record_property: Note
) -> None:
    head, loss = LOSSES[name]
    expected, reference = measured(load(folders[family], head, "fp32"), loss)
    found, gradient = measured(load(folders[family], head, dtype).to(device), loss)
    error = float((gradient - reference).norm() / reference.norm())
    record_property("loss", abs(found - expected) / abs(expected))
    record_property("gradient", error)
    assert abs(found - expected) <= LOSS_SHARE * LIMITS[dtype] * abs(expected)
    assert error <= LIMITS[dtype]


def test_the_limit_tells_another_temperature_and_mask_apart(folders: dict[str, Path], device: torch.device) -> None:
    """Not a comparison of devices: what the limits of fp32 would not let pass."""
    model = load(folders["gpt2"], "lm", "fp32").to(device)
    _, reference = measured(model, LOSSES["sft"][1])
    model.zero_grad()
    _, other = measured(model, LOSSES["sft on all tokens"][1])
    assert float((other - reference).norm() / reference.norm()) > max(LIMITS.values())
