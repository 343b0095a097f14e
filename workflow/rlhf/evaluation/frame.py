"""What the evaluation stages share: their inputs, and how they write their result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar, cast

import numpy as np

from rlhf.config.section import Section
from rlhf.config.specification import JobSpecification, ResolvedAnswers, SeededSpecification
from rlhf.config.stages import EvaluateExecution
from rlhf.data.corpus import Corpus
from rlhf.errors import UserError
from rlhf.ppo.prompts import keep_prompts
from rlhf.records.evaluation import EvaluationRecord, Measured, write_evaluation
from rlhf.records.samples import BaselineSample
from rlhf.runtime.logging import get_logger
from rlhf.runtime.manifest import placement
from rlhf.runtime.seeds import derive_seed
from rlhf.training.distributed import require_device
from rlhf.training.stage import StagePaths

logger = get_logger(__name__)

SettingsT = TypeVar("SettingsT", bound=Section, covariant=True)


@dataclass(frozen=True)
class Evaluation(Generic[SettingsT]):
    """An evaluation stage: specification, and where it reads and writes."""

    spec: JobSpecification[SettingsT, Section, EvaluateExecution]
    paths: StagePaths

    def __post_init__(self) -> None:
        require_device(self.spec.execution.gpus_per_node)

    @property
    def settings(self) -> SettingsT:
        """The stage's settings."""
        return self.spec.settings

    @property
    def batch_size(self) -> int:
        """Sequences computed at once."""
        return self.spec.execution.per_device_eval_batch_size

    def write(self, result: Measured) -> None:
        """Write evaluation.json.

        Args:
            result: what was measured; an entry that is None was not, and is left out.
        """
        record: EvaluationRecord = {
            **cast(EvaluationRecord, result),
            "schema_version": 1,
            "stage": self.spec.stage,
            "id": self.spec.id,
            "execution": self.spec.execution.model_dump(mode="json"),
            **placement(),
        }
        write_evaluation(self.paths.output, record)
        for key, value in result.items():
            if isinstance(value, int | float):
                logger.info("%s: %.6g", key, value)


AnswersT = TypeVar("AnswersT", bound=ResolvedAnswers, covariant=True)


@dataclass(frozen=True)
class AnswersEvaluation(Evaluation[AnswersT]):
    """An evaluation stage that draws answers."""

    spec: SeededSpecification[AnswersT, Section, EvaluateExecution]


def unseen_prompts(evaluation: AnswersEvaluation[ResolvedAnswers]) -> tuple[Corpus, np.ndarray]:
    """The unseen prompts to answer: a seeded choice among those that are short enough, every dataset with its share.

    Returns:
        The corpus, and the chosen rows [prompts].

    Raises:
        UserError: no prompt is short enough.
    """
    settings = evaluation.settings
    corpus = evaluation.paths.corpus("eval", "ppo")
    dropped = keep_prompts(corpus, settings.max_prompt_seq_len)
    chosen = corpus.sample(settings.prompts, derive_seed(evaluation.spec.seed, "unseen prompts"))
    logger.info("%d of %d unseen prompts; %d are too long", len(chosen), len(corpus), dropped)
    return corpus, chosen


def require_same_prompts(rows: list[BaselineSample], prompts: list[int], path: Path) -> None:
    """Refuse a baseline of other prompts: policy and SFT model are compared prompt by prompt.

    Raises:
        UserError: they are others.
    """
    if [row["row"] for row in rows] != prompts:
        raise UserError(f"{path}: answers other prompts than this stage; remove the folder and run snakemake again")
