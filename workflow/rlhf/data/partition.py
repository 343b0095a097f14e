"""Random parts of rows in exact proportions, of which no two hold rows of one group; pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def numbered(groups: Sequence[str]) -> np.ndarray:
    """Number of each row's group, in the order in which they appear, int64."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)


def partition(groups: np.ndarray, proportions: Sequence[float], seed: int) -> list[np.ndarray]:
    """Disjoint random parts that cover all rows, with sizes by the largest remainder.

    Groups in random order follow each other, and are cut where the number of rows is nearest to what the proportions
    ask for: exactly there where every row is a group of its own.

    Args:
        groups: number of each row's group, from 0 without a gap.
        proportions: any positive scale, for example 2, 4, 4.
        seed: of the order.

    Returns:
        Sorted row numbers of each part, int64.

    Raises:
        ValueError: all proportions are 0.
    """
    total, rows = sum(proportions), len(groups)
    if total <= 0:
        raise ValueError(f"proportions {list(proportions)} sum to 0")
    exact = np.array([share * rows / total for share in proportions])
    sizes = np.floor(exact).astype(int)
    sizes[np.argsort(sizes - exact, kind="stable")[: rows - sizes.sum()]] += 1
    counts = np.bincount(groups)
    order = np.random.default_rng(seed).permutation(len(counts))
    ends = np.concatenate([[0], np.cumsum(counts[order])])
    cuts = [int(np.argmin(np.abs(ends - end))) for end in np.cumsum(sizes)]
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    part = np.searchsorted(cuts, place, side="right")[groups]  # the first part whose end lies behind the group
    return [np.flatnonzero(part == number) for number in range(len(sizes))]
