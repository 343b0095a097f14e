"""From the rows of a source to examples: columns are looked up, rows read, ratings grouped, bad rows given a reason."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from rlhf.data.example import BadRow, Example, Formats, Row, UnreadableRow, as_number, checked, in_order
from rlhf.data.mappings import RowFormat
from rlhf.data.shapes import SHAPES, Shape
from rlhf.errors import UserError

MISSING = object()


def examples(rows: Iterable[Row | UnreadableRow], form: RowFormat, place: str) -> Iterator[tuple[int, Example | str]]:
    """Read rows of the configured shape.

    Args:
        rows: source rows.
        form: how they are read.
        place: configuration path of the dataset, for messages.

    Yields:
        The row's number in the source, and an example or the reason why there is none.

    Raises:
        UserError: a role is unknown, or its column is in no row.
    """
    shape = SHAPES[form.shape]
    columns = _columns(shape, form, place)
    formats = Formats(form.prompt_format, form.answer_format, form.remove, form.turns)
    _require_formats(form, place)
    seen: set[str] = set()
    available: dict[str, None] = {}
    fields_of_rows = []
    count = 0
    for count, row in enumerate(rows, start=1):
        if isinstance(row, dict):
            available |= dict.fromkeys(key for key in row if isinstance(key, str))
        fields = {role: _lookup(row, path) for role, path in columns.items()}
        seen |= {role for role, value in fields.items() if value is not MISSING}
        if form.shape == "ratings":
            fields_of_rows.append((count - 1, row, fields))
        else:
            yield count - 1, _read(shape, row, fields, formats)
    if available:  # else no row can be read, which is counted
        _require_columns(shape, columns, seen, list(available), place)
    if fields_of_rows:
        yield from _rated(fields_of_rows, formats)


def _read(shape: Shape, row: Any, fields: Row, formats: Formats) -> Example | str:
    try:
        if isinstance(row, UnreadableRow):
            raise BadRow(row.reason)
        if not isinstance(row, dict):
            raise BadRow("wrong type")
        present = {role: value for role, value in fields.items() if value is not MISSING and value is not None}
        if set(shape.columns) - shape.optional - set(present) or ("group" in fields and "group" not in present):
            raise BadRow("missing field")
        example = checked(shape.read(present, formats))
        return replace(example, group=str(present["group"])) if "group" in present else example
    except BadRow as reason:
        return str(reason)


def _rated(rows: list[tuple[int, Any, Row]], formats: Formats) -> Iterator[tuple[int, Example | str]]:
    """One example per prompt, with all its answers in the order of their ratings."""
    groups: dict[str, dict[str, tuple[float, int, Example]]] = defaultdict(dict)
    for number, row, fields in rows:
        example = _read(SHAPES["ratings"], row, fields, formats)
        if isinstance(example, str):
            yield number, example
            continue
        try:
            rating = as_number(fields["rating"])
        except BadRow as reason:
            yield number, str(reason)
            continue
        if example.chosen in groups[example.prompt]:
            yield number, "repeated answer"
        else:
            groups[example.prompt][example.chosen] = (rating, number, example)
    for group in groups.values():
        yield _best_first(list(group.values()))


def _best_first(answers: list[tuple[float, int, Example]]) -> tuple[int, Example | str]:
    """The number of the best answer's row, and the rated answers of one prompt as an example."""
    _, number, best = max(answers, key=lambda answer: answer[0])
    if len(answers) == 1:
        return number, "no partner"
    texts, ratings = [example.chosen for _, _, example in answers], [rating for rating, _, _ in answers]
    try:
        example = in_order(best.prompt, texts, ratings, best.subset, rated=True)
        return number, replace(example, turns=best.turns)
    except BadRow as reason:
        return number, str(reason)


def _columns(shape: Shape, form: RowFormat, place: str) -> dict[str, str]:
    unknown = set(form.columns) - set(shape.columns) - {"group"}
    if unknown:
        roles = ", ".join((*shape.columns, "group"))
        raise UserError(f"{place}.columns: {', '.join(sorted(unknown))}: shape {form.shape} has the roles {roles}")
    return shape.columns | form.columns


def _require_formats(form: RowFormat, place: str) -> None:
    if form.turns and form.prompt_format and form.shape in ("messages", "dialogues"):
        raise UserError(f"{place}.prompt_format: the chat template formats the turns of {form.shape}; leave it out")
    prompt_fields = ("instruction", "input") if form.shape == "instructions" else ("prompt",)
    for key, template, fields in (
        ("prompt_format", form.prompt_format, prompt_fields),
        ("answer_format", form.answer_format, ("answer",)),
    ):
        try:
            (template or "").format(**dict.fromkeys(fields, ""))
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            known = ", ".join(f"{{{field}}}" for field in fields)
            raise UserError(f"{place}.{key}: {template!r} is no template of {known} ({error})") from None


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
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value
