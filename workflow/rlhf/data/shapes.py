"""The shapes in which datasets come, and how one row of each becomes a prompt with answers; pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlhf.data.example import BadRow, Example, Formats, Messages, Row, as_number, in_order

SPACED = " {answer}"  # behind a prompt that ends with `Assistant:`


@dataclass(frozen=True)
class Shape:
    """A row shape: its roles with their default columns, which of them a source may lack, and how a row is read."""

    columns: dict[str, str]
    optional: frozenset[str]
    read: Callable[[Row, Formats], Example]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadRow("wrong type")
    return value


def _subset(fields: Row) -> str | None:
    return str(fields["subset"]) if "subset" in fields else None


def _pairs(fields: Row, formats: Formats) -> Example:
    prompt = formats.format_prompt("{prompt}", prompt=_text(fields["prompt"]))
    chosen = formats.format_answer(_text(fields["chosen"]))
    rejected = formats.format_answer(_text(fields["rejected"])) if "rejected" in fields else None
    return _pair(prompt, chosen, rejected, fields, formats.turns(prompt))


def _pair(prompt: str, chosen: str, rejected: str | None, fields: Row, turns: str | None) -> Example:
    """A pair with its margin, where the row has one; a margin is the rating of the better answer above a zero."""
    if rejected is None:
        return Example(prompt, chosen, subset=_subset(fields), turns=turns)
    margin = as_number(fields["margin"]) if "margin" in fields else None
    if margin is not None and margin < 0:
        raise BadRow("negative margin")
    ratings = None if margin is None else (margin, 0.0)
    return Example(prompt, chosen, (rejected,), _subset(fields), (0, 1), ratings, turns)


def _dialogues(fields: Row, formats: Formats) -> Example:
    chosen_prompt, chosen = _last_turn(_text(fields["chosen"]))
    rejected_prompt, rejected = _last_turn(_text(fields["rejected"]))
    if chosen_prompt != rejected_prompt:
        raise BadRow("prompt differs")
    if formats.chat:
        chosen, rejected = _after_mark(chosen), _after_mark(rejected)
    prompt = formats.format_prompt("{prompt}", prompt=chosen_prompt)
    turns = formats.turns(prompt, _marked_turns(prompt)) if formats.chat else None
    return _pair(prompt, formats.format_answer(chosen), formats.format_answer(rejected), fields, turns)


def _marked_turns(dialogue: str) -> Messages:
    """The turns before the answer; chat templates want users and assistants by turns."""
    first, *parts, _ = re.split(r"\n\n(Human|Assistant):", dialogue)
    names, texts = parts[0::2], parts[1::2]  # the last mark is the answer's
    if first.strip() or names != ["Human", "Assistant"] * (len(names) // 2):
        raise BadRow("roles do not alternate")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [(roles[name], _after_mark(text)) for name, text in zip(names, texts, strict=False)]


def _after_mark(text: str) -> str:
    """A turn's text without the space that separates it from its mark."""
    return text.removeprefix(" ")


def _last_turn(dialogue: str) -> tuple[str, str]:
    """Everything through the last `Assistant:` mark, and the answer after it."""
    mark = "\n\nAssistant:"
    head, found, answer = dialogue.rpartition(mark)
    if not found:
        raise BadRow("no assistant turn")
    return head + mark, answer


def _instructions(fields: Row, formats: Formats) -> Example:
    instruction, extra = _text(fields["instruction"]), _text(fields.get("input", ""))
    default = "{instruction}\n{input}" if extra else "{instruction}"
    if not formats.chat:
        default = f"Human: {default}\n\nAssistant:"
    prompt = formats.format_prompt(default, instruction=instruction, input=extra)
    answer = formats.format_answer(_text(fields["output"]), SPACED)
    return Example(prompt, answer, subset=_subset(fields), turns=formats.turns(prompt))


def _messages(fields: Row, formats: Formats) -> Example:
    prompt, chosen = _turns(fields["messages"])
    rejected = None
    if "rejected" in fields:
        rejected_prompt, rejected = _turns(fields["rejected"])
        if rejected_prompt != prompt:
            raise BadRow("prompt differs")
        rejected = formats.format_answer(rejected, SPACED)
    prompt = formats.format_prompt("{prompt}", prompt=prompt)
    messages = [(message["role"], message["content"]) for message in fields["messages"][:-1]]
    turns = formats.turns(prompt, messages)
    return _pair(prompt, formats.format_answer(chosen, SPACED), rejected, fields, turns)


def _turns(messages: Any) -> tuple[str, str]:
    names = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: ", "system": ""}
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise BadRow("wrong type")
    if not messages or messages[-1].get("role") != "assistant":
        raise BadRow("no assistant turn")
    if any(message.get("role") not in list(names) for message in messages):  # a role may be unhashable
        raise BadRow("unknown role")
    text = "".join(names[message["role"]] + _text(message.get("content")) for message in messages[:-1])
    if messages[0]["role"] != "system":
        text = text.removeprefix("\n\n")
    return text + "\n\nAssistant:", _text(messages[-1].get("content"))


def _comparisons(fields: Row, formats: Formats) -> Example:
    grades = [as_number(fields.get("score_0", 0.5)), as_number(fields["score_1"])]
    if grades[0] == grades[1]:
        raise BadRow("tie")
    answers = [formats.format_answer(_text(fields[role])) for role in ("answer_0", "answer_1")]
    prompt = formats.format_prompt("{prompt}", prompt=_text(fields["prompt"]))
    # A label alone says which answer is better, not by how much.
    return in_order(prompt, answers, grades, _subset(fields), turns=formats.turns(prompt), rated="score_0" in fields)


def _ratings(fields: Row, formats: Formats) -> Example:
    """One rated answer; `rejected` is filled in when the answers of a prompt are put in order."""
    prompt = formats.format_prompt("{prompt}", prompt=_text(fields["prompt"]))
    return Example(
        prompt, formats.format_answer(_text(fields["answer"])), subset=_subset(fields), turns=formats.turns(prompt)
    )


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
    return in_order(prompt, answers, grades, _subset(fields), turns=formats.turns(prompt), rated="ratings" in fields)


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
