"""The answers to a prompt as one list, the chosen one first, and back; pure functions."""

from __future__ import annotations

from typing import Any


def answer_groups(batch: dict[str, list[Any]]) -> list[list[str]]:
    """All answers of each row of a cached dataset, from its columns `chosen` and `rejected`."""
    return [[chosen, *rejected] for chosen, rejected in zip(batch["chosen"], batch["rejected"], strict=True)]


def grouped_ids(groups: list[list[str]], ids: list[list[int]]) -> dict[str, list[list[int]]]:
    """Columns of the token store from the ids of all answers one after the other.

    Args:
        groups: as `answer_groups` gives them.
        ids: of the answers of all groups, in their order.

    Returns:
        `chosen`; `rejected`, all others of a row in one list; `lengths` of the answers of each row.
    """
    flat = iter(ids)
    rows = [[next(flat) for _ in group] for group in groups]
    return {
        "chosen": [row[0] for row in rows],
        "rejected": [[token for answer in row[1:] for token in answer] for row in rows],
        "lengths": [[len(answer) for answer in row] for row in rows],
    }
