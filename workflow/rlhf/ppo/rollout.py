"""One rollout: sampled answers, on every process alike.

Answers are short compared with weights, so each process computes its share and receives all of it. What follows
(whitening, minibatches) is then the same computation everywhere, whatever the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rlhf.data.batching import micro_batches, pad
from rlhf.errors import UserError
from rlhf.ppo.sampling import Answer, sample_answers
from rlhf.training.distributed import all_gather, rank, world_size
from rlhf.training.weights import is_partitioned


@dataclass(frozen=True)
class Rectangle:
    """Some samples, each answer right behind its prompt, padded on the right to the longest sample.

    So padding is what a sample lacks to the longest one, and samples of like length need hardly any. What models say of
    answer tokens comes without padding, one number per token, and is then laid out in a table.

    Attributes:
        input_ids: [batch, seq] int64.
        attention_mask: [batch, seq] int64, 1 on real tokens.
        mask: 1 on answer tokens, [batch, answer width] float32.
        predicting: place in the flattened `input_ids` of the token before each answer token, which predicts it, row by
            row, [answer tokens] int64.
        places: place of each answer token in a flattened table, in the same order, [answer tokens] int64.
    """

    input_ids: Tensor
    attention_mask: Tensor
    mask: Tensor
    predicting: Tensor
    places: Tensor

    @property
    def width(self) -> int:
        """Tokens of the longest answer."""
        return self.mask.shape[1]

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """What `answer_logits` needs beside the model: ids, mask, and which positions predict answer tokens (bool)."""
        predicting = torch.zeros_like(self.input_ids, dtype=torch.bool).flatten().index_fill(0, self.predicting, True)
        return self.input_ids, self.attention_mask, predicting.view_as(self.input_ids)

    @property
    def targets(self) -> Tensor:
        """Ids of the answer tokens, row by row, [answer tokens] int64."""
        return self.input_ids.flatten()[self.predicting + 1]

    def table(self, values: Tensor) -> Tensor:
        """Values of answer tokens as a table: [answer tokens] float32 -> [batch, answer width], 0 behind an answer."""
        return values.new_zeros(self.mask.numel()).scatter(0, self.places, values).view_as(self.mask)


def collate(
    prompts: Sequence[np.ndarray], answers: Sequence[np.ndarray], pad_id: int, device: torch.device
) -> Rectangle:
    """Prompts and answers in one rectangle; masks follow from the lengths.

    Raises:
        UserError: a prompt has no token, so that nothing predicts the first one of its answer.
    """
    if not all(map(len, prompts)):
        raise UserError("a prompt has no token, so nothing can follow it; leave such rows out of the dataset")
    padded = pad([np.concatenate(sample) for sample in zip(prompts, answers, strict=True)], pad_id, "right")
    starts = np.array([len(prompt) for prompt in prompts])
    lengths = np.array([len(answer) for answer in answers])
    mask = np.arange(lengths.max()) < lengths[:, None]
    rows, columns = np.nonzero(mask)
    predicting = rows * padded.input_ids.shape[1] + starts[rows] + columns - 1
    tensors = (padded.input_ids, padded.attention_mask, mask.astype(np.float32), predicting, np.flatnonzero(mask))
    return Rectangle(*(torch.from_numpy(array).to(device) for array in tensors))


@dataclass(frozen=True)
class Samples:
    """Prompts with one answer each.

    Attributes:
        rows: of the prompts in their corpus, [samples]; a reward model that reads text needs them.
    """

    prompts: list[np.ndarray]
    answers: list[Answer]
    rows: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of prompt and answer, [samples]."""
        return np.array([len(p) + len(a.ids) for p, a in zip(self.prompts, self.answers, strict=True)])

    @property
    def answer_lengths(self) -> np.ndarray:
        """Tokens of each answer, EOS included, [samples]."""
        return np.array([len(answer.ids) for answer in self.answers])

    @property
    def finished(self) -> np.ndarray:
        """Whether each answer ends with EOS, [samples] bool."""
        return np.array([answer.finished for answer in self.answers])

    def rectangle(self, rows: np.ndarray, pad_id: int, device: torch.device) -> Rectangle:
        """The given samples, padded to the longest of them."""
        return collate([self.prompts[i] for i in rows], [self.answers[i].ids for i in rows], pad_id, device)


def generate(
    model: nn.Module,
    prompts: list[np.ndarray],
    seeds: Sequence[int],
    batch_size: int,
    max_new_tokens: int,
    temperature: float,
    between: Callable[[], None] = lambda: None,
) -> Samples:
    """One answer per prompt, each process sampling its share.

    Args:
        model: policy in evaluation mode.
        prompts: prompt ids.
        seeds: one per prompt.
        batch_size: prompts per generation batch.
        max_new_tokens: longest answer.
        temperature: sampling temperature.
        between: called before each generation batch.
    """
    lengths = np.array([len(prompt) for prompt in prompts])
    synced = world_size() > 1 and is_partitioned(model)  # whole models need not wait for each other at every token
    own: dict[int, Answer] = {}
    for micro in micro_batches(np.arange(len(prompts)), lengths, batch_size, rank(), world_size()):
        between()
        drawn = sample_answers(
            model,
            [prompts[row] for row in micro.rows],
            [seeds[row] for row in micro.rows],
            max_new_tokens,
            temperature,
            synced=synced,
        )
        if micro.weight:
            own |= dict(zip(micro.rows.tolist(), drawn, strict=True))
    answers = {row: answer for part in all_gather(own) for row, answer in part.items()}
    return Samples(prompts, [answers[row] for row in range(len(prompts))])
