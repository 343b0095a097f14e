"""The rows of one phase over several tokenised datasets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rlhf.data.questions import Question
from rlhf.data.tokens import TokenStore
from rlhf.errors import UserError
from rlhf.runtime.seeds import derive_seed


class Corpus:
    """Rows of one split and phase, addressed 0..len-1 over all datasets, in the order the datasets are given.

    Args:
        tokens: results/tokens/<id>/ folders, all made with one tokenizer.
        splits: results/split/<id>/ folders, in the same order.
        split: `train` or `eval`.
        phase: `sft`, `reward` or `ppo`.
        weights: how often an epoch sees each dataset's rows; None: once.

    Raises:
        UserError: there is no row, or the folders were made with different tokenizers.
    """

    def __init__(
        self,
        tokens: Sequence[Path],
        splits: Sequence[Path],
        split: str,
        phase: str,
        weights: Sequence[float] | None = None,
    ) -> None:
        self._weights = [1.0] * len(tokens) if weights is None else weights
        self._stores = [TokenStore(folder, split) for folder in tokens]
        rows = [np.load(folder / f"{split}.{phase}.npy") for folder in splits]
        rows = [part[store.is_usable[part]] for part, store in zip(rows, self._stores, strict=True)]
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

    @property
    def chat_template(self) -> str | None:
        """The configuration's chat template, where all datasets have the same."""
        templates = {store.chat_template for store in self._stores}
        return templates.pop() if len(templates) == 1 else None

    @property
    def has_own_templates(self) -> bool:
        """Whether the tokenizer's own chat template wrote some of the prompts."""
        return any(store.is_of_tokenizer for store in self._stores)

    def prompt(self, index: int) -> np.ndarray:
        """Ids of a prompt: [length] int64."""
        store, row = self._row(index)
        return store.prompt(row)

    def question(self, index: int) -> Question:
        """A prompt as text."""
        store, row = self._row(index)
        return store.question(row)

    def chosen(self, index: int) -> np.ndarray:
        """Ids of the chosen answer, EOS included: [length] int64."""
        store, row = self._row(index)
        return store.chosen(row)

    def answers(self, index: int) -> list[np.ndarray]:
        """Ids of each answer to a prompt, EOS included, the best first: [length] int64 each."""
        store, row = self._row(index)
        return store.answers(row)

    def judgements(self, index: int) -> np.ndarray:
        """`length`, `rank` (0 is best) and `rating` (NaN where unknown) of each answer: [answers], structured."""
        store, row = self._row(index)
        return store.judgements(row)

    def subset(self, index: int) -> str | None:
        """The part of its dataset that a row belongs to, where the data names one."""
        store, row = self._row(index)
        return store.subset(row)

    def place(self, index: int) -> tuple[int, int]:
        """(number of the dataset, row in its cached split) of an index."""
        store, row = self._places[index]
        return int(store), int(row)

    def _row(self, index: int) -> tuple[TokenStore, int]:
        """The store that holds an index, and its row there."""
        number, row = self.place(index)
        return self._stores[number], row

    def lengths(self, field: str) -> np.ndarray:
        """Token counts of `prompt` or `chosen` of all rows: [rows] int64."""
        return self._of_rows([store.lengths(field) for store in self._stores])

    def longest_answers(self) -> np.ndarray:
        """Tokens of the longest answer of each row: [rows] int64."""
        return self._of_rows([store.longest_answers() for store in self._stores])

    def has_equal_answers(self) -> np.ndarray:
        """Whether two answers of a row are the same ids: [rows] bool."""
        return self._of_rows([store.has_equal_answers for store in self._stores]).astype(bool)

    def is_seen(self) -> np.ndarray:
        """Whether the prompt or the group of an unseen row is among the training rows too: [rows] bool."""
        return self._of_rows([store.is_seen for store in self._stores]).astype(bool)

    def _of_rows(self, tables: list[np.ndarray]) -> np.ndarray:
        values = np.empty(len(self), dtype=np.int64)
        for number, table in enumerate(tables):
            own = self._places[:, 0] == number
            values[own] = table[self._places[own, 1]]
        return values

    @property
    def rows_per_epoch(self) -> int:
        """Rows that an epoch sees, the same in all epochs.

        Raises:
            UserError: a weight leaves nothing of its dataset.
        """
        return sum(copies * len(rows) + part for rows, copies, part in self._shares())

    def epoch_rows(self, seed: int, epoch: int) -> np.ndarray:
        """Rows that an epoch sees: a dataset of weight 2.5 gives each row twice, and half of its rows once more.

        That half is random, and each epoch's begins where that of the epoch before ends, so that all rows are seen
        equally often in the long run.

        Args:
            seed: of the training.
            epoch: counted from 0.

        Returns:
            Row indices, [rows_per_epoch] int64.
        """
        seen = []
        for number, (rows, copies, part) in enumerate(self._shares()):
            order = np.random.default_rng(derive_seed(seed, "weights", number)).permutation(rows)
            seen += [rows] * copies + [np.roll(order, -epoch * part)[:part]]
        return np.concatenate(seen)

    def _shares(self) -> Iterator[tuple[np.ndarray, int, int]]:
        """For each dataset: its rows, how often all of them are seen, and how many once more."""
        for number, weight in enumerate(self._weights):
            rows = np.flatnonzero(self._places[:, 0] == number)
            copies = int(weight)
            part = round((weight - copies) * len(rows))
            if len(rows) and not copies and not part:
                raise UserError(f"data_weights: {weight:g} of {len(rows)} rows of dataset {number + 1} leaves none")
            yield rows, copies, part

    def sample(self, limit: int, seed: int) -> np.ndarray:
        """Random rows in which every dataset has its share, up to rounding.

        They follow from the content of the datasets: the order in which those are given matters neither for the rows
        nor for their order. A smaller limit gives the first rows of a larger one.

        The row that comes k-th in its dataset's random order stands at (k + u) / n of n rows, u being random in [0, 1);
        the rows of all datasets are taken by where they stand, so that the datasets alternate.

        Args:
            limit: rows, at most.
            seed: of the choice.

        Returns:
            Row indices, [at most limit] int64.
        """
        stands = np.empty(len(self))
        for number, store in enumerate(self._stores):
            own = np.flatnonzero(self._places[:, 0] == number)
            generator = np.random.default_rng(derive_seed(seed, "sample", store.dataset_fingerprint))
            offset = generator.random()
            # Drawn for all rows of the dataset, so that a row's luck does not depend on which others were kept.
            drawn = generator.random(store.rows)[self._places[own, 1]]
            stands[own] = (drawn.argsort().argsort() + offset) / max(1, len(own))
        return stands.argsort(kind="stable")[:limit]

    def keep(self, mask: np.ndarray, limit: str, remedy: str = "raise it") -> int:
        """Keep the rows where `mask` is true; returns how many were dropped.

        Args:
            mask: [rows] bool.
            limit: what excluded the others, for example a setting.
            remedy: what to do where that leaves none.

        Raises:
            UserError: no row is left.
        """
        dropped = int((~mask).sum())
        if dropped == len(self):
            raise UserError(f"{limit} excludes all {len(self)} rows; {remedy}")
        self._places = self._places[mask]
        return dropped
