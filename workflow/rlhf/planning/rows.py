"""Rows as long as the configuration allows, for dry runs."""

from __future__ import annotations

import numpy as np

from rlhf.data.tokens import ANSWER


class LongestRows:
    """Stands in for a corpus: one row has the full length, the others are one token shorter, so that there is padding.

    Args:
        prompt: tokens of the prompt.
        answer: tokens of the longest answer.
    """

    pad_token_id, eos_token_id = 0, 0

    def __init__(self, prompt: int, answer: int) -> None:
        self._prompt, self._answer = prompt, answer

    @classmethod
    def of_length(cls, length: int) -> LongestRows:
        """Rows whose prompt and longest answer have this length together."""
        return cls(length // 2, length - length // 2)

    def prompt(self, row: int) -> np.ndarray:
        """Ids of a prompt."""
        return np.zeros(self._prompt, np.int64)

    def chosen(self, row: int) -> np.ndarray:
        """Ids of the chosen answer; all but the first row are shorter."""
        return np.zeros(max(1, self._answer - (row > 0)), np.int64)

    def answers(self, row: int) -> list[np.ndarray]:
        """Ids of the answers of a pair."""
        return [self.chosen(row), np.zeros(max(1, self._answer - 1), np.int64)]

    def judgements(self, row: int) -> np.ndarray:
        """Length, rank and rating of the answers: the first is the better one."""
        return np.array([(len(ids), rank, np.nan) for rank, ids in enumerate(self.answers(row))], ANSWER)
