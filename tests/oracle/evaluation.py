"""What the evaluations must find, from the texts and scores alone; see `tests.oracle.ppo`.

Sources: config/README.md; Wilson (1927) for the interval of a share, with the design effect of clusters (Kish 1965);
Guo et al. (2017) for the calibration error; Beirami et al. (2024) for the KL divergence of best-of-n.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tests.oracle.material import Row, ids_of, with_eos
from tests.oracle.networks import LanguageModel, Scorer
from tests.oracle.supervised import pairs, sequences

Z = 1.959963984540054  # of 95 %


def win(a: float, b: float) -> float:
    """1 for a win of `a`, 0.5 for a tie."""
    return 1.0 if a > b else 0.5 if a == b else 0.0


def interval(outcomes: Sequence[float], clusters: Sequence[int]) -> tuple[float, float]:
    """All shares p at which the observed one lies within Z sqrt(p (1 - p) / n): between the roots of a parabola."""
    n, share = len(outcomes), float(np.mean(outcomes))
    if 0 < share < 1:
        sums = [
            sum(y - share for y, c in zip(outcomes, clusters, strict=True) if c == cluster) for cluster in set(clusters)
        ]
        effect = sum(total**2 for total in sums) / (n * share * (1 - share))
        trials = max(1.0, n / max(1.0, effect))
    else:
        trials = len(set(clusters))
    spread = Z**2 / trials
    low, high = sorted(np.roots([1 + spread, -(2 * share + spread), share**2]).real)
    return max(0.0, float(low)), min(1.0, float(high))


@dataclass(frozen=True)
class Pair:
    """Two answers to a prompt, of which the data prefers the first."""

    better: float  # raw score
    worse: float
    gold: tuple[float, float]
    longer_by: int
    prompt: int
    subset: str | None


class RewardReport:
    """The evaluation of a reward model.

    Args:
        rows: unseen rows, those that are too long left out.
        raw: the model's scores without normalisation.
        mean, std: the normalisation.
        gold: gold reward of (prompt, answer).
    """

    def __init__(self, rows: Sequence[Row], raw: Scorer, mean: float, std: float, gold: Any) -> None:
        self._mean, self._std = mean, std
        with torch.no_grad():
            self._scores = [[float(raw.scores(ids)[-1]) for ids in sequences(row)] for row in rows]
        self._gold = [[gold(row.prompt, answer) for answer in row.answers] for row in rows]
        self.pairs = [
            Pair(
                self._scores[number][i],
                self._scores[number][j],
                (self._gold[number][i], self._gold[number][j]),
                len(row.answers[i]) - len(row.answers[j]),
                number,
                row.subset,
            )
            for number, row in enumerate(rows)
            for i, j in pairs(row)
        ]

    def numbers(self) -> dict[str, Any]:
        """All but the tables."""
        every, gold = np.concatenate(self._scores), np.concatenate(self._gold)
        differing = [pair for pair in self.pairs if pair.gold[0] != pair.gold[1]]
        alike = [(pair.better > pair.worse) == (pair.gold[0] > pair.gold[1]) for pair in differing]
        return {
            "prompts": len({pair.prompt for pair in self.pairs}),
            **accuracy(self.pairs),
            "longer_accuracy": longer(self.pairs),
            "score_mean": (every.mean() - self._mean) / self._std,
            "score_std": every.std() / self._std,
            "chosen_mean": (np.mean([pair.better for pair in self.pairs]) - self._mean) / self._std,
            "rejected_mean": (np.mean([pair.worse for pair in self.pairs]) - self._mean) / self._std,
            "margin_mean": np.mean([pair.better - pair.worse for pair in self.pairs]) / self._std,
            "gold_pairs": len(differing),
            "gold_accuracy": np.mean(alike),
            "gold_correlation": np.mean((every - every.mean()) * (gold - gold.mean())) / every.std() / gold.std(),
        }

    def calibration(self, edges: Sequence[tuple[float, float]]) -> tuple[list[dict[str, float]], float]:
        """Rows of the bins between these edges, and the expected calibration error over them."""
        rows, error = [], 0.0
        for low, high in edges:
            inside = [pair for pair in self.pairs if low <= confidence(pair) < high or confidence(pair) == high == 1]
            predicted = float(np.mean([confidence(pair) for pair in inside]))
            right = [win(pair.better, pair.worse) for pair in inside]
            from_, to = interval(right, [pair.prompt for pair in inside])
            observed = {"observed": float(np.mean(right)), "observed_low": from_, "observed_high": to}
            rows.append({"from": low, "to": high, "pairs": len(inside), "predicted": predicted, **observed})
            error += len(inside) / len(self.pairs) * abs(predicted - observed["observed"])
        return rows, error

    def by_subset(self) -> list[dict[str, Any]]:
        """Accuracy of each named subset."""
        names = sorted({pair.subset for pair in self.pairs if pair.subset})
        parts = [[pair for pair in self.pairs if pair.subset == name] for name in names]
        return [
            {"subset": name, **accuracy(part), "longer_accuracy": longer(part)}
            for name, part in zip(names, parts, strict=True)
        ]

    def by_longer(self) -> list[dict[str, Any]]:
        """Accuracy where the better answer is longer, equally long or shorter."""
        cases = {"longer": lambda by: by > 0, "equal": lambda by: by == 0, "shorter": lambda by: by < 0}
        parts = {name: [pair for pair in self.pairs if case(pair.longer_by)] for name, case in cases.items()}
        return [{"chosen": name, **accuracy(part)} for name, part in parts.items() if part]

    def between(self, low: int, high: int) -> dict[str, Any]:
        """Accuracy where the difference of the lengths lies in a range."""
        part = [pair for pair in self.pairs if low <= pair.longer_by <= high]
        found = [pair.longer_by for pair in part]
        return {"from": min(found), "to": max(found), **accuracy(part)}


def confidence(pair: Pair) -> float:
    """Probability that the answer of higher score is the better one, by the model's own account."""
    return 1 / (1 + math.exp(-abs(pair.better - pair.worse)))


def accuracy(part: Sequence[Pair]) -> dict[str, Any]:
    """Share of pairs ranked right, with its interval."""
    right = [win(pair.better, pair.worse) for pair in part]
    low, high = interval(right, [pair.prompt for pair in part])
    ties = np.mean([pair.better == pair.worse for pair in part])
    return {
        "pairs": len(part),
        "tie_share": ties,
        "accuracy": np.mean(right),
        "accuracy_low": low,
        "accuracy_high": high,
    }


def longer(part: Sequence[Pair]) -> float:
    """Accuracy of choosing the longer answer."""
    return float(np.mean([win(pair.longer_by, 0) for pair in part]))


def best_of(n: int, chosen_by: np.ndarray, worth: np.ndarray) -> float:
    """Mean over prompts and over all subsets of n answers of what the one of highest score is worth."""
    totals = [
        row_worth[max(subset, key=lambda place: row_scores[place])]  # noqa: B023 (used at once)
        for row_scores, row_worth in zip(chosen_by, worth, strict=True)
        for subset in itertools.combinations(range(len(row_scores)), n)
    ]
    return float(np.mean(totals))


def wins_against(worth: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Wins of answers [prompts, n] against one answer to each prompt [prompts]."""
    return np.array([[win(a, b) for a in row] for row, b in zip(worth, reference, strict=True)])


def with_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def answer_of(text: str, longest: int) -> tuple[np.ndarray, bool]:
    """Ids of an answer of words alone, and whether it ended by itself: only one that did not has `longest` words."""
    ids = ids_of(text)
    return (ids, False) if len(ids) == longest else (with_eos(ids.tolist()), True)


def surprise(model: LanguageModel, drawn: Sequence[tuple[np.ndarray, np.ndarray]], temperature: float) -> float:
    """Deviation, in standard errors, of the tokens' mean surprise from the entropy of what they were drawn from.

    -log p(x) of x drawn from p has the mean H(p); at another temperature, or from another model, it has not.
    """
    total, variance = 0.0, 0.0
    with torch.no_grad():
        for prompt, answer in drawn:
            table = model.distributions(prompt, answer, temperature)
            entropy = -(table.exp() * table).sum(-1)
            variance += float(((table.exp() * table**2).sum(-1) - entropy**2).sum())
            total += float((-table[torch.arange(len(answer)), torch.from_numpy(answer)] - entropy).sum())
    return total / math.sqrt(variance)
