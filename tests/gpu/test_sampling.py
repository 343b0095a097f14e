"""Sampling on the device: the answers of the CPU, at the log-probabilities that training computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.models.loading import load_policy
from rlhf.models.scores import answer_logits, token_logprobs
from rlhf.ppo.rollout import sample_answers
from rlhf.ppo.samples import collate
from tests.gpu.runs import FAMILIES
from tests.unit.conftest import make_model

pytestmark = pytest.mark.gpu
PROMPTS = [np.arange(3, 3 + length) for length in (3, 1, 6, 9)]
SEEDS = range(100, 100 + len(PROMPTS))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {family: make_model(folder / family, family) for family in FAMILIES}


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_in_fp32_are_those_of_the_cpu(
    folders: dict[str, Path],
    device: torch.device,
    family: str,
    temperature: float,
    record_property: Callable[[str, Any], None],
) -> None:
    model = load_policy(folders[family], "fp32").eval()
    expected = sample_answers(model, PROMPTS, SEEDS, 24, temperature)
    found = sample_answers(model.to(device), PROMPTS, SEEDS, 24, temperature)
    assert [answer.ids.tolist() for answer in found] == [answer.ids.tolist() for answer in expected]
    pairs = zip(found, expected, strict=True)
    largest = max(float(np.abs(one.logprobs - other.logprobs).max()) for one, other in pairs)
    record_property("log-probability", largest)
    assert largest <= 1e-4


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_logprobs_are_those_of_one_forward_pass(
    folders: dict[str, Path],
    device: torch.device,
    family: str,
    dtype: str,
    record_property: Callable[[str, Any], None],
) -> None:
    """In half precision their probabilities, on average: rounding moves single ones."""
    model = load_policy(folders[family], dtype).eval().to(device)
    answers = sample_answers(model, PROMPTS, SEEDS, 24, 1.0)
    part = collate(PROMPTS, [answer.ids for answer in answers], 0, device)
    with torch.no_grad():
        logits = answer_logits(model, *part.inputs)
    logprobs = part.table(token_logprobs(logits, part.targets)).cpu()
    rows = zip(answers, logprobs, strict=True)
    differences = [(answer.logprobs, row[: len(answer.ids)].numpy()) for answer, row in rows]
    largest = max(float(np.abs(one - other).max()) for one, other in differences)
    mean = float(np.mean(np.concatenate([np.abs(np.exp(one) - np.exp(other)) for one, other in differences])))
    record_property("log-probability", largest)
    record_property("mean probability", mean)
    assert largest <= 1e-4 if dtype == "fp32" else mean <= 1e-3


def test_an_answer_on_the_device_does_not_depend_on_its_batch(folders: dict[str, Path], device: torch.device) -> None:
    model = load_policy(folders["gpt2"], "fp32").eval().to(device)
    together = sample_answers(model, PROMPTS, SEEDS, 24, 1.0)
    for prompt, seed, answer in zip(PROMPTS, SEEDS, together, strict=True):
        (alone,) = sample_answers(model, [prompt], [seed], 24, 1.0)
        assert alone.ids.tolist() == answer.ids.tolist()
