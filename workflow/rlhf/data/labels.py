"""Labels and numbers that say which of two answers is better; pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rlhf.data.example import TIE, BadRow, as_number
from rlhf.errors import UserError

MEANINGS = {
    "answer_0": ("1", "a", "model_a", "first"),
    "answer_1": ("2", "b", "model_b", "second"),
    "tie": ("0", "tie", "tie (bothbad)", "both", "neither"),
}
BETTER = {name: meaning for meaning, names in MEANINGS.items() for name in names}
STRONGEST = 3  # preference, as HelpSteer has it
SHOWN_LABELS = 5
LARGEST_LABEL = 10**9  # beyond, a number is damage, and may be too long to be written


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
        raise BadRow(TIE)
    return [1.0, 0.0] if meaning == "answer_0" else [0.0, 1.0]


def grades_of_preference(preference: Any) -> list[float]:
    """Grades of the two answers, of which higher is better; they differ by the strength of the preference.

    Args:
        preference: a number from -3 to 3: below 0, the first answer is better, above 0, the second one.

    Raises:
        BadRow: it is no such number.
    """
    strength = as_number(preference, "preference")
    if abs(strength) > STRONGEST:
        raise BadRow("not from -3 to 3: preference")
    return [max(0.0, -strength), max(0.0, strength)]


def _name(label: Any) -> str:
    """How a label is written, "" where it is none; numbers of a column with gaps are read with a fraction of 0."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, bool) or (isinstance(label, int) and abs(label) > LARGEST_LABEL):
        return ""
    return str(label).strip().lower()


def require_meaning(labels: Iterable[Any], place: str) -> None:
    """Refuse labels that mean nothing here or can be read in two ways: truth values, and numbers from 0 to 1.

    A label that is missing in some rows (empty, or not a number) makes those rows bad.

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
    unknown = sorted(names - BETTER.keys() - {"", "nan"})
    if unknown:
        meanings = "; ".join(f"{meaning}: {', '.join(known)}" for meaning, known in MEANINGS.items())
        raise UserError(
            f"{place}.columns.label: {_shown(unknown)} is no label; these are ({meanings}). Rewrite or leave out the "
            "rows that have it, or map the column that holds the label"
        )
    if "0" in names and "2" not in names:
        raise UserError(
            f"{place}.columns.label: of the labels 0 (tie), 1 (answer_0) and 2 (answer_1), 2 is in no row, so that 0 "
            f"and 1 may mean something else; {remedy}, or write ties as `tie` where there are any"
        )


def require_strengths(preferences: Iterable[Any], place: str) -> None:
    """Refuse preferences beyond their scale: such numbers mean something else, such as that both answers are wrong.

    Args:
        preferences: of all rows.
        place: configuration path of the dataset, for messages.

    Raises:
        UserError: there are such numbers.
    """
    beyond = []
    for preference in preferences:
        try:
            grades_of_preference(preference)
        except BadRow as reason:
            if "not from" in str(reason):
                beyond.append(str(preference))
    if beyond:
        raise UserError(
            f"{place}.columns.preference: {_shown(sorted(beyond))} is not from -{STRONGEST} to {STRONGEST}; rewrite or "
            "leave out the rows that have it"
        )


def _shown(values: list[str]) -> str:
    more = f" and {len(values) - SHOWN_LABELS} more" if len(values) > SHOWN_LABELS else ""
    return ", ".join(map(repr, values[:SHOWN_LABELS])) + more
