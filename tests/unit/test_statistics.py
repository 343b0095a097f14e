"""Statistics against closed forms, published values and brute-force enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.evaluation.answers import score_win_rate
from rlhf.evaluation.statistics import (
    Interval,
    best_of_n,
    best_of_n_kl,
    best_of_n_win_rate,
    mean_and_error,
    mean_interval,
    wilson_interval,
    win_rate,
)


def _wilson_by_hand(successes: int, n: int, z: float) -> tuple[float, float]:
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return centre - half, centre + half


@pytest.mark.parametrize(("successes", "n"), [(8, 10), (0, 7), (7, 7), (512, 1000)])
def test_wilson_interval_is_the_closed_form(successes: int, n: int) -> None:
    assert wilson_interval(successes, n) == pytest.approx(_wilson_by_hand(successes, n, 1.959963984540054), abs=1e-9)
    assert wilson_interval(successes, n, 0.9) == pytest.approx(_wilson_by_hand(successes, n, 1.6448536269514722))


def test_wilson_interval_refuses_impossible_counts() -> None:
    with pytest.raises(ValueError):
        wilson_interval(3, 2)
    with pytest.raises(ValueError):
        wilson_interval(0, 0)


def test_win_rate_counts_ties_half() -> None:
    rate, error = win_rate([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 1.0, 5.0])
    assert rate == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    mean, deviations = 0.625, [0.375, -0.125, 0.375, -0.625]
    assert mean == rate
    assert error == pytest.approx(math.sqrt(sum(x * x for x in deviations) / 3) / 2)


def test_win_rate_of_the_swapped_answers_is_the_complement() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 5, 200), generator.integers(0, 5, 200)
    (rate, error), (swapped, swapped_error) = win_rate(a, b), win_rate(b, a)
    assert rate + swapped == pytest.approx(1.0)
    assert error == pytest.approx(swapped_error)


def test_win_rate_of_one_prompt_has_no_error() -> None:
    assert win_rate([1.0], [0.0]) == (1.0, None)


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0, 2.0]), ([], [])])
def test_win_rate_refuses_unmatched_or_empty_lists(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="equally long"):
        win_rate(a, b)


def test_mean_and_error_of_known_sample() -> None:
    assert mean_and_error([2.0, 4.0, 6.0]) == pytest.approx((4.0, 2.0 / math.sqrt(3)))


def test_mean_interval_uses_the_tabulated_t_quantile() -> None:
    interval = mean_interval([1.0, 2.0, 3.0])  # t(0.975, 2 degrees of freedom) = 4.30265
    assert interval.mean == 2.0
    assert interval.sd == 1.0
    assert interval.low == pytest.approx(2.0 - 4.3026527 / math.sqrt(3))
    assert interval.high == pytest.approx(2.0 + 4.3026527 / math.sqrt(3))


def test_mean_interval_of_one_value_has_no_spread() -> None:
    assert mean_interval([0.5]) == Interval(0.5, None, None, None)
    with pytest.raises(ValueError, match="no value"):
        mean_interval([])


def _enumerate_best_of_n(scores: np.ndarray, values: np.ndarray, n: int) -> float:
    """Mean over all subsets; a subset with several best answers gives the mean over all orders of the answers."""
    totals = []
    for score, value in zip(scores, values, strict=True):
        for order in itertools.permutations(range(len(score))):
            for subset in itertools.combinations(order, n):
                totals.append(value[max(subset, key=lambda answer: score[answer])])
    return float(np.mean(totals))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("levels", [2, 3, 1000])
def test_best_of_n_is_the_mean_over_all_subsets(n: int, levels: int) -> None:
    generator = np.random.default_rng(n * levels)
    scores = generator.integers(0, levels, (4, 5)).astype(float)
    values = generator.normal(size=(4, 5))
    assert best_of_n(scores, values, n) == pytest.approx(_enumerate_best_of_n(scores, values, n))


def test_best_of_one_is_the_mean_and_best_of_all_the_maximum() -> None:
    scores = np.random.default_rng(1).normal(size=(6, 8))
    assert best_of_n(scores, scores, 1) == pytest.approx(scores.mean())
    assert best_of_n(scores, scores, 8) == pytest.approx(scores.max(axis=1).mean())


def test_best_of_n_of_uniform_ranks_is_the_order_statistic() -> None:
    answers, n = 12, 5  # the expected maximum of n out of 1..N is n (N + 1) / (n + 1)
    scores = np.arange(1.0, answers + 1)[None, :]
    assert best_of_n(scores, scores, n) == pytest.approx(n * (answers + 1) / (n + 1))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-5, 5)), min_size=1, max_size=9), st.data())
def test_best_of_n_does_not_depend_on_the_order(answers: list[tuple[int, int]], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(answers)))
    shuffled = data.draw(st.permutations(answers))
    scores, values = np.array(answers, dtype=float).T
    other_scores, other_values = np.array(shuffled, dtype=float).T
    assert best_of_n(scores[None], values[None], n) == pytest.approx(
        best_of_n(other_scores[None], other_values[None], n)
    )


@pytest.mark.parametrize("n", [0, 4])
def test_best_of_n_refuses_an_n_out_of_range(n: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 3"):
        best_of_n(np.zeros((2, 3)), np.zeros((2, 3)), n)


def test_best_of_n_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match="one shape"):
        best_of_n(np.zeros((2, 3)), np.zeros((3, 2)), 1)
    with pytest.raises(ValueError, match="one value per prompt"):
        best_of_n_win_rate(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros(3), 1)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_best_of_n_win_rate_is_the_mean_over_all_subsets(n: int) -> None:
    generator = np.random.default_rng(n)
    scores, values = generator.integers(0, 4, (3, 5)).astype(float), generator.integers(0, 4, (3, 5)).astype(float)
    reference = generator.integers(0, 4, 3).astype(float)
    wins = (values > reference[:, None]) + 0.5 * (values == reference[:, None])
    assert best_of_n_win_rate(scores, values, reference, n) == pytest.approx(_enumerate_best_of_n(scores, wins, n))


def test_best_of_n_win_rate_against_an_independent_answer() -> None:
    """The best of n beats one more answer of the same distribution with probability n / (n + 1)."""
    draws = np.random.default_rng(2).random((4000, 5))
    assert best_of_n_win_rate(draws[:, :4], draws[:, :4], draws[:, 4], 4) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_best_of_n_kl_is_the_divergence_of_the_maximum(n: int) -> None:
    """For a continuous score the density ratio at quantile u is n u**(n-1); integrate its log numerically."""
    u = (np.arange(400_000) + 0.5) / 400_000
    ratio = n * u ** (n - 1)
    assert best_of_n_kl(n) == pytest.approx(float(np.mean(ratio * np.log(ratio))), abs=1e-5)


def test_equal_answers_tie_whatever_rounding_makes_of_their_scores():
    def answer(text, score, length=3, finished=True):
        return {"text": text, "score": score, "length": length, "finished": finished}

    first = [answer("a", 1.0), answer("b", 1.0), answer("c", 1.0), answer("d", 1.0)]
    own = [answer("a", 1.0 + 1e-7), answer("b", 1.0 + 2e-7), answer("c", 1.1, length=4), answer("other", 0.9)]
    assert score_win_rate(own, first)[0] == (0.5 + 0.5 + 1 + 0) / 4
    assert score_win_rate([answer("d", 0.9, finished=False)], first[3:])[0] == 0
