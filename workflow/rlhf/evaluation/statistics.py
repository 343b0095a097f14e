"""Estimators and intervals used by the evaluations and the tables; pure functions of arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """Mean of a sample, its standard deviation, and the confidence interval of the mean.

    The last three are None for a sample of one, which says nothing about spread.
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None


def wilson_interval(successes: float, n: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson score interval of a proportion.

    Args:
        successes: number of successes, 0 to `n`.
        n: number of trials, at least 1; an effective number need not be whole.
        confidence: coverage, between 0 and 1.

    Returns:
        (low, high), both within [0, 1].

    Raises:
        ValueError: `n` is below 1, or `successes` is outside 0 to `n`.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes in {n} trials are not possible")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def clustered_interval(
    values: npt.ArrayLike, clusters: npt.ArrayLike, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Wilson interval of a share whose trials come in clusters, such as the pairs among the answers to one prompt.

    The number of trials is divided by the design effect: the variance of the mean as the clusters show it, over that
    of independent trials. Clusters of one trial give the plain interval; what is never and what is always so has one
    trial per cluster. The number is never raised, and is at least 1.

    Args:
        values: 1 for a success, 0 for none, 0.5 for a tie, [trials].
        clusters: number of each trial's cluster, [trials] int.
        confidence: coverage, between 0 and 1.

    Returns:
        (low, high), both within [0, 1].
    """
    outcome, names = np.asarray(values, dtype=np.float64), np.asarray(clusters)
    places = np.unique(names, return_inverse=True)[1]
    n, share = outcome.size, float(outcome.mean())
    variance = float((np.bincount(places, weights=outcome - share) ** 2).sum()) / n**2
    independent = share * (1 - share) / n
    effective = places.max() + 1.0 if independent == 0 else n * independent / max(variance, independent)
    effective = max(1.0, effective)
    return wilson_interval(share * effective, effective, confidence)


def outcomes(a: npt.ArrayLike, b: npt.ArrayLike) -> FloatArray:
    """1 where `a` is larger than `b`, 0.5 where they are equal, 0 where it is smaller; shapes are broadcast."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    wins: FloatArray = (first > second) + 0.5 * (first == second)
    return wins


def win_rate(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[float, float | None]:
    """How often `a` beats `b`; a tie counts as half a win.

    Args:
        a, b: [prompts] scores of two answers to the same prompts.

    Returns:
        (rate, standard error of the rate over prompts, or None for a single prompt).

    Raises:
        ValueError: the shapes differ, or there is no prompt.
    """
    if np.shape(a) != np.shape(b) or np.ndim(a) != 1 or not np.size(a):
        raise ValueError(f"two equally long, non-empty lists are needed, got shapes {np.shape(a)} and {np.shape(b)}")
    return mean_and_error(outcomes(a, b))


def mean_and_error(values: npt.ArrayLike) -> tuple[float, float | None]:
    """Mean of a non-empty sample and its standard error (None for a sample of one)."""
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 1:
        return float(sample.mean()), None
    return float(sample.mean()), float(sample.std(ddof=1) / math.sqrt(sample.size))


def mean_interval(
    values: Sequence[float] | FloatArray, confidence: float = CONFIDENCE, within: tuple[float, float] | None = None
) -> Interval:
    """Mean over seeds with the Student t confidence interval of the mean.

    Args:
        values: one of each seed.
        confidence: coverage, between 0 and 1.
        within: lowest and highest value that a mean can have, as 0 and 1 of a share: the interval keeps what lies
            between them, and covers the mean as often.

    Raises:
        ValueError: `values` is empty.
    """
    from scipy.stats import t

    sample = np.asarray(values, dtype=np.float64)
    if not sample.size:
        raise ValueError("the mean of no value is not defined")
    mean, error = mean_and_error(sample)
    if error is None:
        return Interval(mean, None, None, None)
    half = float(t.ppf(0.5 + confidence / 2, sample.size - 1)) * error
    lowest, highest = within or (-math.inf, math.inf)
    return Interval(mean, float(sample.std(ddof=1)), max(lowest, mean - half), min(highest, mean + half))


def best_of_n(scores: npt.ArrayLike, values: npt.ArrayLike, n: int) -> float:
    """Expected value of the answer that scores best among n, estimated without bias from N answers per prompt.

    The mean over all subsets of size n: the answer of ascending rank k wins C(k-1, n-1) of the C(N, n) subsets.
    Answers of equal score share their weight, so the order of the answers does not matter.

    Args:
        scores: [prompts, N] scores that select an answer.
        values: [prompts, N] what is averaged over the selected answers; `scores` itself, or another judgement.
        n: answers to choose from, 1 to N.

    Returns:
        The mean over prompts.

    Raises:
        ValueError: the shapes differ or are empty, or `n` is outside 1 to N.
    """
    chosen_by, averaged = np.asarray(scores, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if chosen_by.shape != averaged.shape or chosen_by.ndim != 2 or not chosen_by.size:
        raise ValueError(f"scores {chosen_by.shape} and values {averaged.shape} must be one shape [prompts, N]")
    answers = chosen_by.shape[1]
    if not 1 <= n <= answers:
        raise ValueError(f"n is {n}; with {answers} answers per prompt it must lie between 1 and {answers}")
    subsets = math.comb(answers, n)
    weights = np.array([math.comb(rank, n - 1) / subsets for rank in range(answers)])  # rank is 0-based here
    return float(np.mean([weights @ _by_rank(*prompt) for prompt in zip(chosen_by, averaged, strict=True)]))


def _by_rank(scores: FloatArray, values: FloatArray) -> FloatArray:
    """[N] values in ascending order of score; values of equal scores are replaced by their mean."""
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    means = np.bincount(group, weights=values) / counts
    return np.repeat(means, counts)


def best_of_n_win_rate(scores: npt.ArrayLike, values: npt.ArrayLike, reference: npt.ArrayLike, n: int) -> float:
    """How often the best-scored answer of n beats the reference answer by `values`; a tie counts as half a win.

    Args:
        scores: [prompts, N] scores that select an answer.
        values: [prompts, N] judgement of each answer; `scores` itself, or another judgement.
        reference: [prompts] the same judgement of the reference answer.
        n: answers to choose from, 1 to N.

    Raises:
        ValueError: the shapes do not fit, or `n` is outside 1 to N.
    """
    if np.shape(reference) != np.shape(values)[:1]:
        raise ValueError(f"reference {np.shape(reference)} must hold one value per prompt of {np.shape(values)}")
    return best_of_n(scores, outcomes(values, np.asarray(reference)[:, None]), n)


def best_of_n_kl(n: int) -> float:
    """KL divergence of best-of-n sampling from the sampled policy, in nats: log n - (n - 1) / n.

    It is an upper bound, tight where no two answers are equal (Beirami et al., 2024, arXiv:2401.01879).
    """
    return math.log(n) - (n - 1) / n
