"""The shapes in which datasets come, and how one row of each becomes a prompt with answers; pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """One prompt with its answers: the best one, and those it was preferred to.

    Attributes:
        prompt: text before every answer.
        chosen: the best answer.
        rejected: the others, better ones first; empty where there is none.
        subset: part of the dataset it belongs to, if the data names one.
        ranks: of chosen and rejected answers; 0 is best, equal ranks are ties.
        ratings: of the same answers, where the data measures by how much one is better: differences are margins.
    """

    prompt: str
    chosen: str
    rejected: tuple[str, ...] = ()
    subset: str | None = None
    ranks: tuple[int, ...] = (0,)
    ratings: tuple[float, ...] | None = None


class BadRow(Exception):
    """A row that cannot be used; the argument is the reason, under which it is counted."""


@dataclass(frozen=True)
class Shape:
    """A row shape: its roles with their default columns, which of them a source may lack, and how a row is read."""

    columns: dict[str, str]
    optional: frozenset[str]
    read: Callable[[Row, Formats], Example]


@dataclass(frozen=True)
class Formats:
    """Templates of prompt and answer, and a pattern removed from answers."""

    prompt: str | None
    answer: str | None
    remove: str | None

    def format_prompt(self, default: str, **fields: str) -> str:
        """The prompt text."""
        return (self.prompt or default).format(**fields)

    def format_answer(self, answer: str) -> str:
        """The answer text.

        Raises:
            BadRow: the answer is empty.
        """
        if self.remove:
            answer = re.sub(self.remove, "", answer)
        if not answer.strip():
            raise BadRow("empty answer")
        return (self.answer or "{answer}").format(answer=answer)


def checked(example: Example) -> Example:
    """The example, if it can be used.

    Raises:
        BadRow: the prompt is empty, or two answers are the same.
    """
    if not example.prompt.strip():
        raise BadRow("empty prompt")
    answers = (example.chosen, *example.rejected)
    if len(set(answers)) < len(answers):
        raise BadRow("identical pair" if len(answers) == 2 else "identical answers")
    return example


def in_order(
    prompt: str, answers: Sequence[str], grades: Sequence[float], subset: str | None = None, rated: bool = False
) -> Example:
    """The answers of a prompt from the highest grade to the lowest; answers of equal grade share a rank.

    Args:
        prompt: text before every answer.
        answers: at least one.
        grades: of each answer; higher is better.
        subset: part of the dataset, or None.
        rated: whether differences of grades say by how much an answer is better.

    Raises:
        BadRow: there are several answers, and all of one grade.
    """
    order = sorted(range(len(answers)), key=lambda place: -grades[place])
    levels = sorted(set(grades), reverse=True)
    if len(answers) > len(levels) == 1:
        raise BadRow("tie")
    best, *others = (answers[place] for place in order)
    ranks = tuple(levels.index(grades[place]) for place in order)
    ratings = tuple(grades[place] for place in order) if rated else None
    return Example(prompt, best, tuple(others), subset, ranks, ratings)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadRow("wrong type")
    return value


def as_number(value: Any) -> float:
    """A finite number, also where it is written as text.

    Raises:
        BadRow: it is no number, or not finite.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise BadRow("wrong type") from None
    if not math.isfinite(number):
        raise BadRow("number not finite")
    return number


def _subset(fields: Row) -> str | None:
    return str(fields["subset"]) if "subset" in fields else None


def _pairs(fields: Row, formats: Formats) -> Example:
    prompt = formats.format_prompt("{prompt}", prompt=_text(fields["prompt"]))
    chosen = formats.format_answer(_text(fields["chosen"]))
    rejected = formats.format_answer(_text(fields["rejected"])) if "rejected" in fields else None
    return _pair(prompt, chosen, rejected, fields)


def _pair(prompt: str, chosen: str, rejected: str | None, fields: Row) -> Example:
    """A pair with its margin, where the row has one; a margin is the rating of the better answer above a zero."""
    if rejected is None:
        return Example(prompt, chosen, subset=_subset(fields))
    margin = as_number(fields["margin"]) if "margin" in fields else None
    if margin is not None and margin < 0:
        raise BadRow("negative margin")
    ratings = None if margin is None else (margin, 0.0)
    return Example(prompt, chosen, (rejected,), _subset(fields), (0, 1), ratings)


def _dialogues(fields: Row, formats: Formats) -> Example:
    chosen_prompt, chosen = _last_turn(_text(fields["chosen"]))
    rejected_prompt, rejected = _last_turn(_text(fields["rejected"]))
    if chosen_prompt != rejected_prompt:
        raise BadRow("prompt differs")
    prompt = formats.format_prompt("{prompt}", prompt=chosen_prompt)
    return _pair(prompt, formats.format_answer(chosen), formats.format_answer(rejected), fields)


def _last_turn(dialogue: str) -> tuple[str, str]:
    """Everything through the last `Assistant:` mark, and the answer after it."""
    mark = "\n\nAssistant:"
    head, found, answer = dialogue.rpartition(mark)
    if not found:
        raise BadRow("no assistant turn")
    return head + mark, answer


def _instructions(fields: Row, formats: Formats) -> Example:
    instruction, extra = _text(fields["instruction"]), _text(fields.get("input", ""))
    default = "Human: {instruction}\n{input}\n\nAssistant:" if extra else "Human: {instruction}\n\nAssistant:"
    prompt = formats.format_prompt(default, instruction=instruction, input=extra)
    # Templates end without a space; the answer brings it, as a tokenizer sees words with their leading space.
    answer = formats.format_answer(_text(fields["output"]))
    return Example(prompt, answer if formats.answer else " " + answer.lstrip(), subset=_subset(fields))


def _messages(fields: Row, formats: Formats) -> Example:
    prompt, chosen = _turns(fields["messages"])
    rejected = None
    if "rejected" in fields:
        rejected_prompt, rejected = _turns(fields["rejected"])
        if rejected_prompt != prompt:
            raise BadRow("prompt differs")
        rejected = formats.format_answer(rejected)
    prompt = formats.format_prompt("{prompt}", prompt=prompt)
    return _pair(prompt, formats.format_answer(chosen), rejected, fields)


def _turns(messages: Any) -> tuple[str, str]:
    names = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: ", "system": ""}
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise BadRow("wrong type")
    if not messages or messages[-1].get("role") != "assistant":
        raise BadRow("no assistant turn")
    if any(message.get("role") not in names for message in messages):
        raise BadRow("unknown role")
    text = "".join(names[message["role"]] + _text(message.get("content")) for message in messages[:-1])
    answer = _text(messages[-1].get("content"))
    return text.lstrip("\n") + "\n\nAssistant:", " " + answer if answer.strip() else answer


def _comparisons(fields: Row, formats: Formats) -> Example:
    grades = [as_number(fields.get("score_0", 0.5)), as_number(fields["score_1"])]
    if grades[0] == grades[1]:
        raise BadRow("tie")
    answers = [formats.format_answer(_text(fields[role])) for role in ("answer_0", "answer_1")]
    prompt = formats.format_prompt("{prompt}", prompt=_text(fields["prompt"]))
    # A label alone says which answer is better, not by how much.
    return in_order(prompt, answers, grades, _subset(fields), rated="score_0" in fields)


def _ratings(fields: Row, formats: Formats) -> Example:
    """One rated answer; `rejected` is filled in when the answers of a prompt are put in order."""
    prompt = formats.format_prompt("{prompt}", prompt=_text(fields["prompt"]))
    return Example(prompt, formats.format_answer(_text(fields["answer"])), subset=_subset(fields))


def _ranked(fields: Row, formats: Formats) -> Example:
    """Answers best first, unless ratings (higher is better) or ranks (lower is better) give another order."""
    answers = [formats.format_answer(_text(answer)) for answer in _list(fields["answers"])]
    if not answers:
        raise BadRow("empty answer")
    grades = [float(-place) for place in range(len(answers))]
    if "ratings" in fields:
        grades = [as_number(rating) for rating in _list(fields["ratings"])]
    elif "ranks" in fields:
        grades = [-as_number(rank) for rank in _list(fields["ranks"])]
    if len(grades) != len(answers):
        raise BadRow("lists of different length")
    prompt = formats.format_prompt("{prompt}", prompt=_text(fields["prompt"]))
    return in_order(prompt, answers, grades, _subset(fields), rated="ratings" in fields)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise BadRow("wrong type")
    return value


SHAPES = {
    "pairs": Shape(
        {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", "margin": "margin", "subset": "subset"},
        frozenset({"rejected", "margin", "subset"}),
        _pairs,
    ),
    "dialogues": Shape(
        {"chosen": "chosen", "rejected": "rejected", "margin": "margin", "subset": "subset"},
        frozenset({"margin", "subset"}),
        _dialogues,
    ),
    "instructions": Shape(
        {"instruction": "instruction", "input": "input", "output": "output", "subset": "subset"},
        frozenset({"input", "subset"}),
        _instructions,
    ),
    "messages": Shape(
        {"messages": "messages", "rejected": "rejected", "margin": "margin", "subset": "subset"},
        frozenset({"rejected", "margin", "subset"}),
        _messages,
    ),
    "ratings": Shape(
        {"prompt": "prompt", "answer": "answer", "rating": "rating", "subset": "subset"},
        frozenset({"subset"}),
        _ratings,
    ),
    "ranked": Shape(
        {"prompt": "prompt", "answers": "answers", "ranks": "ranks", "ratings": "ratings", "subset": "subset"},
        frozenset({"ranks", "ratings", "subset"}),
        _ranked,
    ),
    "comparisons": Shape(
        {
            "prompt": "prompt",
            "answer_0": "answer_0",
            "answer_1": "answer_1",
            "score_0": "score_0",
            "score_1": "score_1",
            "subset": "subset",
        },
        frozenset({"score_0", "subset"}),
        _comparisons,
    ),
}
