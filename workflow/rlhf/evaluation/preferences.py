"""How well scores agree with preferences: overall, by part of the data, by length, and as probabilities; pure.

A tie, two answers of equal score, is half right everywhere, as in training (`rlhf.training.reward`): a model that gives
all answers one score is as good as a coin. In half precision ties are frequent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from rlhf.evaluation.statistics import clustered_interval, outcomes
from rlhf.records.evaluation import (
    Accuracy,
    GoldAgreement,
    LengthAccuracy,
    LongerAccuracy,
    ProbabilityBin,
    SubsetAccuracy,
)

LENGTH_BINS = 5
CALIBRATION_BINS = 10


@dataclass(frozen=True)
class JudgedPairs:
    """Pairs of answers with their scores; all arrays are [pairs].

    Attributes:
        chosen: raw score of the better answer.
        rejected: raw score of the worse answer.
        length_difference: tokens of the better answer less those of the worse one.
        group: number of the prompt; pairs of one prompt are not independent.
        subset: part of the dataset, or None.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    length_difference: np.ndarray
    group: np.ndarray
    subset: np.ndarray

    @property
    def margin(self) -> np.ndarray:
        """By how much the better answer scores higher."""
        margin: np.ndarray = self.chosen - self.rejected
        return margin

    def where(self, mask: np.ndarray) -> JudgedPairs:
        """Those pairs for which a mask [pairs] is true."""
        return replace(self, **{name: values[mask] for name, values in vars(self).items()})


def accuracy(pairs: JudgedPairs) -> Accuracy:
    """Share of pairs ranked right, ties counting half, and how many are ties.

    Returns:
        `pairs`: their number; `tie_share`: share of ties; `accuracy`, with its 95 % interval `accuracy_low` to
        `accuracy_high`.
    """
    right = outcomes(pairs.margin, 0)
    low, high = clustered_interval(right, pairs.group)
    return {
        "pairs": len(right),
        "tie_share": float((pairs.margin == 0).mean()),
        "accuracy": float(right.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
    }


def longer_accuracy(pairs: JudgedPairs) -> float:
    """Accuracy of a judge that always chooses the longer answer; pairs of equal length count half, as ties do."""
    return float(outcomes(pairs.length_difference, 0).mean())


def by_subset(pairs: JudgedPairs) -> list[SubsetAccuracy] | None:
    """Accuracy of each subset, and of choosing the longer answer in it; None where no pair names one."""
    names = sorted({name for name in pairs.subset if name is not None})
    parts = {name: pairs.where(pairs.subset == name) for name in names}
    rows: list[SubsetAccuracy] = [
        {"subset": name, **accuracy(part), "longer_accuracy": longer_accuracy(part)} for name, part in parts.items()
    ]
    return rows or None


def by_longer(pairs: JudgedPairs) -> list[LongerAccuracy]:
    """Accuracy where the chosen answer is longer, equally long, or shorter; cases without a pair are left out."""
    sign = np.sign(pairs.length_difference)
    return [
        {"chosen": name, **accuracy(pairs.where(sign == value))}
        for name, value in (("longer", 1), ("equal", 0), ("shorter", -1))
        if (sign == value).any()
    ]


def by_length_difference(pairs: JudgedPairs, bins: int = LENGTH_BINS) -> list[LengthAccuracy]:
    """Accuracy in bins of the length difference (chosen less rejected, in tokens) with about equal counts.

    Args:
        pairs: at least one.
        bins: quantile bins; fewer come out where many differences are equal, as equal ones share a bin.
    """
    return [
        {"from": int(part.length_difference.min()), "to": int(part.length_difference.max()), **accuracy(part)}
        for part in _quantile_parts(pairs, bins)
    ]


def _quantile_parts(pairs: JudgedPairs, bins: int) -> Iterator[JudgedPairs]:
    inner = np.quantile(pairs.length_difference, np.arange(1, bins) / bins)
    place = np.searchsorted(np.unique(inner), pairs.length_difference, side="left")
    for number in np.unique(place):
        yield pairs.where(place == number)


def calibration(pairs: JudgedPairs, bins: int = CALIBRATION_BINS) -> tuple[list[ProbabilityBin], float]:
    """Predicted probability against observed share, over bins of equal width from 0.5 to 1.

    The prediction is that the answer of higher raw score is the better one, with probability sigmoid(|difference|).

    Args:
        pairs: at least one, with raw scores: dividing them by a deviation would change the probabilities.
        bins: number of bins.

    Returns:
        One row for each bin that holds a pair: its edges `from` and `to`, `pairs`, `predicted` (mean probability),
        `observed` (share of right predictions; equal scores count half), and its interval `observed_low` and
        `observed_high`. And the expected calibration error: the mean of |predicted - observed| over pairs.
    """
    predicted, observed = 1 / (1 + np.exp(-np.abs(pairs.margin))), outcomes(pairs.margin, 0)
    place = np.minimum(((predicted - 0.5) * 2 * bins).astype(int), bins - 1)
    rows: list[ProbabilityBin] = []
    error = 0.0
    for number in np.unique(place):
        here = place == number
        mean, share = float(predicted[here].mean()), float(observed[here].mean())
        low, high = clustered_interval(observed[here], pairs.group[here])
        rows.append(
            {
                "from": 0.5 + int(number) / (2 * bins),
                "to": 0.5 + int(number + 1) / (2 * bins),
                "pairs": int(here.sum()),
                "predicted": mean,
                "observed": share,
                "observed_low": low,
                "observed_high": high,
            }
        )
        error += float(here.mean()) * abs(mean - share)
    return rows, error


def gold_agreement(pairs: JudgedPairs, gold_pairs: JudgedPairs, scores: np.ndarray, gold: np.ndarray) -> GoldAgreement:
    """Share of pairs that reward model and gold reward rank alike, and their correlation.

    Ties of the reward model count half. Pairs that tie under the gold reward are left out, as the data's are: there is
    no preference to agree with.

    Args:
        pairs: compared answers with their scores.
        gold_pairs: the same with the gold reward for a score.
        scores: of all answers, each once, [answers].
        gold: gold reward of the same, [answers].

    Returns:
        Entries are None where they are not defined: only gold ties, or no variation.
    """
    differ = gold_pairs.margin != 0
    alike = outcomes(pairs.margin * np.sign(gold_pairs.margin), 0)[differ]
    varies = gold.std() > 0 and scores.std() > 0
    return {
        "gold_pairs": int(differ.sum()),
        "gold_accuracy": float(alike.mean()) if differ.any() else None,
        "gold_correlation": float(np.corrcoef(scores, gold)[0, 1]) if varies else None,
    }
