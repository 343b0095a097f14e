"""The choices of loss in SFT and reward training, against float64 loops."""

import itertools
import math

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from rlhf.config.stages import RewardExecution
from rlhf.errors import UserError
from rlhf.models.attention import segment_positions
from rlhf.models.loading import load_policy, load_reward_backbone
from rlhf.models.scores import TokenScorer
from rlhf.training.reward import (
    PROMPT,
    GroupPreference,
    answer_inputs,
    difference_window,
    require_margins,
    require_segments,
    shared_inputs,
    token_wise_loss,
)
from rlhf.training.sft import AnswerLikelihood
from rlhf.training.supervised import mean_loss
from tests.unit.conftest import ListCorpus, make_model


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


def token_wise_by_definition(chosen, rejected, chosen_scores, rejected_scores, margin) -> float:
    """Sequences without padding, scores of the padded width: the window is [first difference, longer end)."""
    longer = max(len(chosen), len(rejected))
    padded = [list(ids) + [0] * (longer - len(ids)) for ids in (chosen, rejected)]
    start = next(t for t in range(longer) if padded[0][t] != padded[1][t])
    ahead = [chosen_scores[t] - rejected_scores[t] - margin for t in range(start, longer)]
    terms = [-math.log(1 / (1 + math.exp(-one))) for one in ahead]
    return sum(terms) / len(terms)


def losses_of_windows(scores, ids, mask, margin) -> torch.Tensor:
    """Token-wise loss of one pair, whose answers are the two rows."""
    better, worse = torch.tensor([0]), torch.tensor([1])
    window = difference_window(ids[better], ids[worse], mask[better], mask[worse])
    return token_wise_loss(scores[better], scores[worse], torch.tensor([margin]), window)


def test_token_wise_loss_follows_its_definition(list_corpus):
    for row in range(8):
        ids, mask = answer_inputs(list_corpus, np.array([row]), torch.device("cpu"))
        scores = torch.randn(ids.shape, generator=torch.Generator().manual_seed(row))
        sequences = [np.concatenate([list_corpus.prompt(row), answer]) for answer in list_corpus.answers(row)]
        tables = [table.double().tolist() for table in scores]
        for margin in (0.0, 1.5):
            expected = token_wise_by_definition(*sequences, *tables, margin)
            assert float(losses_of_windows(scores, ids, mask, margin)) == pytest.approx(expected, rel=1e-5)


def test_token_wise_loss_ignores_what_lies_beyond_the_longer_end():
    ids = torch.tensor([[5, 6, 1, 0, 0], [5, 7, 8, 1, 0]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    scores = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    changed = scores.clone()
    changed[:, 0] = 100.0  # before the first difference
    changed[0, 4] = -100.0  # after the longer end
    assert float(losses_of_windows(scores, ids, mask, 0.0)) == float(losses_of_windows(changed, ids, mask, 0.0))
    changed[0, 3] += 1.0  # padding of the shorter answer, inside the window
    assert float(losses_of_windows(scores, ids, mask, 0.0)) != float(losses_of_windows(changed, ids, mask, 0.0))


def test_accuracy_is_read_at_the_ends_whatever_the_loss(gpt2_folder, group_corpus, group):
    model = TokenScorer(load_reward_backbone(gpt2_folder, "fp32", seed=1, dropout=0.0)).eval()
    objectives = [GroupPreference(loss) for loss in ("last_token", "token_wise")]
    with torch.no_grad():
        last, wise = (one.summary(mean_loss(model, one, group_corpus, 4)) for one in objectives)
    assert last["accuracy"] == wise["accuracy"]
    assert last["loss"] != wise["loss"]


def scorer_of(folder) -> TokenScorer:
    return TokenScorer(load_reward_backbone(folder, "fp32", seed=1, dropout=0.0)).eval()


@pytest.mark.parametrize("coefficient", [0.0, 0.2])
@pytest.mark.parametrize("loss", ["last_token", "token_wise"])
def test_the_loss_of_a_group_is_the_mean_over_its_pairs(gpt2_folder, group_corpus, group, loss, coefficient):
    """Against a loop over pairs; the groups of a batch count equally, the pairs of the accuracy do."""
    model, objective = scorer_of(gpt2_folder), GroupPreference(loss, coefficient)
    groups, right, count = [], 0.0, 0
    for row in range(len(group_corpus)):
        sequences = [np.concatenate([group_corpus.prompt(row), answer]) for answer in group_corpus.answers(row)]
        width = max(map(len, sequences))
        tables = []
        with torch.no_grad():
            for ids in sequences:  # padding to the width of the group, which a pair's window does not leave
                padded = torch.tensor([[*ids, *[0] * (width - len(ids))]])
                tables.append(model(padded, (torch.arange(width) < len(ids)).long()[None])[0].double().tolist())
        ranks = group_corpus.judgements(row)["rank"].tolist()
        losses = []
        for i, j in itertools.permutations(range(len(ranks)), 2):
            if ranks[i] < ranks[j]:
                margin = coefficient * 2.5 * (ranks[j] - ranks[i])
                ahead = tables[i][len(sequences[i]) - 1] - tables[j][len(sequences[j]) - 1]
                right, count = right + (ahead > 0), count + 1
                if loss == "last_token":
                    losses.append(math.log1p(math.exp(margin - ahead)))
                else:
                    pair = (sequences[i], sequences[j], tables[i], tables[j])
                    losses.append(token_wise_by_definition(*pair, margin))
        groups.append(sum(losses) / len(losses))
    with torch.no_grad():
        means = objective.summary(mean_loss(model, objective, group_corpus, 3))
    assert means["loss"] == pytest.approx(sum(groups) / len(groups), rel=1e-5)
    assert means["accuracy"] == pytest.approx(right / count)
    assert count == 3 * 1 + 3 * 6 + 2 * 2 + 2 * 8


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_shared_prompt_changes_neither_scores_nor_gradients(tmp_path, group_corpus, family):
    folder = make_model(tmp_path / family, family)
    rows, results = np.arange(len(group_corpus)), []
    for share in (False, True):
        model, objective = scorer_of(folder), GroupPreference("last_token", 0.2, share)
        with torch.no_grad():
            scores = objective.scores(model, group_corpus, rows)
        objective.loss(model, group_corpus, rows)[0].backward()
        results.append((scores, [parameter.grad for parameter in model.parameters()]))
    (apart, gradients), (shared, shared_gradients) = results
    assert torch.allclose(apart, shared, atol=1e-5, rtol=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    for a, b in zip(gradients, shared_gradients, strict=True):
        assert float((a - b).abs().max()) <= 1e-5 * largest


def test_a_shared_prompt_may_make_the_sequence_longer_than_the_model(gpt2_folder):
    """64 positions; twenty answers to one prompt have more tokens together, and none of them a higher position."""
    corpus = ListCorpus(6, seed=3, ranks=(tuple(range(20)),))
    ids, segments, _ = shared_inputs(corpus, np.arange(6))
    assert ids.shape[1] > 64
    positions = segment_positions(segments, PROMPT).max(1).values
    assert positions.tolist() == (corpus.lengths("prompt") + corpus.longest_answers() - 1).tolist()
    model = scorer_of(gpt2_folder)
    with torch.no_grad():
        apart, shared = (GroupPreference(share_prompt=share).scores(model, corpus, np.arange(6)) for share in (0, 1))
    assert torch.allclose(apart, shared, atol=1e-5, rtol=1e-5)


def test_a_family_that_cannot_share_a_prompt_is_refused(tmp_path):
    config = AutoConfig.for_model("bloom", hidden_size=32, n_layer=1, n_head=4, vocab_size=60, num_labels=1)
    model = AutoModelForSequenceClassification.from_config(config)
    require_segments(model, RewardExecution(share_prompt=False), 64)
    with pytest.raises(UserError, match=r"reward\.execution\.share_prompt: bloom cannot"):
        require_segments(model, RewardExecution(share_prompt=True), 64)
    for family in ("gpt2", "opt", "llama"):
        folder = make_model(tmp_path / family, family)
        require_segments(load_reward_backbone(folder, "fp32", seed=0), RewardExecution(share_prompt=True), 64)


def test_margins_that_no_row_has_are_refused(group_corpus, monkeypatch, caplog):
    require_margins(group_corpus, 0.5)
    assert "no margin" not in caplog.text
    rated = group_corpus.judgements

    def without(rows):
        def judgements(row):
            judged = rated(row)
            judged["rating"] = np.nan if row in rows else judged["rating"]
            return judged

        return judgements

    monkeypatch.setattr(group_corpus, "judgements", without({0}))
    require_margins(group_corpus, 0.5)
    assert "1 of 41 training pairs have no margin" in caplog.text
    monkeypatch.setattr(group_corpus, "judgements", without(set(range(10))))
    require_margins(group_corpus, 0.0)
    with pytest.raises(UserError, match=r"reward\.margin_coefficient: 0\.5, but no pair"):
        require_margins(group_corpus, 0.5)
