"""The loop that SFT and reward-model training share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from rlhf.data.batching import MicroBatch, epoch_batches, micro_batches
from rlhf.data.corpus import Corpus
from rlhf.runtime.progress import StageMetrics
from rlhf.runtime.seeds import derive_seed
from rlhf.training.distributed import all_sum, rank, world_size
from rlhf.training.engine import Trainer


class Objective(Protocol):
    """What is optimised: a sum over rows, and the count it is divided by."""

    statistics: tuple[str, ...]

    def lengths(self, corpus: Corpus) -> np.ndarray:
        """Tokens of each row, [rows]."""

    def count(self, corpus: Corpus, rows: np.ndarray) -> int:
        """What the summed loss of these rows is divided by."""

    def loss(self, model: nn.Module, corpus: Corpus, rows: np.ndarray) -> tuple[Tensor, list[float]]:
        """Summed loss of the rows (scalar), and the sum of each of `statistics`."""

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """Metrics from the mean loss and the mean statistics."""


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimizer steps of one pass."""
    return -(-rows // batch_size)


def train_supervised(
    trainer: Trainer,
    objective: Objective,
    train: Corpus,
    unseen: Corpus,
    settings: dict[str, Any],
    execution: dict[str, Any],
    seed: int,
    metrics: StageMetrics,
) -> None:
    """Train for `num_train_epochs`, with an evaluation on unseen rows before, and after each epoch.

    The order of the rows depends on the seed and the epoch only.
    """
    lengths = objective.lengths(train)
    step = tokens = 0
    start = time.monotonic()
    evaluate_and_record(trainer, objective, unseen, execution, step, metrics)
    for epoch in range(settings["num_train_epochs"]):
        for batch in epoch_batches(lengths, settings["global_batch_size"], derive_seed(seed, "order", epoch)):
            rate = trainer.learning_rate()
            means, norm = _step(trainer, objective, train, lengths, batch, execution["per_device_train_batch_size"])
            step += 1
            tokens += int(lengths[batch].sum())
            metrics.record(
                step,
                "train",
                **objective.summary(means),
                learning_rate=rate,
                **({} if norm is None else {"grad_norm": norm}),
                epoch=epoch + 1,
                tokens=tokens,
                tokens_per_second=tokens / (time.monotonic() - start),
            )
        evaluate_and_record(trainer, objective, unseen, execution, step, metrics)


def evaluate_and_record(
    trainer: Trainer, objective: Objective, unseen: Corpus, execution: dict[str, Any], step: int, metrics: StageMetrics
) -> None:
    """Mean loss and statistics on unseen rows, as an `eval` line of the metrics."""
    with trainer.evaluation():
        means = mean_loss(trainer.engine, objective, unseen, execution["per_device_eval_batch_size"])
    metrics.record(step, "eval", **objective.summary(means))


def mean_loss(model: nn.Module, objective: Objective, corpus: Corpus, batch_size: int) -> dict[str, float]:
    """Mean loss and statistics over all rows of a corpus, computed by all processes together."""
    rows = np.arange(len(corpus))
    share = micro_batches(rows, objective.lengths(corpus), batch_size, rank(), world_size())
    sums = _Sums(objective)
    for micro in share:
        sums.add(micro, *objective.loss(model, corpus, micro.rows))
    return sums.means(objective.count(corpus, rows))


def _step(
    trainer: Trainer, objective: Objective, corpus: Corpus, lengths: np.ndarray, batch: np.ndarray, micro_size: int
) -> tuple[dict[str, float], float | None]:
    count = objective.count(corpus, batch)
    share = micro_batches(batch, lengths, micro_size, rank(), world_size())
    sums = _Sums(objective)

    def losses() -> Iterator[Tensor]:
        for micro in share:
            loss, statistics = objective.loss(trainer.engine, corpus, micro.rows)
            sums.add(micro, loss, statistics)
            yield loss * (micro.weight / count)

    norm = trainer.step(losses(), len(share))
    return sums.means(count), norm


class _Sums:
    """Weighted sums of the loss and the statistics over micro-batches."""

    def __init__(self, objective: Objective) -> None:
        self._names = ("loss", *objective.statistics)
        self._values = [0.0] * len(self._names)

    def add(self, micro: MicroBatch, loss: Tensor, statistics: list[float]) -> None:
        for index, value in enumerate([float(loss.detach()), *statistics]):
            self._values[index] += micro.weight * value

    def means(self, count: int) -> dict[str, float]:
        return {name: value / count for name, value in zip(self._names, all_sum(*self._values), strict=True)}
