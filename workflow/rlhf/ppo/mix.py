"""The SFT loss mixed into PPO, which keeps the policy from forgetting (Ouyang et al. 2022, PPO-ptx)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor, nn

from rlhf.data.batching import MicroBatch, micro_batches, shuffled_rows
from rlhf.data.corpus import Corpus
from rlhf.ppo.statistics import UpdateStatistics
from rlhf.runtime.seeds import derive_seed
from rlhf.training.distributed import rank, world_size
from rlhf.training.engine import LazyLoss
from rlhf.training.sft import AnswerLikelihood


@dataclass(frozen=True)
class MixedBatch:
    """SFT rows of one optimizer step: this process's micro-batches, and the answer tokens of all processes' rows."""

    shares: list[MicroBatch]
    tokens: int


class PretrainingMix:
    """Batches of SFT rows for the policy's steps, in a new random order in each pass over the rows.

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
        self._seed = derive_seed(seed, "ptx")
        self._order = shuffled_rows(corpus, self._seed)
        self.drawn = 0  # batches so far

    def skip(self, batches: int) -> None:
        """Go on behind the batches that were drawn before a checkpoint."""
        self._order = itertools.islice(self._order, batches * self._rows_per_step, None)
        self.drawn = batches

    def rows_seen(self) -> int:
        """How many different rows were drawn so far."""
        order = shuffled_rows(self._corpus, self._seed)
        return len(set(itertools.islice(order, self.drawn * self._rows_per_step)))

    def next_batch(self) -> MixedBatch:
        """Draw the rows of the next optimizer step; all processes draw the same."""
        rows = np.array(list(itertools.islice(self._order, self._rows_per_step)))
        self.drawn += 1
        shares = micro_batches(rows, self._lengths, self._micro_size, rank(), world_size())
        return MixedBatch(shares, self._objective.count(self._corpus, rows))

    def losses(self, model: nn.Module, batch: MixedBatch, statistics: UpdateStatistics) -> list[LazyLoss]:
        """The losses of a batch, one for each micro-batch; computing one counts it in the statistics."""
        return [partial(self._loss, model, micro, batch.tokens, statistics) for micro in batch.shares]

    def _loss(self, model: nn.Module, micro: MicroBatch, tokens: int, statistics: UpdateStatistics) -> Tensor:
        loss, _ = self._objective.loss(model, self._corpus, micro.rows)
        statistics.add_mix(loss.detach(), self._objective.count(self._corpus, micro.rows), micro.weight)
        return loss * (self._coefficient * micro.weight / tokens)
