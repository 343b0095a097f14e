"""SFT and reward training once more, in float64 and one row at a time; see `tests.oracle.ppo`.

Sources: config/README.md; Bradley-Terry loss over all pairs of a group (Ouyang et al. 2022), margins (Touvron et al.
2023), the token-wise loss of DeepSpeed-Chat.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tests.oracle.material import Row, with_eos
from tests.oracle.networks import LanguageModel, Network, Scorer
from tests.oracle.optimizer import AdamW


class Objective(Protocol):
    """A loss of rows, and what is measured beside it."""

    network: Network

    def loss(self, rows: Sequence[Row]) -> tuple[Tensor, dict[str, float]]:
        """The loss of an optimizer step, and the metrics of the rows."""

    def tokens(self, row: Row) -> int:
        """Tokens of the longest sequence of a row."""


class Likelihood:
    """Mean negative log-likelihood over the tokens of the best answers, or of whole rows but their first tokens."""

    def __init__(self, network: LanguageModel, loss_on: str) -> None:
        self.network, self._all = network, loss_on == "all"

    def loss(self, rows: Sequence[Row]) -> tuple[Tensor, dict[str, float]]:
        """In nats per token; and the perplexity."""
        logs = []
        for row in rows:
            start, rest = row.prompt, with_eos(row.answers[0])
            if self._all:
                start, rest = row.prompt[:1], np.concatenate([row.prompt[1:], rest])
            logs.append(self.network.logprobs(np.array(start), rest))
        loss = -torch.cat(logs).mean()
        return loss, {"loss": float(loss.detach()), "perplexity": math.exp(loss.detach())}

    def tokens(self, row: Row) -> int:
        """Tokens of the longest sequence of a row."""
        return len(row.prompt) + len(row.answers[0]) + 1


class Preference:
    """Mean over groups of the mean over their pairs of -log sigmoid(better - worse - margin)."""

    def __init__(self, network: Scorer, loss: str, margin_coefficient: float) -> None:
        self.network, self._token_wise, self._coefficient = network, loss == "token_wise", margin_coefficient

    def loss(self, rows: Sequence[Row]) -> tuple[Tensor, dict[str, float]]:
        """In nats; and the share of all pairs that is ranked right."""
        groups, right = [], []
        for row in rows:
            tables = [self.network.scores(sequence) for sequence in sequences(row)]
            losses = []
            for better, worse in pairs(row):
                ahead = (tables[better][-1] - tables[worse][-1]).reshape(1)
                right.append(0.5 * (1 + float(ahead.detach().sign())))
                if self._token_wise:
                    ahead = self._window(row, tables, better, worse)
                margin = self._coefficient * (row.ratings[better] - row.ratings[worse])
                losses.append((1 + (margin - ahead).exp()).log().mean())
            groups.append(torch.stack(losses).mean())
        loss = torch.stack(groups).mean()
        ties = float(np.mean([share == 0.5 for share in right]))
        return loss, {"loss": float(loss.detach()), "accuracy": float(np.mean(right)), "tie_share": ties}

    def _window(self, row: Row, tables: list[Tensor], better: int, worse: int) -> Tensor:
        """Differences from the first token at which two answers of one length differ."""
        first, second = sequences(row)[better], sequences(row)[worse]
        assert len(first) == len(second)
        start = int(np.flatnonzero(first != second)[0])
        return tables[better][start:] - tables[worse][start:]

    def tokens(self, row: Row) -> int:
        """Tokens of the longest sequence of a row."""
        return max(map(len, sequences(row)))


def sequences(row: Row) -> list[np.ndarray]:
    """The prompt with each of its answers."""
    return [np.concatenate([row.prompt, with_eos(answer)]) for answer in row.answers]


def pairs(row: Row) -> list[tuple[int, int]]:
    """Places of a better and a worse answer: all pairs but the ties."""
    places = range(len(row.answers))
    return [(i, j) for i, j in itertools.permutations(places, 2) if row.ratings[i] > row.ratings[j]]


class Training:
    """One run.

    Args:
        settings: of the stage, as its spec.yaml has them.
        objective: loss of the rows; its network trains.
        unseen: rows to evaluate on.
        epoch_rows: rows that an epoch sees.
    """

    def __init__(self, settings: dict[str, Any], objective: Objective, unseen: Sequence[Row], epoch_rows: int) -> None:
        self._settings, self._objective, self._unseen = settings, objective, unseen
        self._epoch_steps = math.ceil(epoch_rows / settings["global_batch_size"])
        self.total_steps = self._epoch_steps * settings["num_train_epochs"]
        self._optimizer = AdamW(objective.network, settings, self.total_steps)
        self._best, self._without_gain = math.inf, 0
        self.best_step, self.best = 0, objective.network.step_back()

    def run(self, batches: Sequence[Sequence[Row]]) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
        """All steps, to the last of the given batches; returns the metrics of the steps and of the evaluations."""
        steps, evaluations, tokens = [], [self._evaluate(0)], 0
        for number, rows in enumerate(batches, start=1):
            tokens += sum(map(self._objective.tokens, rows))
            place = {"step": number, "epoch": 1 + (number - 1) // self._epoch_steps, "tokens": tokens}
            rate = self._optimizer.learning_rate()
            loss, metrics = self._objective.loss(rows)
            steps.append({**place, **metrics, "learning_rate": rate, "grad_norm": self._optimizer.step(loss)})
            interval = self._settings["eval_interval"]
            if number % self._epoch_steps == 0 or (interval and number % interval == 0):
                evaluations.append(self._evaluate(number))
            assert (self._stops() or number == self.total_steps) == (number == len(batches))
        return steps, evaluations

    def _stops(self) -> bool:
        patience = self._settings["early_stopping_patience"]
        return patience is not None and self._without_gain >= patience

    def _evaluate(self, step: int) -> dict[str, float]:
        with torch.no_grad():
            _, metrics = self._objective.loss(self._unseen)
        self._without_gain += 1
        if metrics["loss"] < self._best:
            self._best, self._without_gain = metrics["loss"], 0
            self.best_step, self.best = step, self._objective.network.step_back()
        return {"step": step, **metrics}

    def result(self) -> Network:
        """The weights that the stage must end with."""
        return self.best if self._settings["keep_best"] else self._objective.network.step_back()
