"""What the evaluation stages share: their inputs, one model after the other, and how they write their result."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import numpy as np
from torch import nn

from rlhf.config.section import Section
from rlhf.config.specification import (
    PlannedEvaluation,
    ResolvedAnswers,
    ResolvedRewardEvaluation,
    ResolvedSftEvaluation,
    SeededSpecification,
)
from rlhf.data.corpus import Corpus
from rlhf.errors import Interrupted, UserError
from rlhf.evaluation.found import Codec, Found
from rlhf.memory.measure import memory_report
from rlhf.models.loading import load_policy, load_reward
from rlhf.models.scores import TokenScorer
from rlhf.ppo.prompts import keep_prompts
from rlhf.records.evaluation import EvaluationRecord, Measured, write_evaluation
from rlhf.records.memory import write_memory
from rlhf.records.samples import BaselineSample, SamplePair, write_samples
from rlhf.runtime.logging import get_logger
from rlhf.runtime.manifest import code_hash, placement
from rlhf.runtime.seeds import derive_seed
from rlhf.training.distributed import Remember, agreed, all_gather, on_cpu, rank, require_dtype, together
from rlhf.training.inference import empty_cache, evaluation_config, for_inference, release
from rlhf.training.job import Job, StagePaths

logger = get_logger(__name__)

SettingsT = TypeVar("SettingsT", bound=ResolvedSftEvaluation | ResolvedAnswers, covariant=True)
FoundT = TypeVar("FoundT")
Model = Callable[[], nn.Module]  # loads it, unless it is there


class Evaluation(Job[SettingsT, Section, PlannedEvaluation]):
    """An evaluation stage: models loaded one after the other, passes over rows that are kept, and the result.

    Each pass asks one model about all rows, in micro-batches that all processes share. What it finds is kept in the
    state folder: an attempt goes on at the micro-batch at which the one before was stopped, and loads no model of
    which nothing more is asked.
    """

    _looked_at = 0.0
    _longest = 0.0
    _done = False

    def __enter__(self) -> Self:
        require_dtype(self.settings.dtype)
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        if self._done and rank() == 0:
            shutil.rmtree(self.paths.state, ignore_errors=True)

    @property
    def batch_size(self) -> int:
        """Sequences that a process computes at once."""
        return self.execution.per_device_eval_batch_size

    @contextmanager
    def model(self, load: Model) -> Iterator[Model]:
        """A model for the passes in the block: loaded when the first of them has to compute, and dropped at its end."""
        held: list[nn.Module] = []

        def loaded() -> nn.Module:
            if not held:
                with self.memory.phase("load"):
                    held.append(load())
            return held[0]

        try:
            yield loaded
        finally:
            while held:
                release(held.pop())
            empty_cache()

    def policy(self, folder: Path) -> nn.Module:
        """The causal language model of a folder, ready to compute."""
        config = self._partitions()
        return for_inference(load_policy(folder, self.settings.dtype, zero3=config), config)

    def reward_model(self, folder: Path, normalised: bool = True) -> nn.Module:
        """The reward model of a folder, ready to compute; its scores as the folder says that they are normalised."""
        config = self._partitions()
        model = load_reward(folder, self.settings.dtype, zero3=config)
        return for_inference(TokenScorer.normalised(model) if normalised else TokenScorer(model), config)

    def _partitions(self) -> dict[str, Any] | None:
        return evaluation_config(self.execution, self.settings.dtype)

    def passed(
        self,
        name: str,
        phase: str,
        model: Model,
        compute: Callable[[nn.Module, Remember[FoundT]], Sequence[FoundT]],
        codec: Codec[FoundT],
    ) -> list[FoundT]:
        """What one pass finds, by this attempt or an earlier one; called by all processes.

        Args:
            name: of the pass.
            phase: of the memory measurement.
            model: what is asked.
            compute: asks it, and lets what it finds of each micro-batch be remembered.
            codec: of what it finds of each row.
        """
        kept = Found(self.paths.state / "found" / f"{self.fingerprint[:16]}-{code_hash()[-16:]}", self._look_up)
        known = kept.whole(name, codec)
        if known is not None:
            logger.info("%s: known from an earlier attempt", name)
            return known
        loaded = model()
        self._looked_at = time.monotonic()
        with self.memory.phase(phase):
            found = list(compute(loaded, kept.remember(name, codec)))
        kept.finish(name, found, codec)
        return found

    def _look_up(self) -> None:
        """Between two micro-batches: stop where that is asked.

        Raises:
            Interrupted: what was found is kept.
        """
        now = time.monotonic()
        self._longest, self._looked_at = max(self._longest, now - self._looked_at), now
        self.interruption.look_for_starters()
        self.interruption.expect(1.5 * self._longest)
        if agreed(self.interruption.reason is not None)[0]:
            reason = self.interruption.reason or "another process was asked to stop"
            raise Interrupted(f"{reason}: what was found so far is kept; the same command goes on from there")

    def write(self, result: Measured, samples: Sequence[BaselineSample] | Sequence[SamplePair] | None = None) -> None:
        """Write memory.json, samples.jsonl where there are samples, and last evaluation.json; called by all processes.

        Args:
            result: what was measured; an entry that is None was not, and is left out.
            samples: the answers.
        """
        record: EvaluationRecord = {
            **cast(EvaluationRecord, result),
            "schema_version": 1,
            "stage": self.spec.stage,
            "id": self.spec.id,
            "execution": self.execution.model_dump(mode="json"),
            **placement(),
        }
        processes = all_gather(self.memory.stop())
        with together():
            if rank() == 0:
                self._lease.require()
                write_memory(self.paths.output, memory_report(processes, "cpu" if on_cpu() else "cuda"))
                if samples is not None:
                    write_samples(self.paths.output, samples)
                write_evaluation(self.paths.output, record)
        self._done = True
        for key, value in result.items():
            if isinstance(value, int | float):
                logger.info("%s: %.6g", key, value)


SftStage = Evaluation[ResolvedSftEvaluation]
RewardStage = Evaluation[ResolvedRewardEvaluation]
AnswersT = TypeVar("AnswersT", bound=ResolvedAnswers, covariant=True)


class AnswersEvaluation(Evaluation[AnswersT]):
    """An evaluation stage that draws answers.

    Args:
        spec: the stage's specification.
        paths: where it reads and writes.
    """

    def __init__(self, spec: SeededSpecification[AnswersT, Section, PlannedEvaluation], paths: StagePaths) -> None:
        super().__init__(spec, paths)
        self.seed = spec.seed


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
    chosen = corpus.sample(settings.prompts, derive_seed(evaluation.seed, "unseen prompts"))
    logger.info("%d of %d unseen prompts; %d are too long", len(chosen), len(corpus), dropped)
    return corpus, chosen


def require_same_prompts(rows: list[BaselineSample], prompts: list[int], path: Path) -> None:
    """Refuse a baseline of other prompts: policy and SFT model are compared prompt by prompt.

    Raises:
        UserError: they are others.
    """
    if [row["row"] for row in rows] != prompts:
        raise UserError(f"{path}: answers other prompts than this stage; remove the folder and run snakemake again")
