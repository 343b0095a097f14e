"""The frame of supervised training: what the stages of phases 1 and 2 do alike around their loop.

Each stage adds what it optimises, how its model is loaded, and what is delivered. The loop is
`rlhf.training.supervised`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from rlhf.data.corpus import Corpus
from rlhf.records.manifest import Facts
from rlhf.runtime.logging import get_logger
from rlhf.training.engine import EngineSettings, Trainer
from rlhf.training.stage import SupervisedStage
from rlhf.training.supervised import Objective, SupervisedTraining, total_steps

logger = get_logger(__name__)

# Not the stage's: runs of different seeds evaluate on the same rows, so that what differs between them is training.
# Which rows are unseen does not depend on a run's seed either.
EVALUATION_ROWS_SEED = 0


@dataclass(frozen=True)
class Corpora:
    """The rows of one phase: those to learn from, and unseen ones to evaluate on."""

    train: Corpus
    unseen: Corpus

    @property
    def inputs(self) -> dict[str, str]:
        """Fingerprints of what a stage read, for its manifest."""
        return {"tokenizer": self.train.tokenizer_fingerprint}


def load_corpora(stage: SupervisedStage, objective: Objective, phase: str) -> Corpora:
    """Training and unseen rows of a phase; rows that are too long are left out, and the log says how many.

    Of the unseen rows at most `max_eval_rows` are kept: a random sample of all datasets. It decides when training stops
    and which weights are best, and is what a reward model's scores are normalised by.

    Args:
        stage: specification and paths.
        objective: knows how many tokens a row has for it.
        phase: `sft` or `reward`: whose rows, and the section of the configuration that a message names.

    Raises:
        UserError: no row of a split is short enough.
    """
    settings = stage.settings
    train, unseen = stage.paths.corpus("train", phase, settings.data_weights), stage.paths.corpus("eval", phase)
    for split, corpus in (("train", train), ("eval", unseen)):
        total = len(corpus)
        dropped = keep_usable(corpus, objective, settings.max_seq_len, phase)
        logger.info("%s: %d of %d rows; %s", split, len(corpus), total, dropped)
    chosen = unseen.sample(settings.max_eval_rows, EVALUATION_ROWS_SEED)
    unseen.keep(np.isin(np.arange(len(unseen)), chosen), f"{phase}.max_eval_rows")
    return Corpora(train, unseen)


@dataclass(frozen=True)
class Dropped:
    """Rows that are left out: too long, or of answers that are the same tokens."""

    too_long: int
    equal: int

    def __str__(self) -> str:
        return f"{self.too_long} too long, {self.equal} of equal answers"


def keep_usable(corpus: Corpus, objective: Objective, limit: int, phase: str) -> Dropped:
    """Leave out the rows from which an objective learns nothing, and those of more than `limit` tokens.

    Raises:
        UserError: no row is left.
    """
    remedy = "its tokenizer lacks the words by which they differ"
    equal = corpus.keep(objective.usable(corpus), f"{phase}: answers that are the same tokens", remedy)
    return Dropped(corpus.keep(objective.lengths(corpus) <= limit, f"{phase}.max_seq_len: {limit}"), equal)


def supervised_engine(stage: SupervisedStage) -> EngineSettings:
    """How the engine of an SFT or reward stage runs."""
    execution = stage.execution
    return EngineSettings(
        zero_stage=execution.zero_stage,
        dtype=stage.settings.dtype,
        micro_batch_size=execution.per_device_train_batch_size,
        offload=execution.offload,
        gradient_checkpointing=execution.gradient_checkpointing,
        overrides=execution.deepspeed_config,
    )


def train_supervised(stage: SupervisedStage, trainer: Trainer, objective: Objective, corpora: Corpora) -> Facts:
    """Train to the end; the trainer's model is then the one to deliver.

    Returns:
        What the manifest says of it.

    Raises:
        Interrupted: the stage was asked to stop, and has saved its state.
        FloatingPointError: a loss or a gradient is not finite, and `on_nonfinite` is `stop`.
    """
    train, unseen = corpora.train, corpora.unseen
    steps = total_steps(train, stage.settings)
    with stage.memory.phase("train"), stage.metrics(steps) as metrics:
        training = SupervisedTraining(stage, trainer, objective, train, unseen, metrics)
        progress = training.run()
    return {
        "rows": {"train": training.rows_seen(), "eval": len(unseen)},
        "rows_given": len(train),
        "seen_in_train": int(unseen.is_seen().sum()),
        "steps": progress.summary(steps),
        **cast(Facts, trainer.facts()),
    }
