"""The SFT loss mixed into PPO, which keeps the policy from forgetting (Ouyang et al. 2022, PPO-ptx)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from torch import Tensor, nn

from rlhf.data.batching import MicroBatch, micro_batches, shuffled_rows
from rlhf.data.corpus import Corpus
from rlhf.ppo.statistics import UpdateStatistics
from rlhf.runtime.seeds import derive_seed
from rlhf.training.distributed import rank, world_size
from rlhf.training.sft import AnswerLikelihood


class PretrainingMix:
    """Batches of SFT rows, in a new random order in each pass.

    The loss is coefficient x mean negative log-likelihood per answer token of a batch, added to the PPO loss, which is
    a mean per answer token too. InstructGPT's 27.8 belongs to its own ratio of batch sizes.

    Args:
        corpus: the rows of the SFT phase, those too long for PPO left out.
        coefficient: weight of the loss.
        rows_per_step: rows of each optimizer step, over all processes.
        micro_size: rows computed at once.
        seed: of the order.
    """

    def __init__(self, corpus: Corpus, coefficient: float, rows_per_step: int, micro_size: int, seed: int) -> None:
        self._corpus, self._coefficient, self._micro_size = corpus, coefficient, micro_size
        self._rows_per_step = rows_per_step
        self._objective = AnswerLikelihood()
        self._lengths = self._objective.lengths(corpus)
        self._order = shuffled_rows(corpus, derive_seed(seed, "ptx"))
        self._count = 0
        self.drawn = 0  # batches so far

    def skip(self, batches: int) -> None:
        """Leave out the batches that were drawn before a checkpoint."""
        self._order = itertools.islice(self._order, batches * self._rows_per_step, None)
        self.drawn = batches

    def next_rows(self) -> list[MicroBatch]:
        """This process's micro-batches of the next batch."""
        batch = np.array(list(itertools.islice(self._order, self._rows_per_step)))
        self._count = self._objective.count(self._corpus, batch)
        self.drawn += 1
        return micro_batches(batch, self._lengths, self._micro_size, rank(), world_size())

    def losses(self, model: nn.Module, rows: list[MicroBatch], statistics: UpdateStatistics) -> Iterator[Tensor]:
        """Weighted losses of the micro-batches of `next_rows`."""
        for micro in rows:
            loss, _ = self._objective.loss(model, self._corpus, micro.rows)
            statistics.add_mix(loss.detach(), self._objective.count(self._corpus, micro.rows), micro.weight)
            yield loss * (self._coefficient * micro.weight / self._count)
