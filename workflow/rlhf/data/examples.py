"""From the rows of a source to examples: columns are looked up, rows read, ratings grouped, bad rows given a reason."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from rlhf.data.conversations import each_answer
from rlhf.data.example import BadRow, Example, Formats, Row, UnreadableRow, as_number, checked, in_order
from rlhf.data.labels import require_meaning, require_strengths
from rlhf.data.mappings import RowFormat
from rlhf.data.shapes import SHAPES, Shape
from rlhf.data.trees import Message, answered_questions, message_of
from rlhf.errors import UserError

MISSING = object()
NAMES = ("group", "subset")  # roles whose column may have another role too
LONGEST = 200  # characters of an exception's words
TRIED_ROWS = 20  # to see whether rows are of another shape


def examples(rows: Iterable[Row | UnreadableRow], form: RowFormat, place: str) -> Iterator[tuple[int, Example | str]]:
    """Read rows of the configured shape.

    Args:
        rows: source rows.
        form: how they are read.
        place: configuration path of the dataset, for messages.

    Yields:
        The row's number in the source, and an example or the reason why there is none. With `each_turn`, a row can give
        several examples, that of the first answer first.

    Raises:
        UserError: a key does not apply to the shape, a role's column is in no row, labels can be read in two ways, or
            no row can be read and the rows are of another shape.
    """
    require_applicable(form, place)
    first: list[Row | UnreadableRow] = []
    usable = False
    try:
        for number, result in _examples(_remembered(rows, first), form, place):
            usable = usable or isinstance(result, Example)
            yield number, result
    except _NoColumnError as error:
        raise UserError(f"{error}{_other_shape(first, form, '; or ', plain=True)}") from None
    other = "" if usable else _other_shape(first, form, "")
    if other:
        raise UserError(f"{place}.shape: no row can be read as {form.shape}; {other}")


class _NoColumnError(UserError):
    """A role's column is in no row."""


def _remembered(rows: Iterable[Row | UnreadableRow], first: list[Row | UnreadableRow]) -> Iterator[Row | UnreadableRow]:
    """The rows; the first ones are kept."""
    for row in rows:
        if len(first) < TRIED_ROWS:
            first.append(row)
        yield row


def _other_shape(rows: list[Row | UnreadableRow], form: RowFormat, lead: str, plain: bool = False) -> str:
    """What to write where the rows are of another shape: that by which most of them can be read; else nothing.

    With `plain`, that may be a shape by which nearly any text can be read, where the rows have its columns alone.
    """
    best, fewest = "", len(rows) // 2 + 1
    for name, shape in SHAPES.items():
        if shape.plain and not (plain and all(isinstance(row, dict) and row.keys() <= shape.columns for row in rows)):
            continue
        renamed = {"prompt": "messages"} if name == "messages" else {}
        columns = {renamed.get(role, role): column for role, column in form.columns.items()}
        columns = {role: column for role, column in columns.items() if role in shape.roles and role != column}
        try:
            results = [result for _, result in _examples(rows, RowFormat(name, columns, turns=form.turns), "")]
        except UserError:
            continue
        bad = sum(isinstance(result, str) for result in results)
        if bad < min(fewest, len(results)):
            named = (
                "" if not columns else f" with columns: {{{', '.join(f'{key}: {columns[key]}' for key in columns)}}}"
            )
            best, fewest = f"{lead}the rows look like those of another shape: write `shape: {name}`{named}", bad
    return best


def _examples(rows: Iterable[Row | UnreadableRow], form: RowFormat, place: str) -> Iterator[tuple[int, Example | str]]:
    shape = SHAPES[form.shape]
    columns = _columns(shape, form)
    formats = Formats(form.prompt_format, form.answer_format, form.remove, form.turns, form.replace)
    seen: set[str] = set()
    available: dict[str, None] = {}
    judged: dict[str, dict[Any, Any]] = {"label": {}, "preference": {}}
    fields_of_rows = []
    for number, row in enumerate(rows):
        if isinstance(row, dict):
            available |= dict.fromkeys(key for key in row if isinstance(key, str))
        fields = {role: _first_of(row, paths) for role, paths in columns.items()}
        seen |= {role for role, value in fields.items() if value is not MISSING}
        for role, values in judged.items():
            value = fields.get(role, MISSING)
            if isinstance(value, str | int | float) and not _scored(fields):
                values[type(value), value] = value  # 1 and true are equal as keys
        if form.shape in GATHERED:
            fields_of_rows.append((number, row, fields))
        else:
            yield from ((number, result) for result in _read(shape, row, fields, formats, form.each_turn))
    if available:  # else no row can be read, which is counted
        _require_columns(shape, columns, form, seen, list(available), place)
    require_meaning(judged["label"].values(), place)
    require_strengths(judged["preference"].values(), place)
    if fields_of_rows:
        yield from GATHERED[form.shape](fields_of_rows, formats)


def _scored(fields: Row) -> bool:
    return any(fields.get(role, MISSING) is not MISSING for role in ("score_0", "score_1"))


def _read(shape: Shape, row: Any, fields: Row, formats: Formats, each_turn: bool = False) -> list[Example] | list[str]:
    assert shape.read is not None  # else the shape is gathered
    try:
        present = _present(shape, row, fields)
        group = str(present["group"]) if "group" in present else None
        answered = each_answer(present) if each_turn else [present]
        return [checked(replace(shape.read(one, formats), group=group)) for one in answered]
    except BadRow as reason:
        return [str(reason)]
    except MemoryError:
        raise
    except Exception as error:  # a generator's values are of any type, and can fail in any way
        return [f"{type(error).__name__}: {' '.join(str(error).split())[:LONGEST]}"]


def _present(shape: Shape, row: Any, fields: Row) -> Row:
    """The fields that a row has, if it can be read.

    Raises:
        BadRow: it cannot be, or a field that it needs is missing.
    """
    if isinstance(row, UnreadableRow):
        raise BadRow(row.reason)
    if not isinstance(row, dict):
        raise BadRow("wrong type: row")
    present = {role: value for role, value in fields.items() if value is not MISSING and value is not None}
    missing = shape.missing(set(present))
    for groups in shape.instead:
        for group in groups:
            if present.keys() & set(group):  # a score without the other is a label only where there is no other
                missing += [role for role in group if role in shape.needs and fields.get(role, MISSING) is None]
                break
    missing += ["group"] if "group" in fields and "group" not in present else []
    if missing:
        raise BadRow(f"missing field: {', '.join(missing)}")
    return present


def _rated(rows: list[tuple[int, Any, Row]], formats: Formats) -> Iterator[tuple[int, Example | str]]:
    """One example per prompt, with all its answers in the order of their ratings."""
    groups: dict[str, dict[str, tuple[float, int, Example]]] = defaultdict(dict)
    for number, row, fields in rows:
        (example,) = _read(SHAPES["ratings"], row, fields, formats)
        if isinstance(example, str):
            yield number, example
            continue
        try:
            rating = as_number(fields["rating"], "rating")
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


def _of_trees(rows: list[tuple[int, Any, Row]], formats: Formats) -> Iterator[tuple[int, Example | str]]:
    """One example per question of a tree."""
    messages: dict[str, Message] = {}
    for number, row, fields in rows:
        try:
            message = message_of(number, _present(SHAPES["trees"], row, fields))
        except BadRow as reason:
            yield number, str(reason)
            continue
        if messages.setdefault(str(message.fields["id"]), message) is not message:
            yield number, "repeated identifier: id"
    yield from answered_questions(list(messages.values()), formats)


# Shapes of which an example has several rows -> how these become examples.
GATHERED = {"ratings": _rated, "trees": _of_trees}


def require_applicable(form: RowFormat, place: str) -> None:
    """Refuse what does not apply to the shape of the rows.

    Args:
        form: how they are read.
        place: configuration path of the dataset, for messages.

    Raises:
        UserError: a role is unknown, or takes the place of another one that is configured too, or is left out and
            needed, a format is no template or has no effect, or the shape has no turns.
    """
    shape = SHAPES[form.shape]
    unknown = set(form.columns) - set(shape.roles) - {"group"}
    if unknown:
        roles = ", ".join((*shape.roles, "group"))
        raise UserError(f"{place}.columns: {', '.join(sorted(unknown))}: shape {form.shape} has the roles {roles}")
    without = [role for role in shape.roles if form.columns.get(role) == "" and not shape.roles[role].optional]
    if without:
        raise UserError(f"{place}.columns.{without[0]}: shape {form.shape} needs it; name its column")
    for groups in shape.instead:
        configured = [[role for role in group if form.columns.get(role)] for group in groups]
        both = [roles[0] for roles in configured if roles]
        if len(both) > 1:
            raise UserError(f"{place}.columns: {' and '.join(both)} take the place of each other; leave one out")
    if form.each_turn and form.shape != "messages":
        raise UserError(f"{place}.assistant_turns: shape {form.shape} has one answer, the last; leave it out")
    _require_formats(form, place)


def _columns(shape: Shape, form: RowFormat) -> dict[str, tuple[str, ...]]:
    """Where to look for the value of each role, in this order."""
    unused = {role for role, column in form.columns.items() if not column}
    unused |= {other for role in form.columns.keys() - unused for other in shape.replacing(role)}
    taken = {column for role, column in form.columns.items() if role not in NAMES}
    columns = {
        name: tuple(column for column in (name, *role.also) if not (role.optional and column in taken))
        for name, role in shape.roles.items()
    }
    columns |= {role: (column,) for role, column in form.columns.items()}
    return {role: paths for role, paths in columns.items() if role not in unused}


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


def _require_columns(
    shape: Shape,
    columns: dict[str, tuple[str, ...]],
    form: RowFormat,
    seen: set[str],
    available: list[str],
    place: str,
) -> None:
    """An optional role may be absent under its default name, but not where the configuration names its column."""
    needed = shape.needs[:1] if shape.needs and not seen & set(shape.needs) else ()
    for role, paths in columns.items():
        optional = role in shape.roles and shape.roles[role].optional and role not in needed
        if role in seen or (optional and form.columns.get(role, role) == role) or seen & set(shape.replacing(role)):
            continue
        near = difflib.get_close_matches(paths[0].split(".")[0], available, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "map it to one of them"
        raise _NoColumnError(
            f"{place}.columns.{role}: no row has a column {paths[0]!r}; the columns are {', '.join(available)}; {hint}"
        )


def _first_of(row: Any, paths: Iterable[str]) -> Any:
    """The value at the first path at which there is one."""
    return next((value for value in (_lookup(row, path) for path in paths) if value is not MISSING), MISSING)


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
