"""Whether the limits of the training stages leave them rows: known as soon as these are tokenised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rlhf.config.specification import (
    ResolvedPpo,
    ResolvedReward,
    ResolvedSft,
    TrainedSpecification,
    TrainingSettings,
)
from rlhf.data.corpus import Corpus
from rlhf.ppo.prompts import keep_mixed, keep_prompts, planned_iterations, trained_iterations
from rlhf.runtime.logging import get_logger
from rlhf.training.frame import keep_usable
from rlhf.training.reward import GroupPreference, require_margins
from rlhf.training.sft import AnswerLikelihood
from rlhf.training.supervised import Objective

logger = get_logger(__name__)

SPLITS = ("train", "eval")
Folders = Mapping[str, Path]  # by ID


def usable_rows(stages: Iterable[TrainedSpecification], tokens: Folders, splits: Folders) -> dict[str, dict[str, int]]:
    """How many rows the stages will have to train on and to evaluate on.

    Args:
        stages: what is going to train.
        tokens: ID -> results/tokens/<id>/.
        splits: ID -> results/split/<id>/rows/.

    Returns:
        ID of a stage -> what its rows are for -> their number.

    Raises:
        UserError: a stage would have none, or its settings ask for what the rows lack, in the words of that stage.
    """
    found = {}
    for stage in stages:
        upstream = stage.upstream
        rows = _Rows([tokens[id] for id in upstream.tokens], [splits[id] for id in upstream.split])
        found[stage.id] = rows.of(stage.settings)
        logger.info("%s %s: %s", stage.stage, stage.id, found[stage.id])
    return found


@dataclass(frozen=True)
class _Rows:
    """The rows of a stage's datasets."""

    tokens: list[Path]
    splits: list[Path]

    def of(self, settings: TrainingSettings) -> dict[str, int]:
        """Numbers of rows that its limits leave."""
        if isinstance(settings, ResolvedPpo):
            return self._of_ppo(settings)
        if isinstance(settings, ResolvedReward):
            return self._supervised(settings, GroupPreference(), "reward")
        return self._supervised(settings, AnswerLikelihood(), "sft")

    def _supervised(self, settings: ResolvedSft | ResolvedReward, objective: Objective, phase: str) -> dict[str, int]:
        counts = {}
        for split in SPLITS:
            corpus = Corpus(self.tokens, self.splits, split, phase)
            keep_usable(corpus, objective, settings.max_seq_len, phase)
            if isinstance(settings, ResolvedReward) and split == "train":
                require_margins(corpus, settings.margin_coefficient)
            counts[split] = len(corpus)
        return counts

    def _of_ppo(self, settings: ResolvedPpo) -> dict[str, int]:
        counts = {}
        for split in SPLITS:
            prompts = Corpus(self.tokens, self.splits, split, "ppo", settings.data_weights)
            keep_prompts(prompts, settings.max_prompt_seq_len)
            if split == "train":
                trained_iterations(planned_iterations(settings, prompts), settings.critic_warmup_iterations)
            counts[split] = len(prompts)
        if settings.ptx_coefficient > 0:
            mixed = Corpus(self.tokens, self.splits, "train", "sft", settings.data_weights)
            keep_mixed(mixed, settings)
            counts["mixed"] = len(mixed)
        return counts
