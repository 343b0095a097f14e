"""Ranks as threads of one process: the races of many processes in seconds, with every delay that a test wants."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from rlhf.training import checkpoints, distributed, random_state, weights

SECONDS = 20.0  # after which a rank that waits for another is taken to wait for ever


class Ranks:
    """Runs a function as several ranks at once; collectives of `rlhf.training.distributed` work between them.

    Args:
        monkeypatch: puts the functions of the module, and of those that import them, in their place.
        number: of ranks.
        lag: seconds by which what a rank does beside its work begins later than that of the rank before.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, lag: float = 0.0) -> None:
        self._number, self._lag = number, lag
        self._mine = threading.local()
        self._meeting = threading.Barrier(number, timeout=SECONDS)
        self._values: list[Any] = [None] * number
        self.before_collective: Callable[[], None] = lambda: None
        functions = {"rank": self.rank, "world_size": lambda: number}
        functions |= {"all_gather": self._all_gather, "barrier": self._barrier}
        for module in (distributed, checkpoints, random_state, weights):
            for name, function in functions.items():
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, function)
        store = dist.HashStore()
        monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
        monkeypatch.setattr(checkpoints, "threading", SimpleNamespace(Thread=self._beside))

    def rank(self) -> int:
        """Of the thread that asks."""
        return self._mine.rank

    def run(self, function: Callable[[int], Any]) -> list[Any]:
        """What the function returns, or the exception it ends with, on each rank."""

        def as_rank(rank: int) -> Any:
            self._mine.rank = rank
            try:
                return function(rank)
            except BaseException as error:
                return error

        with ThreadPoolExecutor(self._number) as pool:
            return list(pool.map(as_rank, range(self._number)))

    def _barrier(self) -> None:
        self.before_collective()
        self._meeting.wait()

    def _all_gather(self, value: Any) -> list[Any]:
        self.before_collective()
        self._values[self.rank()] = value
        self._meeting.wait()
        gathered = list(self._values)
        self._meeting.wait()
        return gathered

    def _beside(self, target: Callable[..., None], args: tuple[Any, ...], name: str) -> threading.Thread:
        """A thread that a rank starts; it has the number of the rank."""
        rank = self.rank()

        def as_rank() -> None:
            self._mine.rank = rank
            time.sleep(rank * self._lag)
            target(*args)

        return threading.Thread(target=as_rank, name=name)
