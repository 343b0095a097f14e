"""Validation of a configuration, and the points of its sweeps."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from rlhf.config.compatibility import PRESETS
from rlhf.config.schema import Configuration, ExperimentSettings
from rlhf.config.section import mistakes
from rlhf.errors import UserError


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


def dotted(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys that hold values, with those above them in front: `{a: {b: 1}}` has `a.b`."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def expand(name: str, experiment: dict[str, Any]) -> Iterator[tuple[dict[str, Any], ExperimentSettings]]:
    """Every point of the sweep with its settings, in the order of the keys' names and of each key's values."""
    sweep = dict(sorted((experiment.get("sweep") or {}).items()))
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
    found = mistakes(error)
    lines = [f"{'.'.join(filter(None, (prefix, key))) or 'configuration'}: {text}" for key, text in found]
    where = f" at sweep point {point}" if point else ""
    return f"the configuration has {len(lines)} mistake(s){where}:\n  " + "\n  ".join(lines)
