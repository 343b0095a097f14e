"""Prompts with sampled answers: alone, in one rectangle for the models, and cut into micro-batches for training."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlhf.config.stages import PpoSettings
from rlhf.data.batching import MicroBatch, micro_batches, pad
from rlhf.errors import UserError
from rlhf.models.scores import token_logprobs
from rlhf.training.distributed import rank, world_size


@dataclass(frozen=True)
class Answer:
    """One sampled answer: its ids up to and including the first EOS, with the log-probability of each draw."""

    ids: np.ndarray  # [length] int64
    logprobs: np.ndarray  # [length] float32, at the sampling temperature
    finished: bool  # ends with EOS


@dataclass(frozen=True)
class Rectangle:
    """Some samples in one tensor, each answer right behind its prompt, padded on the right to the longest sample.

    So padding is what a sample lacks to the longest one, and samples of like length need hardly any. Models say one
    thing per answer token, row by row and without padding (N); `table` lays that out by sample and place in the answer
    (B x T). The letters are those of `rlhf.models.scores`.

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
        flat = torch.zeros_like(self.input_ids, dtype=torch.bool).flatten()
        predicting_BS = flat.index_fill(0, self.predicting, True).view_as(self.input_ids)
        return self.input_ids, self.attention_mask, predicting_BS

    @property
    def targets(self) -> Tensor:
        """Ids of the answer tokens, row by row, [answer tokens] int64."""
        return self.input_ids.flatten()[self.predicting + 1]

    def logprobs(self, logits: Tensor) -> Tensor:
        """Log-probabilities of the answer tokens.

        Args:
            logits: of the answer tokens, row by row, already divided by the temperature, [answer tokens, vocab].

        Returns:
            [batch, answer width] float32, 0 behind an answer.
        """
        return self.table(token_logprobs(logits, self.targets))

    def table(self, values: Tensor) -> Tensor:
        """Values of answer tokens as a table: [answer tokens] float32 -> [batch, answer width], 0 behind an answer."""
        return values.new_zeros(self.mask.numel()).scatter(0, self.places, values).view_as(self.mask)


def collate(
    prompts: Sequence[np.ndarray], answers: Sequence[np.ndarray], pad_id: int, device: torch.device
) -> Rectangle:
    """Prompts and answers in one rectangle. Masks follow from the lengths, because an answer may hold the filler id.

    Raises:
        UserError: a prompt has no token, so that nothing predicts the first one of its answer.
    """
    if not all(map(len, prompts)):
        raise UserError("a prompt has no token, so nothing can follow it; leave such rows out of the dataset")
    padded = pad([np.concatenate(sample) for sample in zip(prompts, answers, strict=True)], pad_id, "right")
    starts_B = np.array([len(prompt) for prompt in prompts])
    lengths_B = np.array([len(answer) for answer in answers])
    mask_BT = np.arange(lengths_B.max()) < lengths_B[:, None]
    rows_N, columns_N = np.nonzero(mask_BT)
    predicting_N = rows_N * padded.input_ids.shape[1] + starts_B[rows_N] + columns_N - 1

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    return Rectangle(
        input_ids=tensor(padded.input_ids),
        attention_mask=tensor(padded.attention_mask),
        mask=tensor(mask_BT.astype(np.float32)),
        predicting=tensor(predicting_N),
        places=tensor(np.flatnonzero(mask_BT)),
    )


@dataclass(frozen=True)
class Samples:
    """A rollout, or part of one: prompts, each with one answer; a prompt that gets several stands as often.

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

    def shares(self, size: int) -> list[MicroBatch]:
        """This process's micro-batches of all samples, where nothing asks for a random order.

        Args:
            size: samples computed at once.
        """
        return micro_batches(np.arange(len(self)), self.lengths, size, rank(), world_size())


@dataclass(frozen=True)
class Partition:
    """How a rollout is cut for training: each PPO epoch into minibatches, and those into micro-batches.

    A rollout is scored in the micro-batches of the first epoch, and goes on into training with the partition by which
    it was scored. Kernels round a row differently in another batch; so old and new log-probabilities of the first
    minibatch are the same computation, and their ratio is exactly 1.

    Attributes:
        epochs: of each PPO epoch the minibatches, each as the micro-batches that this process computes.
    """

    epochs: list[list[list[MicroBatch]]]

    @classmethod
    def draw(cls, samples: Samples, settings: PpoSettings, micro_size: int, seeds: Sequence[int]) -> Partition:
        """Cut a rollout at random, alike on all processes.

        Args:
            samples: the rollout.
            settings: `minibatches` of an epoch.
            micro_size: samples computed at once.
            seeds: one for the permutation of each PPO epoch.
        """
        epochs = []
        for seed in seeds:
            order = np.random.default_rng(seed).permutation(len(samples))
            parts = np.array_split(order, settings.minibatches)
            epochs.append([micro_batches(part, samples.lengths, micro_size, rank(), world_size()) for part in parts])
        return cls(epochs)

    @property
    def scored(self) -> list[MicroBatch]:
        """The micro-batches in which the rollout is scored: those of the first epoch, which has every sample once."""
        return list(itertools.chain.from_iterable(self.epochs[0]))

    @property
    def minibatches(self) -> list[list[MicroBatch]]:
        """All minibatches in the order in which they are trained on."""
        return list(itertools.chain.from_iterable(self.epochs))
