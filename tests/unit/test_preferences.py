"""What is said of a reward model, against loops and by hand; and intervals of pairs that share a prompt."""

import math

import numpy as np
import pytest
import torch

from rlhf.evaluation.preferences import (
    JudgedPairs,
    accuracy,
    by_length_difference,
    by_longer,
    by_subset,
    calibration,
    gold_agreement,
    longer_accuracy,
)
from rlhf.evaluation.statistics import clustered_interval, wilson_interval
from rlhf.evaluation.supervised import judged_pairs, reward_report
from rlhf.models.loading import load_reward_backbone
from rlhf.models.scores import TokenScorer
from rlhf.training.reward import GroupPreference
from rlhf.training.supervised import mean_loss


def make(margins, lengths=None, groups=None, subsets=None) -> JudgedPairs:
    margin = np.array(margins, float)
    count = len(margin)
    return JudgedPairs(
        chosen=margin + 1,
        rejected=np.ones(count),
        length_difference=np.array(lengths or [0] * count),
        group=np.array(groups or range(count)),
        subset=np.array(subsets or [None] * count, dtype=object),
    )


def test_accuracy_of_plain_pairs_has_the_wilson_interval():
    result = accuracy(make([1, 2, -1, -4, 3]))
    low, high = wilson_interval(3, 5)
    assert result == {
        "pairs": 5, "tie_share": 0.0,
        "accuracy": 0.6, "accuracy_low": pytest.approx(low), "accuracy_high": pytest.approx(high),
    }  # fmt: skip


def test_ties_are_half_right_in_every_number():
    """By hand: margins of four pairs, of which two are ties."""
    pairs = make([1, 0, -2, 0], [3, -1, 2, 0], subsets=["a", "a", "b", "b"])
    low, high = wilson_interval(2, 4)
    whole = accuracy(pairs)
    assert (whole["accuracy"], whole["tie_share"]) == (0.5, 0.5)
    assert (whole["accuracy_low"], whole["accuracy_high"]) == (pytest.approx(low), pytest.approx(high))
    parts = [(row["subset"], row["accuracy"], row["tie_share"]) for row in by_subset(pairs)]
    assert parts == [("a", 0.75, 0.5), ("b", 0.25, 0.5)]
    by_sign = [(row["chosen"], row["accuracy"], row["tie_share"]) for row in by_longer(pairs)]
    assert by_sign == [("longer", 0.5, 0.0), ("equal", 0.5, 1.0), ("shorter", 0.5, 1.0)]
    (first, *_), error = calibration(pairs)
    assert (first["from"], first["pairs"], first["predicted"], first["observed"]) == (0.5, 2, 0.5, 0.5)
    sure = [(1 / (1 + math.exp(-1)), 1.0), (1 / (1 + math.exp(-2)), 0.0)]
    assert error == pytest.approx(sum(abs(p - o) for p, o in sure) / 4)
    gold = gold_agreement(pairs, make([1, -2, 3, 0]), np.arange(4.0), np.arange(4.0))
    assert (gold["gold_pairs"], gold["gold_accuracy"]) == (3, pytest.approx((1 + 0.5 + 0) / 3))


def test_a_model_that_ties_everything_is_a_coin_for_training_and_evaluation_alike(gpt2_folder, group_corpus, group):
    scorer, objective = TokenScorer(load_reward_backbone(gpt2_folder, "fp32", seed=0)).eval(), GroupPreference()
    with torch.no_grad():
        for scale, ties in ((1.0, 0.0), (0.0, 1.0)):
            scorer.model.score.weight.mul_(scale)
            trained = objective.summary(mean_loss(scorer, objective, group_corpus, 4))
            scores = objective.scores(scorer, group_corpus, np.arange(10)).double().numpy()
            evaluated = accuracy(judged_pairs(group_corpus, scores))
            assert trained["tie_share"] == evaluated["tie_share"] == ties
            assert trained["accuracy"] == pytest.approx(evaluated["accuracy"])
    assert trained["accuracy"] == 0.5


def test_clusters_that_agree_within_count_as_one_trial_each():
    outcome = [1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0]
    clusters = [5, 5, 5, 2, 2, 2, 9, 9, 9, 7, 7, 7]
    assert clustered_interval(outcome, clusters) == pytest.approx(wilson_interval(2, 4))
    assert clustered_interval([1] * 6, [0, 0, 0, 1, 1, 1]) == pytest.approx(wilson_interval(2, 2))
    assert clustered_interval([0] * 6, [0, 0, 0, 1, 1, 1]) == pytest.approx(wilson_interval(0, 2))


def test_clusters_never_add_trials():
    """One right and one wrong in each cluster: no variance between clusters, and still only eight trials."""
    assert clustered_interval([1, 0] * 4, [0, 0, 1, 1, 2, 2, 3, 3]) == pytest.approx(wilson_interval(4, 8))


def test_the_clustered_interval_covers_what_the_plain_one_does_not():
    """Groups of 15 pairs with a share of their own: the plain interval of 95 % is far too narrow."""
    generator = np.random.default_rng(0)
    covered = {"clustered": 0, "plain": 0}
    for _ in range(200):
        shares = generator.beta(1.4, 0.6, 60).repeat(15)  # mean 0.7
        right = generator.random(900) < shares
        for name, groups in (("clustered", np.arange(60).repeat(15)), ("plain", np.arange(900))):
            low, high = clustered_interval(right, groups)
            covered[name] += low <= 0.7 <= high
    assert covered["clustered"] > 180
    assert covered["plain"] < 140


def test_choosing_the_longer_counts_equal_lengths_half():
    assert longer_accuracy(make([1] * 5, [3, -2, 0, 1, 0])) == pytest.approx((1 + 0 + 0.5 + 1 + 0.5) / 5)


def test_subsets_are_listed_by_name_where_there_are_any():
    pairs = make([1, -1, 2, 1], [1, 2, -1, 0], subsets=["b", "a", "b", None])
    rows = by_subset(pairs)
    assert [(row["subset"], row["pairs"], row["accuracy"], row["longer_accuracy"]) for row in rows] == [
        ("a", 1, 0.0, 1.0),
        ("b", 2, 1.0, 0.5),
    ]
    assert by_subset(make([1, 2])) is None


def test_longer_equal_and_shorter_cover_all_pairs():
    rows = by_longer(make([1, -1, 2, 1, 1], [4, 2, -1, 0, 7]))
    assert [(row["chosen"], row["pairs"], row["accuracy"]) for row in rows] == [
        ("longer", 3, pytest.approx(2 / 3)), ("equal", 1, 1.0), ("shorter", 1, 1.0),
    ]  # fmt: skip
    assert [row["chosen"] for row in by_longer(make([1], [-3]))] == ["shorter"]


def test_bins_of_the_length_difference_hold_about_equal_counts_and_do_not_overlap():
    generator = np.random.default_rng(1)
    lengths = generator.integers(-30, 31, 500)
    margins = generator.normal(size=500)
    rows = by_length_difference(make(margins, lengths.tolist()))
    assert len(rows) == 5
    assert sum(row["pairs"] for row in rows) == 500
    assert max(row["pairs"] for row in rows) < 125
    for row, following in zip(rows, rows[1:], strict=False):
        assert row["from"] <= row["to"] < following["from"]
    for row in rows:
        inside = (lengths >= row["from"]) & (lengths <= row["to"])
        assert row["accuracy"] == pytest.approx((margins[inside] > 0).mean())
    (single,) = by_length_difference(make([1, -1, 1], [2, 2, 2]))
    assert (single["from"], single["to"], single["pairs"]) == (2, 2, 3)


def test_calibration_follows_its_definition():
    generator = np.random.default_rng(2)
    margins = generator.normal(1, 3, 400).tolist() + [0.0, 50.0]
    rows, error = calibration(make(margins))
    bins: list[list[tuple[float, float]]] = [[] for _ in range(10)]
    for margin in margins:
        probability = 1 / (1 + math.exp(-abs(margin)))
        place = next(number for number in range(10) if number == 9 or probability < 0.5 + 0.05 * (number + 1))
        bins[place].append((probability, 0.5 if margin == 0 else float(margin > 0)))
    expected = []
    for content in filter(None, bins):
        predicted, observed = (sum(column) / len(content) for column in zip(*content, strict=True))
        expected.append((len(content), predicted, observed))
    assert [(row["pairs"], row["predicted"], row["observed"]) for row in rows] == [
        (count, pytest.approx(predicted), pytest.approx(observed)) for count, predicted, observed in expected
    ]
    numbers = [number for number, content in enumerate(bins) if content]
    edges = [(pytest.approx(0.5 + number / 20), pytest.approx(0.55 + number / 20)) for number in numbers]
    assert [(row["from"], row["to"]) for row in rows] == edges
    assert error == pytest.approx(sum(count * abs(p - o) for count, p, o in expected) / len(margins))
    assert all(row["observed_low"] <= row["observed"] <= row["observed_high"] for row in rows)


def test_probabilities_that_are_true_are_calibrated_and_doubled_scores_are_not():
    generator = np.random.default_rng(3)
    difference = generator.normal(0, 2, 20_000)
    first_wins = generator.random(20_000) < 1 / (1 + np.exp(-difference))
    margins = np.where(first_wins, difference, -difference)
    assert calibration(make(margins))[1] < 0.02
    assert calibration(make(2 * margins))[1] > 0.05


def test_the_report_normalises_scores_and_takes_probabilities_from_raw_ones(group_corpus):
    """Every answer counts once in the statistics of the scores, though it is part of several pairs."""
    raw = np.random.default_rng(4).normal(3.0, 2.0, 34)
    pairs = judged_pairs(group_corpus, raw)
    report = reward_report(pairs, raw, mean=1.0, std=4.0)
    assert (report["prompts"], report["pairs"]) == (10, 41)
    assert report["score_mean"] == pytest.approx((raw.mean() - 1) / 4)
    assert report["score_std"] == pytest.approx(raw.std() / 4)
    assert report["margin_mean"] == pytest.approx((pairs.chosen - pairs.rejected).mean() / 4)
    assert report["margin_mean"] == pytest.approx(report["chosen_mean"] - report["rejected_mean"])
    assert report["calibration_error"] == calibration(pairs)[1]
    start, better, length = 0, [], []
    for row in range(10):
        judged = group_corpus.judgements(row)
        for i in range(len(judged)):
            for j in range(len(judged)):
                if judged["rank"][i] < judged["rank"][j]:
                    better.append(raw[start + i] > raw[start + j])
                    length.append(len(group_corpus.answers(row)[i]) - len(group_corpus.answers(row)[j]))
        start += len(judged)
    assert report["accuracy"] == pytest.approx(np.mean(better))
    assert pairs.length_difference.tolist() == length
    assert {row["subset"]: row["pairs"] for row in report["by_subset"]} == {"odd": 3 * 6 + 2 * 8}


def test_agreement_with_gold_leaves_its_ties_out():
    pairs, gold = make([1, -1, 2, 1]), make([2, -3, 0, -1])
    scores, judged = np.array([1.0, 2, 3, 5]), np.array([2.0, 4, 6, 10])
    expected = {"gold_pairs": 3, "gold_accuracy": pytest.approx(2 / 3), "gold_correlation": pytest.approx(1.0)}
    for gold_scale, scale in ((1.0, 1.0), (0.01, 1.0), (1.0, 0.01)):
        assert gold_agreement(pairs, gold, scale * scores, gold_scale * judged) == expected
    nothing = gold_agreement(pairs, make([0, 0, 0, 0]), scores, np.ones(4))
    assert nothing == {"gold_pairs": 0, "gold_accuracy": None, "gold_correlation": None}
