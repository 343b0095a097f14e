"""Scores, log-probabilities and entropies, and which of a model's logits are computed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlhf.models.loading import load_policy, load_reward, load_reward_backbone
from rlhf.models.scores import TokenScorer, answer_logits, last_token, token_entropy, token_logprobs


def random_ids(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 50, length)


def test_token_logprobs_and_entropy_against_float64_softmax():
    logits = torch.randn(3, 4, 11) * 5
    targets = torch.randint(0, 11, (3, 4))
    exact = logits.double().log_softmax(-1)
    expected = exact.gather(-1, targets[..., None]).squeeze(-1)
    assert torch.allclose(token_logprobs(logits, targets).double(), expected, atol=1e-5)
    entropy = -(exact.exp() * exact).sum(-1)
    assert torch.allclose(token_entropy(logits).double(), entropy, atol=1e-5)


def test_half_precision_logits_are_reduced_in_fp32():
    logits = (torch.randn(2, 3, 5000, generator=torch.Generator().manual_seed(0)) * 3).bfloat16()
    targets = torch.randint(0, 5000, (2, 3))
    exact = logits.double().log_softmax(-1)
    expected = exact.gather(-1, targets[..., None]).squeeze(-1)
    assert torch.allclose(token_logprobs(logits, targets).double(), expected, atol=1e-4)
    assert torch.allclose(token_entropy(logits).double(), -(exact.exp() * exact).sum(-1), atol=1e-4)


def test_token_logprobs_are_fp32_for_half_precision_logits():
    assert token_logprobs(torch.randn(2, 5).bfloat16(), torch.zeros(2, dtype=torch.long)).dtype == torch.float32


def test_chosen_logits_are_those_of_the_whole_table(family_folder):
    """By a mask, by columns, and where a family computes all of them; the output layer sees the chosen ones only."""
    model = load_policy(family_folder, "fp32").eval()
    ids, mask = torch.from_numpy(np.stack([random_ids(7, 1), random_ids(7, 2)])), torch.ones(2, 7, dtype=torch.long)
    chosen = torch.zeros(2, 7, dtype=torch.bool).scatter(1, torch.tensor([[1, 4], [3, 5]]), True)
    places = {"mask": [(0, 1), (0, 4), (1, 3), (1, 5)], "columns": [(0, 2), (0, 6), (1, 2), (1, 6)]}
    seen: list[int] = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][..., 0].numel()))
    with torch.no_grad():
        whole = model(ids).logits
        for predicting, name in ((chosen, "mask"), (torch.tensor([2, 6]), "columns")):
            expected = torch.stack([whole[place] for place in places[name]])
            torch.testing.assert_close(answer_logits(model, ids, mask, predicting), expected, atol=1e-4, rtol=1e-5)
            found = answer_logits(AllLogits(model), ids, mask, predicting)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    assert seen == [14, 4, 14, 4, 14]


class AllLogits(torch.nn.Module):
    """A model that cannot be told which logits are wanted."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        output = self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)
        return SimpleNamespace(logits=output.logits)


def test_score_equals_what_transformers_reads_from_the_saved_folder(family_folder, tmp_path):
    model = load_reward_backbone(family_folder, "fp32", seed=1)
    model.config.reward_mean, model.config.reward_std = 0.5, 2.0
    model.save_pretrained(tmp_path / "reward")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    scorer = TokenScorer.normalised(load_reward(tmp_path / "reward", "fp32")).eval()
    ids = torch.from_numpy(random_ids(8, 3))[None].repeat(2, 1)
    mask = torch.ones_like(ids)
    ids[1, 5:], mask[1, 5:] = 0, 0
    with torch.no_grad():
        raw = plain(input_ids=ids, attention_mask=mask).logits[:, 0]
        ours = last_token(scorer(ids, mask), mask)
    assert torch.allclose(ours, (raw - 0.5) / 2.0, atol=1e-5)


def test_last_token_finds_the_end_under_padding_on_either_side():
    values = torch.arange(10.0).reshape(2, 5)
    mask = torch.tensor([[0, 0, 1, 1, 0], [1, 1, 1, 1, 1]])
    assert last_token(values, mask).tolist() == [3.0, 9.0]


def test_score_head_has_the_published_deviation(gpt2_folder):
    heads = [load_reward_backbone(gpt2_folder, "fp32", seed=s).score.weight.detach() for s in range(40)]
    spread = float(torch.cat(heads).std())
    assert spread == pytest.approx(1 / 33**0.5, rel=0.05)  # width 32
