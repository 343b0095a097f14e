"""Labels that say which of two answers is better; pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rlhf.data.example import BadRow
from rlhf.errors import UserError

MEANINGS = {
    "answer_0": ("1", "a", "model_a", "first"),
    "answer_1": ("2", "b", "model_b", "second"),
    "tie": ("0", "tie", "tie (bothbad)", "both", "neither"),
}
BETTER = {name: meaning for meaning, names in MEANINGS.items() for name in names}


def grades_of(label: Any) -> list[float]:
    """Grades of the two answers, of which higher is better.

    Args:
        label: one of `MEANINGS`, in capitals or not, a number or a text.

    Raises:
        BadRow: it is none of them, or says that none is better.
    """
    meaning = BETTER.get(_name(label))
    if meaning is None:
        raise BadRow("unknown label: label")
    if meaning == "tie":
        raise BadRow("tie")
    return [1.0, 0.0] if meaning == "answer_0" else [0.0, 1.0]


def _name(label: Any) -> str:
    """How a label is written; numbers of a column with gaps are read with a fraction of 0."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, bool) or (isinstance(label, int) and not 0 <= label < 10):
        return ""
    return str(label).strip().lower()


def require_meaning(labels: Iterable[Any], place: str) -> None:
    """Refuse labels that can be read in two ways: truth values, and numbers from 0 to 1.

    Args:
        labels: of all rows.
        place: configuration path of the dataset, for messages.

    Raises:
        UserError: there are such labels.
    """
    remedy = "map score_0 in the place of label where 1 or true means answer_0, score_1 where it means answer_1"
    names = set()
    for label in labels:
        if isinstance(label, bool):
            raise UserError(f"{place}.columns.label: truth values do not say which answer is meant; {remedy}")
        names.add(_name(label))
    if "0" in names and "2" not in names:
        raise UserError(
            f"{place}.columns.label: of the labels 0 (tie), 1 (answer_0) and 2 (answer_1), 2 is in no row, so that 0 "
            f"and 1 may mean something else; {remedy}, or write ties as `tie` where there are any"
        )
