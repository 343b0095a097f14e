"""Measured peak memory of a process, by phase."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import psutil

SAMPLE_SECONDS = 0.02


@dataclass
class PhasePeak:
    """Memory of one phase of one process, in bytes. Device figures exist on an accelerator only."""

    name: str
    start_rss: int
    peak_rss: int
    seconds: float = 0.0
    peak_allocated: int | None = None
    peak_reserved: int | None = None


class MemoryMonitor:
    """Follows the resident set of this process in a thread, and the allocator of its accelerator.

    A phase entered several times (generation in each PPO iteration) keeps its largest peak and its total time.

    Args:
        rank: rank of this process, for the report.
    """

    def __init__(self, rank: int = 0) -> None:
        self._rank = rank
        self._process = psutil.Process()
        self._phases: dict[str, PhasePeak] = {}
        self._current: PhasePeak | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="memory-monitor", daemon=True)
        self._thread.start()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Attribute what happens in the block to a phase; phases do not nest."""
        rss = self._process.memory_info().rss
        with self._lock:
            self._current = self._phases.setdefault(name, PhasePeak(name, rss, rss))
        cuda = _cuda()
        if cuda:
            cuda.reset_peak_memory_stats()
        start = time.monotonic()
        try:
            yield
        finally:
            self._sample()
            with self._lock:
                peak = self._phases[name]
                self._current = None
            peak.seconds += time.monotonic() - start
            if cuda:
                peak.peak_allocated = max(peak.peak_allocated or 0, cuda.max_memory_allocated())
                peak.peak_reserved = max(peak.peak_reserved or 0, cuda.max_memory_reserved())

    def stop(self) -> dict[str, Any]:
        """End the measurement; returns this process's entry of memory.json."""
        self._stop.set()
        self._thread.join()
        phases = [
            {key: value for key, value in asdict(peak).items() if value is not None} for peak in self._phases.values()
        ]
        return {
            "rank": self._rank,
            "host": socket.gethostname(),
            "phases": phases,
            "peak_rss": max((peak.peak_rss for peak in self._phases.values()), default=0),
        }

    def _follow(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        with self._lock:
            rss = self._process.memory_info().rss
            if self._current is not None:
                self._current.peak_rss = max(self._current.peak_rss, rss)


def memory_report(processes: list[dict[str, Any]], device: str) -> dict[str, Any]:
    """Content of memory.json from the entries of all processes."""
    return {
        "schema_version": 1,
        "unit": "bytes",
        "device": device,
        "processes": processes,
        "peak_rss": max(process["peak_rss"] for process in processes),
    }


def _cuda() -> Any | None:
    """torch.cuda where an accelerator is in use. torch is loaded by then, or there is nothing to measure."""
    import sys

    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None
