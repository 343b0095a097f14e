"""Validation of a configuration, and the points of its sweeps."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from rlhf.config.compatibility import PRESETS
from rlhf.config.schema import Configuration, ExperimentSettings
from rlhf.errors import UserError

SHOWN_CHARACTERS = 200
TYPE_NAMES = ("function-", "literal[")  # pydantic puts them among the keys where one of several types may stand


def parse(config: dict[str, Any]) -> Configuration:
    """Validate a configuration dictionary.

    Raises:
        UserError: listing every mistake with the path of its key.
    """
    try:
        return Configuration.model_validate(config)
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def deep_merge(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """`overlay` over `base`: dictionaries are merged, everything else is replaced. Neither is changed."""
    merged = copy.deepcopy(base)
    for key, value in overlay.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = deep_merge(merged[key], value) if both else copy.deepcopy(value)
    return merged


def expand(name: str, experiment: dict[str, Any]) -> Iterator[tuple[dict[str, Any], ExperimentSettings]]:
    """Every point of the sweep with its settings."""
    sweep = experiment.get("sweep") or {}
    for values in itertools.product(*sweep.values()):
        point = dict(zip(sweep, values, strict=True))
        overlay: dict[str, Any] = {}
        for key, value in point.items():
            overlay = deep_merge(overlay, _nested(key.split("."), value))
        try:
            yield point, ExperimentSettings.model_validate(_over_preset(deep_merge(experiment, overlay)))
        except ValidationError as error:
            raise UserError(_explain(error, prefix=f"experiments.{name}", point=point)) from None


def _over_preset(experiment: dict[str, Any]) -> dict[str, Any]:
    """The experiment over the values that its `compatibility` stands for: only what results is part of a stage's ID."""
    name = experiment.get("compatibility")
    return deep_merge(PRESETS.get(name, {}), experiment) if isinstance(name, str) else experiment


def _nested(keys: list[str], value: Any) -> dict[str, Any]:
    return {keys[0]: _nested(keys[1:], value) if len(keys) > 1 else value}


def _explain(error: ValidationError, prefix: str = "", point: dict[str, Any] | None = None) -> str:
    lines = []
    for item in error.errors():
        keys = (str(key) for key in item["loc"] if not str(key).startswith(TYPE_NAMES))
        place = ".".join(part for part in (prefix, *keys) if part) or "configuration"
        message = item["msg"].removeprefix("Value error, ")
        given = "" if isinstance(item["input"], dict) else f" (given: {_shown(item['input'])})"
        number = " (YAML reads 1e-5 as text: write 1.0e-5)" if _looks_like_exponent(item["input"]) else ""
        lines.append(f"{place}: {message}{given}{number}")
    where = f" at sweep point {point}" if point else ""
    return f"the configuration has {len(lines)} mistake(s){where}:\n  " + "\n  ".join(lines)


def _shown(value: Any) -> str:
    """A wrong value, cut where it is long, without the passwords that addresses and tokens of a hub are."""
    text = re.sub(r"://[^/\s]*@", "://***@", repr(value))
    text = re.sub(r"\b(hf|api_org)_[A-Za-z0-9]{16,}", r"\1_***", text)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def _looks_like_exponent(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value) is not None
