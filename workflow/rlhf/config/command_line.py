"""Values of `--config` on the command line: Snakemake hands all that is nested over as text."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import ValidationError

from rlhf.config.schema import Configuration
from rlhf.config.section import EXPONENT, TYPE_NAMES

Path = tuple[str | int, ...]


def with_types(config: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The configuration with what the command line gave as YAML would read it: numbers, true, false and null.

    Text stays text where the schema wants text, such as a revision of digits alone.

    Args:
        config: the whole configuration; not changed.
        given: what `--config` gave, which is a part of it.
    """
    texts = dict(_texts(given))
    if not texts:
        return config
    typed = copy.deepcopy(config)
    for path, text in texts.items():
        _put(typed, path, _scalar(text), instead_of=text)
    for path in _wanted_as_text(typed):
        for start in range(len(path), 0, -1):
            if path[:start] in texts:
                text = texts[path[:start]]
                _put(typed, path[:start], text, instead_of=_scalar(text))
    return typed


def _texts(value: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """All texts in dictionaries and lists, with their places."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(item, (*path, key))


def _scalar(text: str) -> Any:
    """A number, a truth value or nothing, where the text is one in YAML (or a number like 1e-5); else the text."""
    if EXPONENT.fullmatch(text):
        return float(text)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, bool | int | float) or text in ("", "~", "null") else text


def _put(config: Any, path: Path, value: Any, instead_of: Any) -> None:
    """Replace a value, unless another one has taken its place since."""
    *parents, last = path
    try:
        for key in parents:
            config = config[key]
        if config[last] == instead_of:
            config[last] = value
    except (KeyError, IndexError, TypeError):
        pass


def _wanted_as_text(config: dict[str, Any]) -> list[Path]:
    """Places where the schema wants text and finds something else."""
    try:
        Configuration.model_validate(config)
    except ValidationError as error:
        return [
            tuple(key for key in item["loc"] if not str(key).startswith(TYPE_NAMES))
            for item in error.errors()
            if item["type"] == "string_type"
        ]
    return []
