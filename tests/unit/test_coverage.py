"""Intervals of 95 % hold the true value in about 95 of 100 cases: exactly computed, or simulated with fixed seeds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from rlhf.evaluation.statistics import clustered_interval, mean_and_error, mean_interval, wilson_interval, win_rate

SHARES = np.arange(2, 99) / 100


@pytest.mark.parametrize("n", [10, 30, 100])
def test_the_wilson_interval_covers_shares(n: int) -> None:
    """Summed over all outcomes: on average over shares nearly 95 %, and nowhere far below (Brown et al. 2001)."""
    intervals = [wilson_interval(successes, n) for successes in range(n + 1)]
    low, high = np.array(intervals).T[:, :, None]
    covered = ((low <= SHARES) & (high >= SHARES)) * binom.pmf(np.arange(n + 1)[:, None], n, SHARES)
    coverage = covered.sum(0)
    assert 0.945 < coverage.mean() < 0.962
    assert coverage.min() > 0.83
    assert coverage[(SHARES >= 0.1) & (SHARES <= 0.9)].min() > 0.91


def share_of_hits(hits: list[bool]) -> float:
    return float(np.mean(hits))


@pytest.mark.parametrize("agreement", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("share", [0.6, 0.9])
def test_the_clustered_interval_covers_shares_of_dependent_pairs(agreement: float, share: float) -> None:
    """Prompts with 1 to 6 pairs, of which each is, with the probability `agreement`, as the prompt's first one."""
    generator, hits, plain = np.random.default_rng(int(10 * agreement + 100 * share)), [], []
    for _ in range(1000):
        clusters = np.arange(80).repeat(generator.integers(1, 7, 80))
        common = generator.random(80) < share
        own = generator.random(len(clusters)) < share
        right = np.where(generator.random(len(clusters)) < agreement, common[clusters], own)
        for found, groups in ((hits, clusters), (plain, np.arange(len(clusters)))):
            low, high = clustered_interval(right, groups)
            found.append(low <= share <= high)
    assert 0.92 < share_of_hits(hits) < 0.98  # 0.93 to 0.96 in 4000 trials
    if agreement == 0.9:
        assert share_of_hits(plain) < 0.8


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_the_interval_over_seeds_covers_the_mean(seeds: int) -> None:
    """Student's t is exact for normal values."""
    generator, count = np.random.default_rng(seeds), 1500
    intervals = [mean_interval(generator.normal(1.5, 0.7, seeds)) for _ in range(count)]
    covered = share_of_hits([(one.low or 0) <= 1.5 <= (one.high or 0) for one in intervals])
    assert abs(covered - 0.95) < 3 * np.sqrt(0.95 * 0.05 / count)


def test_two_standard_errors_cover_a_win_rate_with_ties() -> None:
    """Scores 0, 1 and 2 against 0 and 1: P(win) + P(tie) / 2 = 3/6 + 2/6 / 2."""
    generator, hits = np.random.default_rng(4), []
    for _ in range(3000):
        rate, error = win_rate(generator.integers(0, 3, 256), generator.integers(0, 2, 256))
        assert error is not None
        hits.append(abs(rate - 2 / 3) < 1.96 * error)
    assert abs(share_of_hits(hits) - 0.95) < 0.015


def test_the_standard_error_is_the_deviation_of_the_mean() -> None:
    generator = np.random.default_rng(5)
    found = [mean_and_error(generator.exponential(2.0, 100)) for _ in range(3000)]
    means, errors = np.array(found, dtype=float).T
    assert np.sqrt((errors**2).mean()) == pytest.approx(means.std(), rel=0.04)
    assert means.std() == pytest.approx(2.0 / 10, rel=0.04)
