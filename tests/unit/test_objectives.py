"""The choices of loss in SFT and reward training, against float64 loops."""

import math

import numpy as np
import pytest
import torch

from rlhf.models.loading import load_policy, load_reward_backbone
from rlhf.models.scores import TokenScorer
from rlhf.training.reward import PairPreference, pair_inputs, token_wise_loss
from rlhf.training.sft import AnswerLikelihood
from rlhf.training.supervised import mean_loss


def test_loss_on_all_counts_every_token_but_the_first(family_folder, list_corpus, group):
    model = load_policy(family_folder, "fp32", 0.0).eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in range(len(list_corpus)):
            ids = np.concatenate([list_corpus.prompt(row), list_corpus.chosen(row)])
            logprobs = model(torch.tensor(ids[None])).logits[0].double().log_softmax(-1)
            total -= sum(float(logprobs[t - 1, ids[t]]) for t in range(1, len(ids)))
            count += len(ids) - 1
        for batch_size in (1, 16):
            loss = mean_loss(model, AnswerLikelihood("all"), list_corpus, batch_size)["loss"]
            assert loss == pytest.approx(total / count, rel=1e-5)


def token_wise_by_definition(chosen, rejected, chosen_scores, rejected_scores) -> float:
    """Sequences without padding, scores of the padded width: the window is [first difference, longer end)."""
    longer = max(len(chosen), len(rejected))
    padded = [list(ids) + [0] * (longer - len(ids)) for ids in (chosen, rejected)]
    start = next(t for t in range(longer) if padded[0][t] != padded[1][t])
    terms = [-math.log(1 / (1 + math.exp(-(chosen_scores[t] - rejected_scores[t])))) for t in range(start, longer)]
    return sum(terms) / len(terms)


def test_token_wise_loss_follows_its_definition(list_corpus):
    rows = np.arange(8)
    ids, mask = pair_inputs(list_corpus, rows, torch.device("cpu"))
    scores = torch.randn(ids.shape, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for row in rows:
        sequences = [
            np.concatenate([list_corpus.prompt(row), answer])
            for answer in (list_corpus.chosen(row), list_corpus.rejected(row))
        ]
        tables = [scores[place].double().tolist() for place in (row, row + len(rows))]
        expected += token_wise_by_definition(*sequences, *tables)
    assert float(token_wise_loss(scores, ids, mask)) == pytest.approx(expected, rel=1e-5)


def test_token_wise_loss_ignores_what_lies_beyond_the_longer_end():
    ids = torch.tensor([[5, 6, 1, 0, 0], [5, 7, 8, 1, 0]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    scores = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    changed = scores.clone()
    changed[:, 0] = 100.0  # before the first difference
    changed[0, 4] = -100.0  # after the longer end
    assert float(token_wise_loss(scores, ids, mask)) == float(token_wise_loss(changed, ids, mask))
    changed[0, 3] += 1.0  # padding of the shorter answer, inside the window
    assert float(token_wise_loss(scores, ids, mask)) != float(token_wise_loss(changed, ids, mask))


def test_accuracy_is_read_at_the_ends_whatever_the_loss(gpt2_folder, list_corpus, group):
    model = TokenScorer(load_reward_backbone(gpt2_folder, "fp32", seed=1, dropout=0.0)).eval()
    with torch.no_grad():
        last, wise = (mean_loss(model, PairPreference(loss), list_corpus, 4) for loss in ("last_token", "token_wise"))
    assert last["accuracy"] == wise["accuracy"]
    assert last["loss"] != wise["loss"]
