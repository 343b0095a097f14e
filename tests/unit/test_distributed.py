"""Processes that wait for one another, as threads."""

from __future__ import annotations

import time

import pytest

from rlhf.errors import PeerFailed, UserError
from rlhf.training.distributed import together, wait_for_all
from tests.unit.ranks import Ranks


@pytest.mark.parametrize("slow", [0, 2])
def test_no_collective_begins_before_the_slowest_has_finished(monkeypatch: pytest.MonkeyPatch, slow: int) -> None:
    """Else it would be waited for in one, which has a time limit."""
    ranks, events = Ranks(monkeypatch, 3), []
    ranks.before_collective = lambda: events.append("collective")

    def work(rank: int) -> None:
        for _ in range(3):
            with together():
                time.sleep(0.1 if rank == slow else 0)
                events.append("finished")
            wait_for_all()

    assert ranks.run(work) == [None] * 3
    per_round = ["finished"] * 3 + ["collective"] * 9  # a barrier, the failures, and a barrier of the second wait
    assert events == per_round * 3


def test_a_failure_of_one_is_one_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(monkeypatch, 3)

    def work(rank: int) -> None:
        with together():
            if rank == 1:
                raise UserError("x.yaml: wrong; mend it")

    first, second, third = ranks.run(work)
    assert isinstance(second, UserError)
    for other in (first, third):
        assert isinstance(other, PeerFailed)
        assert str(other) == "process 1 has failed: x.yaml: wrong; mend it"
