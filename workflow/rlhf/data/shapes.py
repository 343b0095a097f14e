"""From the shapes in which datasets come to prompt / chosen / rejected; pure functions of one row, or of all rows."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rlhf.errors import UserError

Row = dict[str, Any]
MISSING = object()


@dataclass(frozen=True)
class Example:
    """One prompt with a chosen and perhaps a rejected answer."""

    prompt: str
    chosen: str
    rejected: str | None
    subset: str | None = None


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


def examples(rows: Iterable[Row], settings: dict[str, Any], place: str) -> Iterator[tuple[int, Example | str]]:
    """Read rows of the configured shape.

    Args:
        rows: source rows.
        settings: dataset settings with the mapping filled in (`rlhf.data.mappings.with_mapping`).
        place: configuration path of the dataset, for messages.

    Yields:
        The row's number in the source, and an example or the reason why there is none.

    Raises:
        UserError: a role is unknown, or its column is in no row.
    """
    shape = SHAPES[settings["shape"]]
    columns = _columns(shape, settings, place)
    formats = Formats(settings["prompt_format"], settings["answer_format"], settings["remove"])
    _require_formats(settings, place)
    seen: set[str] = set()
    available: dict[str, None] = {}
    fields_of_rows = []
    count = 0
    for count, row in enumerate(rows, start=1):
        if isinstance(row, dict):
            available |= dict.fromkeys(row)
        fields = {role: _lookup(row, path) for role, path in columns.items()}
        seen |= {role for role, value in fields.items() if value is not MISSING}
        if settings["shape"] == "ratings":
            fields_of_rows.append((count - 1, row, fields))
        else:
            yield count - 1, _read(shape, row, fields, formats)
    if count:
        _require_columns(shape, columns, seen, list(available), place)
    if fields_of_rows:
        yield from _rated(fields_of_rows, formats)


def _read(shape: Shape, row: Any, fields: Row, formats: Formats) -> Example | str:
    try:
        if not isinstance(row, dict):
            raise BadRow("wrong type")
        present = {role: value for role, value in fields.items() if value is not MISSING and value is not None}
        if set(shape.columns) - shape.optional - set(present):
            raise BadRow("missing field")
        return _checked(shape.read(present, formats))
    except BadRow as reason:
        return str(reason)


def _checked(example: Example) -> Example:
    if not example.prompt.strip():
        raise BadRow("empty prompt")
    if example.chosen == example.rejected:
        raise BadRow("identical pair")
    return example


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadRow("wrong type")
    return value


def _number(value: Any) -> float:
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
    return Example(prompt, chosen, rejected, _subset(fields))


def _dialogues(fields: Row, formats: Formats) -> Example:
    chosen_prompt, chosen = _last_turn(_text(fields["chosen"]))
    rejected_prompt, rejected = _last_turn(_text(fields["rejected"]))
    if chosen_prompt != rejected_prompt:
        raise BadRow("prompt differs")
    prompt = formats.format_prompt("{prompt}", prompt=chosen_prompt)
    return Example(prompt, formats.format_answer(chosen), formats.format_answer(rejected), _subset(fields))


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
    return Example(prompt, answer if formats.answer else " " + answer.lstrip(), None, _subset(fields))


def _messages(fields: Row, formats: Formats) -> Example:
    prompt, chosen = _turns(fields["messages"])
    rejected = None
    if "rejected" in fields:
        rejected_prompt, rejected = _turns(fields["rejected"])
        if rejected_prompt != prompt:
            raise BadRow("prompt differs")
        rejected = formats.format_answer(rejected)
    prompt = formats.format_prompt("{prompt}", prompt=prompt)
    return Example(prompt, formats.format_answer(chosen), rejected, _subset(fields))


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
    first, second = _number(fields.get("score_0", 0.5)), _number(fields["score_1"])
    if first == second:
        raise BadRow("tie")
    answers = [formats.format_answer(_text(fields[role])) for role in ("answer_0", "answer_1")]
    chosen, rejected = answers if first > second else reversed(answers)
    prompt = formats.format_prompt("{prompt}", prompt=_text(fields["prompt"]))
    return Example(prompt, chosen, rejected, _subset(fields))


def _ratings(fields: Row, formats: Formats) -> Example:
    """One rated answer; `rejected` is filled in when the answers of a prompt are paired."""
    prompt = formats.format_prompt("{prompt}", prompt=_text(fields["prompt"]))
    return Example(prompt, formats.format_answer(_text(fields["answer"])), None, _subset(fields))


def _rated(rows: list[tuple[int, Any, Row]], formats: Formats) -> Iterator[tuple[int, Example | str]]:
    """Pair the answers of each prompt: best with worst, second with second worst, and so on."""
    groups: dict[str, list[tuple[float, int, Example]]] = defaultdict(list)
    for number, row, fields in rows:
        example = _read(SHAPES["ratings"], row, fields, formats)
        if isinstance(example, str):
            yield number, example
            continue
        try:
            groups[example.prompt].append((_number(fields["rating"]), number, example))
        except BadRow as reason:
            yield number, str(reason)
    for answers in groups.values():
        answers.sort(key=lambda answer: (-answer[0], answer[1]))
        for best, worst in zip(answers[: len(answers) // 2], reversed(answers), strict=False):
            yield best[1], _paired(best, worst)
        if len(answers) % 2:
            yield answers[len(answers) // 2][1], "no partner"


def _paired(best: tuple[float, int, Example], worst: tuple[float, int, Example]) -> Example | str:
    if best[0] == worst[0]:
        return "tie"
    example = Example(best[2].prompt, best[2].chosen, worst[2].chosen, best[2].subset)
    return "identical pair" if example.chosen == example.rejected else example


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


def _columns(shape: Shape, settings: dict[str, Any], place: str) -> dict[str, str]:
    unknown = set(settings["columns"]) - set(shape.columns)
    if unknown:
        roles = ", ".join(shape.columns)
        raise UserError(
            f"{place}.columns: {', '.join(sorted(unknown))}: shape {settings['shape']} has the roles {roles}"
        )
    return shape.columns | settings["columns"]


def _require_formats(settings: dict[str, Any], place: str) -> None:
    prompt_fields = ("instruction", "input") if settings["shape"] == "instructions" else ("prompt",)
    for key, fields in (("prompt_format", prompt_fields), ("answer_format", ("answer",))):
        try:
            (settings[key] or "").format(**dict.fromkeys(fields, ""))
        except (KeyError, IndexError, ValueError) as error:
            known = ", ".join(f"{{{field}}}" for field in fields)
            raise UserError(f"{place}.{key}: {settings[key]!r} is no template of {known} ({error})") from None


def _require_columns(shape: Shape, columns: dict[str, str], seen: set[str], available: list[str], place: str) -> None:
    """An optional role may be absent under its default name, but not where the configuration names its column."""
    for role, column in columns.items():
        if role in seen or (role in shape.optional and column == shape.columns[role]):
            continue
        near = difflib.get_close_matches(column.split(".")[0], available, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "map it to one of them"
        raise UserError(
            f"{place}.columns.{role}: no row has a column {column!r}; the columns are {', '.join(available)}; {hint}"
        )


def _lookup(row: Any, path: str) -> Any:
    """The value at a dotted path; a number is an index into a list. `MISSING` where there is none."""
    value = row
    if isinstance(row, dict) and path in row:
        return row[path]
    for part in path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value
