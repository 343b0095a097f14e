"""How near a stage must come to its oracle.

Both compute the same sums, one in float32 and one in float64, so what differs is rounding: at most a third of these
limits where it was measured. What is no sum in float32 (rates, counts, lengths) must be equal but for the last digits
of a float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

RELATIVE, ABSOLUTE = 3e-5, 5e-6
WEIGHTS = 1e-5  # absolute: weights are of the size of 0.2, and a step changes them by up to 4e-3
COUNTS = {"tokens", "step", "epoch", "pairs", "rows", "prompts", "rows_too_long", "rows_of_equal_answers"}
EXACT = COUNTS | {"learning_rate", "critic_learning_rate", "response_length", "eos_share", "gold"}


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Names of numbers that are too far apart, or on one side only -> (found, expected)."""
    return {
        name: (found.get(name), expected.get(name))
        for name in sorted(found.keys() | expected.keys())
        if not (name in found and name in expected and near(name, found[name], expected[name]))
    }


def near(name: str, found: float, expected: float) -> bool:
    """Whether a number is the expected one."""
    if name in EXACT:
        return abs(found - expected) <= 1e-9 * abs(expected)
    return bool(abs(found - expected) <= RELATIVE * abs(expected) + ABSOLUTE)


def weight_differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, float]:
    """Names of weights that are too far apart -> by how much; both must hold the same weights."""
    assert found.keys() == expected.keys()
    largest = {name: float(np.abs(np.asarray(found[name]) - np.asarray(expected[name])).max()) for name in found}
    return {name: distance for name, distance in largest.items() if not distance <= WEIGHTS}
