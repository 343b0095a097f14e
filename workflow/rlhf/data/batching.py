"""Batches: seeded order, rows of like length together, the same global batch on any number of processes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rlhf.runtime.seeds import derive_seed

MEGA_BATCHES = 32


class EpochRows(Protocol):
    """What says which rows an epoch sees; `rlhf.data.corpus.Corpus` does."""

    def epoch_rows(self, seed: int, epoch: int) -> np.ndarray:
        """Row indices, repeated where a row is seen several times."""


def epoch_batches(rows: np.ndarray, lengths: np.ndarray, batch_size: int, seed: int) -> list[np.ndarray]:
    """Global batches of one epoch: rows of like length together, batches in random order.

    Rows are shuffled, cut into windows of `MEGA_BATCHES` batches, sorted by length inside a window, and cut into
    batches; the batches are shuffled again. The last batch may be smaller.

    Args:
        rows: row indices of the epoch.
        lengths: tokens of each row of the corpus.
        batch_size: rows per optimizer step, over all processes.
        seed: of this epoch's order.

    Returns:
        Arrays of row indices.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(rows)
    window = batch_size * MEGA_BATCHES
    batches = []
    for start in range(0, len(order), window):
        part = order[start : start + window]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[cut : cut + batch_size] for cut in range(0, len(part), batch_size)]
    return [batches[index] for index in generator.permutation(len(batches))]


def shuffled_rows(corpus: EpochRows, seed: int) -> Iterator[int]:
    """The rows of each epoch in a new random order, without end."""
    for epoch in itertools.count():
        yield from np.random.default_rng(derive_seed(seed, epoch)).permutation(corpus.epoch_rows(seed, epoch)).tolist()


@dataclass(frozen=True)
class MicroBatch:
    """Rows that one process computes at once; a filler has weight 0 and keeps the processes in step."""

    rows: np.ndarray
    weight: float


def micro_batches(
    batch: np.ndarray, lengths: np.ndarray, size: int, rank: int, world_size: int, capacity: int | None = None
) -> list[MicroBatch]:
    """One process's share of a global batch, longest rows (or fullest sequences) first.

    Every process gets the same number of micro-batches. Where the rows do not suffice, a process repeats the
    shortest row with weight 0.

    Args:
        batch: row indices of the global batch.
        lengths: tokens of each row of the corpus.
        size: rows per micro-batch, at most; where rows are packed, sequences.
        rank: this process.
        world_size: number of processes.
        capacity: tokens of a sequence into which rows are packed; None: each row is a sequence of its own.
    """
    ordered = batch[np.argsort(-lengths[batch], kind="stable")]
    if capacity is None:
        sequences = [ordered[place : place + 1] for place in range(len(ordered))]
    else:
        packed = [batch[places] for places in pack(lengths[batch], capacity)]
        sequences = sorted(packed, key=lambda rows: -int(lengths[rows].sum()))
    size = min(size, -(-len(sequences) // world_size))
    chunks = [np.concatenate(sequences[start : start + size]) for start in range(0, len(sequences), size)]
    mine = [MicroBatch(chunk, 1.0) for chunk in chunks[rank::world_size]]
    if len(mine) < -(-len(chunks) // world_size):
        mine.append(MicroBatch(ordered[-1:], 0.0))
    return mine


def pack(lengths: np.ndarray, capacity: int) -> list[np.ndarray]:
    """First-fit decreasing: each row, longest first, goes into the first sequence that has room for it.

    Packing the rows of some of these sequences again gives the same sequences, up to rows of equal length.

    Args:
        lengths: tokens of each row, none above `capacity`, [rows].
        capacity: tokens of a sequence.

    Returns:
        Places in `lengths` of each sequence's rows.
    """
    room = np.full(len(lengths), capacity)  # of every sequence there can be
    sequences: list[list[int]] = []
    for row in np.argsort(-lengths, kind="stable").tolist():
        place = int(np.argmax(room[: len(sequences) + 1] >= lengths[row]))
        if place == len(sequences):
            sequences.append([])
        sequences[place].append(row)
        room[place] -= lengths[row]
    return [np.array(rows) for rows in sequences]


@dataclass(frozen=True)
class Padded:
    """Sequences in one rectangle."""

    input_ids: np.ndarray  # [batch, seq] int64
    attention_mask: np.ndarray  # [batch, seq] int64, 1 on real tokens


def pad(sequences: Sequence[np.ndarray], pad_id: int, side: str, width: int | None = None) -> Padded:
    """Pad sequences to the longest, or to `width`; the mask follows from the lengths, never from the ids.

    Args:
        sequences: id arrays.
        pad_id: filler id.
        side: `left` or `right`: where the padding goes.
        width: number of columns; None takes the longest sequence.
    """
    width = max(len(sequence) for sequence in sequences) if width is None else width
    ids = np.full((len(sequences), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(sequences), width), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        place = slice(width - len(sequence), width) if side == "left" else slice(0, len(sequence))
        ids[row, place] = sequence
        mask[row, place] = 1
    return Padded(ids, mask)
