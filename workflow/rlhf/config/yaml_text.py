"""YAML in which a key stands once: YAML readers keep the last of equal keys, and say nothing of the others."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from rlhf.errors import UserError

MERGE = "tag:yaml.org,2002:merge"  # `<<`, which may stand several times: all are merged
CONDITION = "?"  # begins a key of YTE, a template language that Snakemake reads, which is evaluated before keys are


def read_yaml(text: str, name: str) -> Any:
    """The content of YAML or JSON text.

    Args:
        text: one document.
        name: where it is from, for messages.

    Raises:
        UserError: a key stands twice in one mapping; the message names it, and both lines.
        yaml.YAMLError: it is no YAML.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        repeated = [f"{name}: {line}" for line in _repeated(node, loader, "", set())]
        if repeated:
            raise UserError("\n  ".join(repeated))
        return loader.construct_document(node)
    finally:
        loader.dispose()


def require_distinct_keys(files: Iterable[str | Path]) -> None:
    """Refuse configuration files in which a key stands twice in one place; one that is no YAML is left to Snakemake.

    Raises:
        UserError: the message names file, key and lines.
    """
    for file in files:
        try:
            text = Path(file).read_text(encoding="utf-8")
            read_yaml(text.replace("\t", " ") if _is_json(text) else text, str(file))
        except (OSError, ValueError, yaml.YAMLError):
            continue


def _is_json(text: str) -> bool:
    """Whether Snakemake reads it as JSON, indented by tabs at times, which YAML refuses; its texts have none."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _repeated(node: yaml.Node, loader: yaml.SafeLoader, place: str, seen: set[int]) -> list[str]:
    """What is said of each key that is repeated in a node or below it; `seen` are nodes that aliases lead to again."""
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return []
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        return [
            text
            for index, item in enumerate(node.value)
            for text in _repeated(item, loader, f"{place}.{index}".lstrip("."), seen)
        ]
    found, first = [], {}
    for key_node, value in node.value:
        if key_node.tag == MERGE or not isinstance(key_node, yaml.ScalarNode):
            continue
        key = loader.construct_object(key_node)
        path = f"{place}.{key}".lstrip(".")
        line = key_node.start_mark.line + 1
        if key not in first:
            first[key] = line
        elif not str(key).startswith(CONDITION):
            found.append(
                f"line {line}: {path!r} stands there again, after line {first[key]}; of two equal keys YAML keeps "
                "the last alone. Put them together, or rename one"
            )
        found += _repeated(value, loader, path, seen)
    return found
