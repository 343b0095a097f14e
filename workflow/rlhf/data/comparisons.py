"""Which answers of a prompt are better than which: every pair of answers of different rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlhf.data.corpus import Corpus


@dataclass(frozen=True)
class Comparisons:
    """Pairs of answers, over all answers of some rows one after the other.

    Attributes:
        better: place of the better answer, [pairs] int64.
        worse: place of the worse answer, [pairs] int64.
        margin: difference of their ratings, [pairs] float32; NaN where the data gives none.
        group: place of the row they belong to among the rows, [pairs] int64.
    """

    better: np.ndarray
    worse: np.ndarray
    margin: np.ndarray
    group: np.ndarray

    def weights(self) -> np.ndarray:
        """One over the number of pairs of the same row, [pairs] float32: the weights of a row sum to 1."""
        weights: np.ndarray = 1 / np.bincount(self.group)[self.group]
        return weights.astype(np.float32)


def compare(corpus: Corpus, rows: np.ndarray) -> Comparisons:
    """All K choose 2 comparisons of each row, less its ties.

    Args:
        corpus: rows with their answers.
        rows: rows of the corpus.
    """
    start, parts = 0, []
    for place, row in enumerate(rows):
        judged = corpus.judgements(row)
        ranks, ratings = judged["rank"], judged["rating"]
        better, worse = np.nonzero(ranks[:, None] < ranks[None, :])
        parts.append((start + better, start + worse, ratings[better] - ratings[worse], np.full(len(better), place)))
        start += len(judged)
    return Comparisons(*(np.concatenate(column) for column in zip(*parts, strict=True)))
