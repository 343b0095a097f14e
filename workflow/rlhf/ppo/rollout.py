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
from rlhf.ppo.sampling import Answer, sample_answers
from rlhf.training.distributed import all_gather, rank, world_size


@dataclass(frozen=True)
class Rectangle:
    """Some samples, prompts padded on the left and answers on the right."""

    input_ids: Tensor  # [batch, prompt width + answer width] int64
    attention_mask: Tensor  # the same shape, 1 on real tokens
    mask: Tensor  # [batch, answer width] float32, 1 on answer tokens

    @property
    def width(self) -> int:
        """Columns of the answer part."""
        return self.mask.shape[1]

    @property
    def answers(self) -> Tensor:
        """Answer ids, [batch, answer width] int64."""
        return self.input_ids[:, -self.width :]


def collate(
    prompts: Sequence[np.ndarray], answers: Sequence[np.ndarray], pad_id: int, device: torch.device
) -> Rectangle:
    """Prompts and answers in one rectangle; masks follow from the lengths."""
    left, right = pad(prompts, pad_id, "left"), pad(answers, pad_id, "right")
    ids = np.concatenate([left.input_ids, right.input_ids], axis=1)
    mask = np.concatenate([left.attention_mask, right.attention_mask], axis=1)
    answer_mask = torch.from_numpy(right.attention_mask).float()
    return Rectangle(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device), answer_mask.to(device))


@dataclass(frozen=True)
class Samples:
    """Prompts with one answer each."""

    prompts: list[np.ndarray]
    answers: list[Answer]

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
        """The given samples, padded to their own longest prompt and answer."""
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
    own: dict[int, Answer] = {}
    for micro in micro_batches(np.arange(len(prompts)), lengths, batch_size, rank(), world_size()):
        between()
        drawn = sample_answers(
            model,
            [prompts[row] for row in micro.rows],
            [seeds[row] for row in micro.rows],
            max_new_tokens,
            temperature,
            synced=world_size() > 1,
        )
        if micro.weight:
            own |= dict(zip(micro.rows.tolist(), drawn, strict=True))
    answers = {row: answer for part in all_gather(own) for row, answer in part.items()}
    return Samples(prompts, [answers[row] for row in range(len(prompts))])
