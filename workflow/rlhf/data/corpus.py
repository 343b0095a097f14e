"""The rows of one phase over several tokenised datasets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlhf.data.tokens import TokenStore
from rlhf.errors import UserError


class Corpus:
    """Rows of one split and phase, addressed 0..len-1 over all datasets, in the order the datasets are given.

    Args:
        tokens: results/tokens/<id>/ folders, all made with one tokenizer.
        splits: results/split/<id>/ folders, in the same order.
        split: `train` or `eval`.
        phase: `sft`, `reward` or `ppo`.

    Raises:
        UserError: there is no row, or the folders were made with different tokenizers.
    """

    def __init__(self, tokens: Sequence[Path], splits: Sequence[Path], split: str, phase: str) -> None:
        self._stores = [TokenStore(folder, split) for folder in tokens]
        rows = [np.load(folder / f"{split}.{phase}.npy") for folder in splits]
        self._places = np.array([(i, row) for i, part in enumerate(rows) for row in part], np.int64).reshape(-1, 2)
        if len({store.tokenizer_fingerprint for store in self._stores}) > 1:
            raise UserError(f"{', '.join(map(str, tokens))}: these were made with different tokenizers")
        if not len(self._places):
            raise UserError(f"{', '.join(map(str, splits))}: no row of the {split} data belongs to phase {phase}")

    def __len__(self) -> int:
        return len(self._places)

    @property
    def eos_token_id(self) -> int:
        """Id that ends every answer."""
        return self._stores[0].eos_token_id

    @property
    def pad_token_id(self) -> int:
        """Id of the padding; never the EOS id."""
        return self._stores[0].pad_token_id

    @property
    def tokenizer_fingerprint(self) -> str:
        """Hash of the tokenizer that made the ids."""
        return self._stores[0].tokenizer_fingerprint

    def prompt(self, index: int) -> np.ndarray:
        """Ids of a prompt: [length] int64."""
        store, row = self._places[index]
        return self._stores[store].prompt(row)

    def chosen(self, index: int) -> np.ndarray:
        """Ids of the chosen answer, EOS included: [length] int64."""
        store, row = self._places[index]
        return self._stores[store].chosen(row)

    def answers(self, index: int) -> list[np.ndarray]:
        """Ids of each answer to a prompt, EOS included, the best first: [length] int64 each."""
        store, row = self._places[index]
        return self._stores[store].answers(row)

    def judgements(self, index: int) -> np.ndarray:
        """`length`, `rank` (0 is best) and `rating` (NaN where unknown) of each answer: [answers], structured."""
        store, row = self._places[index]
        return self._stores[store].judgements(row)

    def subset(self, index: int) -> str | None:
        """The part of its dataset that a row belongs to, where the data names one."""
        store, row = self._places[index]
        return self._stores[store].subset(row)

    def place(self, index: int) -> tuple[int, int]:
        """(number of the dataset, row in its cached split) of an index."""
        store, row = self._places[index]
        return int(store), int(row)

    def lengths(self, field: str) -> np.ndarray:
        """Token counts of `prompt` or `chosen` of all rows: [rows] int64."""
        return self._of_rows([store.lengths(field) for store in self._stores])

    def longest_answers(self) -> np.ndarray:
        """Tokens of the longest answer of each row: [rows] int64."""
        return self._of_rows([store.longest_answers() for store in self._stores])

    def _of_rows(self, tables: list[np.ndarray]) -> np.ndarray:
        return np.array([tables[store][row] for store, row in self._places], dtype=np.int64)

    def keep(self, mask: np.ndarray, limit: str) -> int:
        """Keep the rows where `mask` is true; returns how many were dropped.

        Raises:
            UserError: no row is left; `limit` names the setting that excluded them.
        """
        dropped = int((~mask).sum())
        if dropped == len(self):
            raise UserError(f"{limit} excludes all {len(self)} rows; raise it")
        self._places = self._places[mask]
        return dropped
