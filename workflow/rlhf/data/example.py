"""A prompt with its answers, and what turns the texts of a row into it; pure functions."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.data.texts import Formatted, formatted

LARGEST_NUMBER = 3.4e38  # of single precision, in which ratings are stored
UNANSWERED = -1  # rank of what stands in the place of an answer, where a prompt has none
TIE = "tie"  # the reason of rows whose answers are equally good: nothing is wrong with them, but nothing to be learnt
Row = dict[str, Any]
Messages = list[tuple[str, str]]


@dataclass(frozen=True)
class Example:
    """One prompt with its answers: the best one, and those it was preferred to.

    Attributes:
        prompt: text before every answer.
        chosen: the best answer.
        rejected: the others, better ones first; empty where there is none.
        subset: part of the dataset it belongs to, if the data names one.
        ranks: of chosen and rejected answers; 0 is best, equal ranks are ties; `UNANSWERED` alone: `chosen` is none.
        ratings: of the same answers, where the data measures by how much one is better: differences are margins.
        turns: the prompt for a chat template, as JSON, where one will write it.
        group: what its row has in common with others that are to stay with it, where the data names that.
    """

    prompt: str
    chosen: str
    rejected: tuple[str, ...] = ()
    subset: str | None = None
    ranks: tuple[int, ...] = (0,)
    ratings: tuple[float, ...] | None = None
    turns: str | None = None
    group: str | None = None


def is_answered(row: Row) -> bool:
    """Whether a row of a cached dataset has an answer, and not only something in its place."""
    return list(row["ranks"]) != [UNANSWERED]


class BadRow(Exception):
    """A row that cannot be used; the argument is the reason, under which it is counted."""


@dataclass(frozen=True)
class UnreadableRow:
    """In the place of a row that its file does not hold in a readable form."""

    reason: str


@dataclass(frozen=True)
class Formats:
    """How texts are made.

    Attributes:
        prompt, answer: templates, or None for the shape's own.
        remove: patterns that are deleted from answers, one after the other.
        chat: whether a chat template follows.
        replace: what is replaced in prompts, and by what, one after the other.
    """

    prompt: str | None
    answer: str | None
    remove: tuple[str, ...] = ()
    chat: bool = False
    replace: tuple[tuple[str, str], ...] = ()

    def format_prompt(self, default: str, before: str = "", **fields: str) -> Formatted:
        """The prompt text.

        Args:
            default: template of the shape.
            before: what was said before it.
            fields: of the template.
        """
        template = ("{before}\n\n" if before else "") + (self.prompt or default)
        return formatted(template, before=before, **{name: self._replaced(text) for name, text in fields.items()})

    def _replaced(self, text: str) -> str:
        for old, new in self.replace:
            text = text.replace(old, new)
        return text

    def format_answer(self, answer: Any, role: str, default: str = "{answer}") -> Formatted:
        """The answer text.

        Args:
            answer: of a row.
            role: its role, for the reason.
            default: template of the shape, for plain text.

        Raises:
            BadRow: the answer is no text, or empty.
        """
        answer = as_text(answer, role)
        for pattern in self.remove:
            answer = re.sub(pattern, "", answer)
        if not answer.strip():
            raise BadRow(f"empty answer: {role}")
        return formatted(self.answer or ("{answer}" if self.chat else default), answer=answer)

    def turns(self, prompt: str, messages: Messages | None = None) -> str | None:
        """The turns before the answer as JSON, where a chat template will write them.

        Args:
            prompt: the user's only turn, where there are no messages.
            messages: (role, text) of each turn.
        """
        if not self.chat:
            return None
        turns = [("user", prompt)] if messages is None else messages
        return json.dumps([{"role": role, "content": text} for role, text in turns], ensure_ascii=False)


def checked(example: Example) -> Example:
    """The example, if it can be used.

    Raises:
        BadRow: the prompt is empty, two answers are the same, or a text cannot be written in UTF-8.
    """
    if not example.prompt.strip():
        raise BadRow("empty prompt")
    answers = (example.chosen, *example.rejected)
    if not all(map(_is_unicode, (example.prompt, *answers, example.subset or "", example.group or ""))):
        raise BadRow("broken Unicode")
    if len(set(answers)) < len(answers):
        raise BadRow("identical pair" if len(answers) == 2 else "identical answers")
    return example


def _is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, which JSON can escape but no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def in_order(
    prompt: str,
    answers: Sequence[str],
    grades: Sequence[float],
    subset: str | None = None,
    turns: str | None = None,
    rated: bool = False,
) -> Example:
    """The answers of a prompt from the highest grade to the lowest; answers of equal grade share a rank.

    Args:
        prompt: text before every answer.
        answers: at least one.
        grades: of each answer; higher is better.
        subset: part of the dataset, or None.
        turns: the prompt for a chat template, or None.
        rated: whether differences of grades say by how much an answer is better.

    Raises:
        BadRow: `TIE`: there are several answers, and all of one grade.
    """
    order = sorted(range(len(answers)), key=lambda place: -grades[place])
    levels = sorted(set(grades), reverse=True)
    if len(answers) > len(levels) == 1:
        raise BadRow(TIE)
    best, *others = (answers[place] for place in order)
    ranks = tuple(levels.index(grades[place]) for place in order)
    ratings = tuple(grades[place] for place in order) if rated else None
    return Example(prompt, best, tuple(others), subset, ranks, ratings, turns)


def as_text(value: Any, role: str) -> str:
    """A text.

    Args:
        value: of a row.
        role: its role, for the reason.

    Raises:
        BadRow: it is something else.
    """
    if not isinstance(value, str):
        raise BadRow(f"wrong type: {role}")
    return value


def as_number(value: Any, role: str) -> float:
    """A finite number, also where it is written as text; one that single precision cannot hold is not finite.

    Args:
        value: of a row.
        role: its role, for the reason.

    Raises:
        BadRow: it is no number, or not finite.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise BadRow(f"wrong type: {role}") from None
    except OverflowError:  # an integer beyond the range of numbers with a fraction
        raise BadRow(f"number not finite: {role}") from None
    if not abs(number) <= LARGEST_NUMBER:
        raise BadRow(f"number not finite: {role}")
    return number
