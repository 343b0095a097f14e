"""The shapes in which datasets come, and how one row of each becomes prompt / chosen / rejected; pure functions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Messages = list[tuple[str, str]]


@dataclass(frozen=True)
class Example:
    """One prompt with a chosen and perhaps a rejected answer; `turns`: the prompt for a chat template, as JSON."""

    prompt: str
    chosen: str
    rejected: str | None
    subset: str | None = None
    turns: str | None = None


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
    """Templates of prompt and answer, a pattern removed from answers, and whether a chat template follows."""

    prompt: str | None
    answer: str | None
    remove: str | None
    chat: bool = False

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
        text = (self.answer or "{answer}").format(answer=answer)
        return text.strip() if self.chat else text

    def turns(self, prompt: str, messages: Messages | None = None) -> str | None:
        """The turns before the answer as JSON, where a chat template will write them.

        Args:
            prompt: the user's only turn, where there are no messages.
            messages: (role, text) of each turn.
        """
        if not self.chat:
            return None
        turns = [("user", prompt)] if messages is None else messages
        return json.dumps([{"role": role, "content": text.strip()} for role, text in turns], ensure_ascii=False)


def checked(example: Example) -> Example:
    """The example, if it can be used.

    Raises:
        BadRow: the prompt is empty, or both answers are the same.
    """
    if not example.prompt.strip():
        raise BadRow("empty prompt")
    if example.chosen == example.rejected:
        raise BadRow("identical pair")
    return example


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadRow("wrong type")
    return value


def as_number(value: Any) -> float:
    """A number, also where it is written as text.

    Raises:
        BadRow: it is no number.
    """
    try:
        return float(value)
    except (TypeError, ValueError):
        raise BadRow("wrong type") from None


def _subset(fields: Row) -> str | None:
    return str(fields["subset"]) if "subset" in fields else None


def _pairs(fields: Row, formats: Formats) -> Example:
    prompt = formats.format_prompt("{prompt}", prompt=_text(fields["prompt"]))
    chosen = formats.format_answer(_text(fields["chosen"]))
    rejected = formats.format_answer(_text(fields["rejected"])) if "rejected" in fields else None
    return Example(prompt, chosen, rejected, _subset(fields), formats.turns(prompt))


def _dialogues(fields: Row, formats: Formats) -> Example:
    chosen_prompt, chosen = _last_turn(_text(fields["chosen"]))
    rejected_prompt, rejected = _last_turn(_text(fields["rejected"]))
    if chosen_prompt != rejected_prompt:
        raise BadRow("prompt differs")
    prompt = formats.format_prompt("{prompt}", prompt=chosen_prompt)
    turns = formats.turns(prompt, _marked_turns(prompt)) if formats.chat else None
    return Example(prompt, formats.format_answer(chosen), formats.format_answer(rejected), _subset(fields), turns)


def _marked_turns(dialogue: str) -> Messages:
    """The turns before the answer; chat templates want users and assistants by turns."""
    first, *parts, _ = re.split(r"\n\n(Human|Assistant):", dialogue)
    names, texts = parts[0::2], parts[1::2]  # the last mark is the answer's
    if first.strip() or names != ["Human", "Assistant"] * (len(names) // 2):
        raise BadRow("roles do not alternate")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [(roles[name], text) for name, text in zip(names, texts, strict=False)]


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
    # Templates end without a space; the answer brings it, as a tokenizer sees words with their leading space.
    answer = formats.format_answer(_text(fields["output"]))
    if not formats.answer and not formats.chat:
        answer = " " + answer.lstrip()
    return Example(prompt, answer, None, _subset(fields), formats.turns(prompt))


def _messages(fields: Row, formats: Formats) -> Example:
    prompt, chosen = _turns(fields["messages"])
    rejected = None
    if "rejected" in fields:
        rejected_prompt, rejected = _turns(fields["rejected"])
        if rejected_prompt != prompt:
            raise BadRow("prompt differs")
        rejected = formats.format_answer(rejected)
    prompt = formats.format_prompt("{prompt}", prompt=prompt)
    messages = [(message["role"], message["content"]) for message in fields["messages"][:-1]]
    turns = formats.turns(prompt, messages)
    return Example(prompt, formats.format_answer(chosen), rejected, _subset(fields), turns)


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
    first, second = as_number(fields.get("score_0", 0.5)), as_number(fields["score_1"])
    if first == second:
        raise BadRow("tie")
    answers = [formats.format_answer(_text(fields[role])) for role in ("answer_0", "answer_1")]
    chosen, rejected = answers if first > second else reversed(answers)
    prompt = formats.format_prompt("{prompt}", prompt=_text(fields["prompt"]))
    return Example(prompt, chosen, rejected, _subset(fields), formats.turns(prompt))


def _ratings(fields: Row, formats: Formats) -> Example:
    """One rated answer; `rejected` is filled in when the answers of a prompt are paired."""
    prompt = formats.format_prompt("{prompt}", prompt=_text(fields["prompt"]))
    return Example(prompt, formats.format_answer(_text(fields["answer"])), None, _subset(fields), formats.turns(prompt))


SHAPES = {
    "pairs": Shape(
        {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", "subset": "subset"},
        frozenset({"rejected", "subset"}),
        _pairs,
    ),
    "dialogues": Shape(
        {"chosen": "chosen", "rejected": "rejected", "subset": "subset"}, frozenset({"subset"}), _dialogues
    ),
    "instructions": Shape(
        {"instruction": "instruction", "input": "input", "output": "output", "subset": "subset"},
        frozenset({"input", "subset"}),
        _instructions,
    ),
    "messages": Shape(
        {"messages": "messages", "rejected": "rejected", "subset": "subset"},
        frozenset({"rejected", "subset"}),
        _messages,
    ),
    "ratings": Shape(
        {"prompt": "prompt", "answer": "answer", "rating": "rating", "subset": "subset"},
        frozenset({"subset"}),
        _ratings,
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
