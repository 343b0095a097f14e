"""Batches: seeded order, rows of like length together, the same global batch on any number of processes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf.runtime.seeds import derive_seed

MEGA_BATCHES = 32


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int) -> list[np.ndarray]:
    """Global batches of one epoch: every row once, rows of like length together, batches in random order.

    Rows are shuffled, cut into windows of `MEGA_BATCHES` batches, sorted by length inside a window, and cut into
    batches; the batches are shuffled again. The last batch may be smaller.

    Args:
        lengths: tokens of each row, [rows].
        batch_size: rows per optimizer step, over all processes.
        seed: of this epoch's order.

    Returns:
        Arrays of row indices.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(lengths))
    window = batch_size * MEGA_BATCHES
    batches = []
    for start in range(0, len(order), window):
        part = order[start : start + window]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[cut : cut + batch_size] for cut in range(0, len(part), batch_size)]
    return [batches[index] for index in generator.permutation(len(batches))]


def shuffled_rows(rows: int, seed: int) -> Iterator[int]:
    """All rows in a new random order in each pass, without end."""
    for epoch in itertools.count():
        yield from np.random.default_rng(derive_seed(seed, epoch)).permutation(rows).tolist()


@dataclass(frozen=True)
class MicroBatch:
    """Rows that one process computes at once; a filler has weight 0 and keeps the processes in step."""

    rows: np.ndarray
    weight: float


def micro_batches(batch: np.ndarray, lengths: np.ndarray, size: int, rank: int, world_size: int) -> list[MicroBatch]:
    """One process's share of a global batch, longest rows first.

    Every process gets the same number of micro-batches. Where the rows do not suffice, a process repeats the
    shortest row with weight 0.

    Args:
        batch: row indices of the global batch.
        lengths: tokens of each row of the corpus.
        size: rows per micro-batch, at most.
        rank: this process.
        world_size: number of processes.
    """
    ordered = batch[np.argsort(-lengths[batch], kind="stable")]
    size = min(size, -(-len(ordered) // world_size))
    chunks = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    mine = [MicroBatch(chunk, 1.0) for chunk in chunks[rank::world_size]]
    if len(mine) < -(-len(chunks) // world_size):
        mine.append(MicroBatch(ordered[-1:], 0.0))
    return mine


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
