"""What an evaluation has found is kept, and computed once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rlhf.evaluation.found import NUMBERS, Found

FOUND = [0.1, -2.5, 1e-17, 3.0]


def no_stop() -> None:
    """Nobody asks for one."""


def test_a_pass_that_is_through_is_known_to_the_next_attempt(tmp_path: Path, group: None) -> None:
    first = Found(tmp_path, no_stop)
    assert first.whole("scores", NUMBERS) is None
    first.finish("scores", FOUND, NUMBERS)
    assert Found(tmp_path, no_stop).whole("scores", NUMBERS) == FOUND
    assert Found(tmp_path, no_stop).whole("losses", NUMBERS) is None


def test_micro_batches_of_an_attempt_that_was_stopped_are_computed_once(tmp_path: Path, group: None) -> None:
    computed: list[list[int]] = []

    def compute(rows: np.ndarray) -> Sequence[float]:
        computed.append(rows.tolist())
        return [FOUND[row] for row in rows]

    class Stopped(Exception):
        pass

    def stop_before_the_third() -> None:
        if len(computed) == 2:
            raise Stopped

    attempt = Found(tmp_path, stop_before_the_third).remember("scores", NUMBERS)(compute)
    batches = [np.array([2]), np.array([0, 3]), np.array([1])]
    with pytest.raises(Stopped):
        for batch in batches:
            attempt(batch)
    again = Found(tmp_path, no_stop).remember("scores", NUMBERS)(compute)
    assert [list(again(batch)) for batch in batches] == [[FOUND[2]], [FOUND[0], FOUND[3]], [FOUND[1]]]
    assert computed == [[2], [0, 3], [1]]
