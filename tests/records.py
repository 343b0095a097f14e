"""Whether the content of a file is what its type says; no type checker sees what other programs and versions wrote."""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict


def problems(value: Any, kind: Any, place: str = "") -> list[str]:
    """Where a value is not of a type; empty where it is."""
    return list(_problems(value, kind, place))


def _problems(value: Any, kind: Any, place: str) -> Iterator[str]:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or kind is object:
        return
    if is_typeddict(kind):
        yield from _of_typed_dict(value, kind, place)
    elif origin in (Union, UnionType):
        found = [list(_problems(value, option, place)) for option in arguments]
        if all(found):
            yield min(found, key=len)[0]
    elif origin is Literal:
        if value not in arguments:
            yield f"{place}: {value!r} is none of {arguments}"
    elif origin is list and isinstance(value, list):
        for number, item in enumerate(value):
            yield from _problems(item, arguments[0], f"{place}[{number}]")
    elif origin is dict and isinstance(value, dict):
        for key, item in value.items():
            yield from _problems(key, arguments[0], f"{place} key {key!r}")
            yield from _problems(item, arguments[1], f"{place}[{key!r}]")
    elif not _is(value, NoneType if kind is None else origin or kind):
        yield f"{place}: {value!r} is no {kind}"


def _of_typed_dict(value: Any, kind: Any, place: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{place}: {value!r} is no object"
        return
    hints, marked = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    # Python 3.11 does not see `NotRequired` in the key set of a module whose annotations are texts.
    required = {key for key in kind.__required_keys__ if get_origin(marked[key]) is not NotRequired}
    for key in sorted(required - value.keys()):
        yield f"{place}: has no {key!r}"
    for key, item in value.items():
        if key not in hints:
            yield f"{place}: {key!r} is not known"
        else:
            yield from _problems(item, hints[key], f"{place}[{key!r}]")


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
