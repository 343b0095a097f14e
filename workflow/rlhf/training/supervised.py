"""The loop that SFT and reward-model training share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from rlhf.config.stages import SupervisedSettings
from rlhf.data.batching import MicroBatch, epoch_batches, micro_batches
from rlhf.data.corpus import Corpus
from rlhf.records.manifest import Steps
from rlhf.runtime.logging import get_logger
from rlhf.runtime.progress import StageMetrics
from rlhf.runtime.seeds import derive_seed
from rlhf.training.checkpoints import CheckpointPart
from rlhf.training.distributed import Remember, all_sum, anew, rank, world_size
from rlhf.training.engine import Trainer
from rlhf.training.faults import FaultCounter
from rlhf.training.stage import SupervisedStage
from rlhf.training.weights import WeightCopy

logger = get_logger(__name__)


class Objective(Protocol):
    """What is optimised: the loss summed over rows, and the count that a whole batch's sum is divided by."""

    statistics: tuple[str, ...]
    capacity: int | None  # tokens of a sequence into which rows are packed; None: each row is a sequence of its own

    def usable(self, corpus: Corpus) -> np.ndarray:
        """Whether there is something to learn from a row, whatever its length, [rows] bool."""

    def lengths(self, corpus: Corpus) -> np.ndarray:
        """Tokens of each row, [rows]."""

    def count(self, corpus: Corpus, rows: np.ndarray) -> int:
        """What the summed loss of these rows is divided by."""

    def loss(self, model: nn.Module, corpus: Corpus, rows: np.ndarray) -> tuple[Tensor, list[float]]:
        """Summed loss of the rows (scalar), and the sum of each of `statistics`."""

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """Metrics from the mean loss and the mean statistics."""


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimizer steps of one pass over the rows; the last batch may be smaller."""
    return -(-rows // batch_size)


def total_steps(train: Corpus, settings: SupervisedSettings) -> int:
    """Optimizer steps of the whole run, if nothing stops it early."""
    return settings.num_train_epochs * steps_per_epoch(train.rows_per_epoch, settings.global_batch_size)


@dataclass
class SupervisedProgress:
    """How far a training is: what a checkpoint holds of the loop itself."""

    step: int = 0  # optimizer steps done, skipped ones included
    tokens: int = 0
    skipped_steps: int = 0
    evaluated_step: int = -1  # step at which the last evaluation was made
    best_loss: float | None = None  # lowest loss on unseen rows
    best_step: int = 0
    evaluations_without_gain: int = 0
    stopped_early: bool = False

    def summary(self, planned: int) -> Steps:
        """What the manifest says about the steps."""
        return {
            "planned": planned,
            "done": self.step,
            "skipped_steps": self.skipped_steps,
            "stopped_early": self.stopped_early,
            "best_step": self.best_step,
            "best_loss": self.best_loss,
        }


class SupervisedTraining:
    """The optimisation of one model on rows, with evaluations on unseen rows.

    An evaluation is made before the first step, after every `eval_interval` steps and each epoch, and at the end. With
    `early_stopping_patience` training ends when that many evaluations in a row have not improved the unseen loss; with
    `keep_best` the model ends with the weights of its best evaluation. Can be interrupted and goes on where it was:
    the order of the rows depends on the seed and the epoch only.

    Args:
        stage: specification, execution and state folder.
        trainer: the model.
        objective: what is optimised.
        train: rows to learn from.
        unseen: rows to evaluate on.
        metrics: writer of the metrics.
    """

    def __init__(
        self,
        stage: SupervisedStage,
        trainer: Trainer,
        objective: Objective,
        train: Corpus,
        unseen: Corpus,
        metrics: StageMetrics,
    ) -> None:
        self._settings, self._execution, self._seed = stage.settings, stage.execution, stage.seed
        self._trainer, self._objective, self._metrics = trainer, objective, metrics
        self._train, self._unseen = train, unseen
        self._lengths = objective.lengths(train)
        self._epoch_steps = steps_per_epoch(train.rows_per_epoch, self._settings.global_batch_size)
        self._steps = total_steps(train, self._settings)
        self._best = WeightCopy(trainer.module, device="cpu") if self._settings.keep_best else None
        self._progress = SupervisedProgress()
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])
        self._faults = FaultCounter(stage.paths.state, self._settings.dtype, self._settings.on_nonfinite)
        parts: dict[str, CheckpointPart] = {"engine": trainer, "metrics": metrics}
        if self._best is not None:
            parts["best"] = self._best
        self._checkpoints = stage.checkpoints(parts, zero_stage=self._execution.zero_stage)

    def run(self) -> SupervisedProgress:
        """Train to the end; returns what was done.

        Raises:
            Interrupted: the stage was asked to stop, and has saved its state.
            FloatingPointError: a loss or a gradient is not finite, and `on_nonfinite` is `stop`.
        """
        restored = self._checkpoints.restore()
        if restored is not None:
            self._progress = SupervisedProgress(**restored)
        progress = self._progress
        while True:
            self._checkpoints.boundary(asdict(progress))
            if progress.evaluated_step != progress.step and self._evaluation_is_due():
                self._evaluate()
            if progress.stopped_early or progress.step == self._steps:
                break
            self._step()
        self._checkpoints.finish()
        self._metrics.require_complete(progress.step)
        if self._best is not None:
            logger.info("the model has the weights of step %d, the best", progress.best_step)
            self._best.put()
        return progress

    def rows_seen(self) -> int:
        """How many different rows the steps so far were made of, of those that an epoch's share may leave out."""
        seen = np.zeros(len(self._lengths), dtype=bool)
        for epoch in range(-(-self._progress.step // self._epoch_steps)):
            for batch in self._batches(epoch)[: self._progress.step - epoch * self._epoch_steps]:
                seen[batch] = True
        return int(seen.sum())

    def _evaluation_is_due(self) -> bool:
        step, interval = self._progress.step, self._settings.eval_interval
        return step % self._epoch_steps == 0 or bool(interval and step % interval == 0)

    def _evaluate(self) -> None:
        progress = self._progress
        with self._trainer.evaluation():
            means = mean_loss(
                self._trainer.engine,
                self._objective,
                self._unseen,
                self._execution.per_device_eval_batch_size,
                self._checkpoints.interrupt_point,
            )
        self._metrics.record(progress.step, "eval", **self._objective.summary(means))
        progress.evaluated_step = progress.step
        if progress.best_loss is None or means["loss"] < progress.best_loss:
            progress.best_loss, progress.best_step, progress.evaluations_without_gain = means["loss"], progress.step, 0
            if self._best is not None:
                self._best.take()
        else:
            progress.evaluations_without_gain += 1
        patience = self._settings.early_stopping_patience
        if patience is not None and progress.evaluations_without_gain >= patience:
            logger.info("stopped after step %d: no gain in %d evaluations", progress.step, patience)
            progress.stopped_early = True

    def _step(self) -> None:
        progress = self._progress
        epoch, place = divmod(progress.step, self._epoch_steps)
        batch = self._batches(epoch)[place]
        rate = self._trainer.learning_rate()
        measured = self._optimise(batch)
        progress.step += 1
        progress.tokens += int(self._lengths[batch].sum())
        self._metrics.record(
            progress.step,
            "train",
            **measured,
            learning_rate=rate,
            epoch=epoch + 1,
            tokens=progress.tokens,
            tokens_per_second=progress.tokens / self._metrics.elapsed,
        )

    def _batches(self, epoch: int) -> list[np.ndarray]:
        if self._epoch[0] != epoch:
            seed = derive_seed(self._seed, "order", epoch)
            rows = self._train.epoch_rows(self._seed, epoch)
            self._epoch = epoch, epoch_batches(rows, self._lengths, self._settings.global_batch_size, seed)
        return self._epoch[1]

    def _optimise(self, batch: np.ndarray) -> dict[str, float]:
        """One optimizer step; returns its metrics. Of a skipped step nothing is known but how many there have been."""
        trainer, objective, corpus = self._trainer, self._objective, self._train
        count = objective.count(corpus, batch)
        micro_size = self._execution.per_device_train_batch_size
        share = micro_batches(batch, self._lengths, micro_size, rank(), world_size(), objective.capacity)
        sums = _Sums(objective)

        def loss_of(micro: MicroBatch) -> Tensor:
            loss, statistics = objective.loss(trainer.engine, corpus, micro.rows)
            sums.add(micro, _numbers(loss, statistics))
            return loss * (micro.weight / count)

        norm = trainer.step([partial(loss_of, micro) for micro in share])
        means = sums.means(count)
        rows = [corpus.place(row) for row in batch]
        if not self._faults.check(self._progress.step + 1, means["loss"], norm, rows) or norm is None:
            self._progress.skipped_steps += 1
            return {"skipped_steps": self._progress.skipped_steps}
        return {**objective.summary(means), "grad_norm": norm}


def mean_loss(
    model: nn.Module,
    objective: Objective,
    corpus: Corpus,
    batch_size: int,
    between: Callable[[], None] = lambda: None,
    remember: Remember[float] = anew,
) -> dict[str, float]:
    """Mean loss and statistics over all rows of a corpus, computed by all processes together.

    Args:
        model: what the objective takes.
        objective: loss and statistics.
        corpus: rows.
        batch_size: rows computed at once.
        between: called before each batch.
        remember: keeps the sums of each batch, and knows those of an earlier attempt.
    """

    def summed(rows: np.ndarray) -> list[float]:
        return _numbers(*objective.loss(model, corpus, rows))

    rows = np.arange(len(corpus))
    share = micro_batches(rows, objective.lengths(corpus), batch_size, rank(), world_size(), objective.capacity)
    sums, compute = _Sums(objective), remember(summed)
    for micro in share:
        between()
        sums.add(micro, compute(micro.rows))
    return sums.means(objective.count(corpus, rows))


def _numbers(loss: Tensor, statistics: list[float]) -> list[float]:
    return [float(loss.detach()), *statistics]


class _Sums:
    """Sums of the loss and the statistics over this process's micro-batches, in which fillers weigh nothing."""

    def __init__(self, objective: Objective) -> None:
        self._names = ("loss", *objective.statistics)
        self._values = [0.0] * len(self._names)

    def add(self, micro: MicroBatch, numbers: Sequence[float]) -> None:
        """Add the loss and the statistics of a micro-batch."""
        for index, value in enumerate(numbers):
            self._values[index] += micro.weight * value

    def means(self, count: int) -> dict[str, float]:
        return {name: value / count for name, value in zip(self._names, all_sum(*self._values), strict=True)}
