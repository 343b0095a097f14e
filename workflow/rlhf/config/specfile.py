"""Reading a stage's specification: its spec.yaml, and the `--execution` that its script is given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rlhf.config.section import mistakes
from rlhf.config.specification import SpecificationT
from rlhf.config.stages import Execution
from rlhf.config.yaml_text import read_yaml
from rlhf.errors import UserError

REMEDY = (
    "\nCorrect the key; a spec.yaml or memory_plan.json that nobody has edited is written anew by snakemake once it is "
    "removed"
)


def read_spec(kind: type[SpecificationT], path: Path, execution: dict[str, Any] | None = None) -> SpecificationT:
    """The specification of a stage of a known kind.

    Args:
        kind: class of the specification.
        path: spec.yaml.
        execution: how the stage runs, for a stage that trains or evaluates.

    Raises:
        UserError: the file cannot be read or is of another kind of stage, or a key of it or of `execution` is unknown,
            missing or has a wrong value; the message names file and key.
    """
    return _validated(kind, path, _content(path), execution)


def read_job(
    kinds: dict[str, type[SpecificationT]], path: Path, execution: dict[str, Any] | None = None
) -> SpecificationT:
    """The specification of a stage of one of several kinds (`TRAINING`, `JOBS`).

    Raises:
        UserError: as `read_spec`.
    """
    content = _content(path)
    kind = content.get("stage")
    if kind not in kinds:
        raise UserError(f"{path}: stage: {kind!r} is none of {', '.join(kinds)}")
    return _validated(kinds[kind], path, content, execution)


def read_execution(given: dict[str, Any]) -> Execution:
    """What `execution` says of any stage; keys of one kind only are left to the stage itself.

    Raises:
        UserError: a value is wrong; the message names the key.
    """
    try:
        return Execution.model_validate({key: value for key, value in given.items() if key in Execution.model_fields})
    except ValidationError as error:
        raise UserError("\n  ".join(f"--execution: {key}: {text}" for key, text in mistakes(error))) from None


def _content(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: no readable specification: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: no specification, but {type(content).__name__}")
    return content


def _validated(
    kind: type[SpecificationT], path: Path, content: dict[str, Any], execution: dict[str, Any] | None
) -> SpecificationT:
    """The specification. The file must give every key: a default may be another than that of the code which made it."""
    try:
        spec = kind.model_validate(content if execution is None else {**content, "execution": execution})
        lines = [f"{path}: {key}: missing" for key in _missing(content, spec.identity())]
    except ValidationError as error:
        lines = [f"{_source(key, path)}: {text}" for key, text in mistakes(error)]
    if lines:
        raise UserError("\n  ".join(lines) + REMEDY)
    return spec


def _missing(given: dict[str, Any], whole: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in whole.items():
        if key not in given:
            yield f"{prefix}{key}"
        elif isinstance(value, dict):
            yield from _missing(given[key], value, f"{prefix}{key}.")


def _source(key: str, path: Path) -> str:
    """A mistake's place: a key of the file, or of `--execution`."""
    part, _, rest = key.partition(".")
    return f"--execution: {rest}".rstrip(": ") if part == "execution" else f"{path}: {key}".rstrip(": ")
