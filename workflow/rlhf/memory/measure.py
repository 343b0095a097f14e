"""Measured peak memory of a process, by phase."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast

import psutil

from rlhf.memory.allocator import AllocatorPeaks, device_name
from rlhf.memory.out_of_memory import parse_out_of_memory
from rlhf.memory.process import cgroup_peak, high_water_mark, proportional_set
from rlhf.records.memory import MemoryFailure, MemoryReport, PhaseMemory, ProcessMemory

SCHEMA_VERSION = 2
SAMPLE_SECONDS = 0.02


@dataclass
class PhasePeak:
    """Memory of one phase of one process, in bytes; what was not measured is None.

    Args:
        name: of the phase.
        start_rss: resident memory when it was entered first.
        peak_rss: largest resident memory, sampled.
        end_rss: largest resident memory at its ends.
        end_pss: proportional set at that end.
        seconds: in all.
        peak_allocated: largest sum of tensors on the device.
        peak_active: the same, with freed blocks that a stream still uses.
        peak_reserved: largest sum of what the allocator held.
        peak_inactive_split: largest sum of unused pieces of blocks in use: fragmentation.
        peak_device: what the driver counts on the device.
        alloc_retries: how often the cache had to be emptied for an allocation.
        ooms: how often even that was not enough.
    """

    name: str
    start_rss: int
    peak_rss: int
    end_rss: int = 0
    end_pss: int | None = None
    seconds: float = 0.0
    peak_allocated: int | None = None
    peak_active: int | None = None
    peak_reserved: int | None = None
    peak_inactive_split: int | None = None
    peak_device: int | None = None
    alloc_retries: int | None = None
    ooms: int | None = None

    def add_device(self, figures: dict[str, int]) -> None:
        """Add what the allocator showed when the phase ran once more: the largest peak counts, events are summed."""
        for key, value in figures.items():
            before = getattr(self, key) or 0
            setattr(self, key, max(before, value) if key.startswith("peak_") else before + value)

    def record(self) -> PhaseMemory:
        """The entry of memory.json."""
        return cast(PhaseMemory, {key: value for key, value in asdict(self).items() if value is not None})


class MemoryMonitor:
    """Follows the resident set of this process in a thread, and the allocator of its device.

    A phase entered several times (generation in each PPO iteration) keeps its largest peak and its total time.

    Args:
        rank: rank of this process, for the report.
        cuda: `torch.cuda` where the process has a device; None on the CPU.
    """

    def __init__(self, rank: int = 0, cuda: Any | None = None) -> None:
        self._rank = rank
        self._process = psutil.Process()
        self._allocator = AllocatorPeaks(cuda) if cuda is not None else None
        self._device = device_name(cuda) if cuda is not None else None
        self._phases: dict[str, PhasePeak] = {}
        self._current: PhasePeak | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="memory-monitor", daemon=True)
        self._thread.start()
        self.failed_phase: str | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Attribute what happens in the block to a phase; phases do not nest."""
        rss = self._process.memory_info().rss
        with self._lock:
            peak = self._current = self._phases.setdefault(name, PhasePeak(name, rss, rss))
        if self._allocator:
            self._allocator.begin()
        start = time.monotonic()
        try:
            yield
        except BaseException:
            self.failed_phase = name
            raise
        finally:
            rss = self._sample()
            with self._lock:
                self._current = None
            peak.seconds += time.monotonic() - start
            if self._allocator:
                peak.add_device(self._allocator.end())
            if rss > peak.end_rss:  # not each time: it takes long for a large process
                peak.end_rss, peak.end_pss = rss, proportional_set()

    def stop(self) -> ProcessMemory:
        """End the measurement; returns this process's entry of memory.json. Stopping again changes nothing."""
        self._stop.set()
        self._thread.join()
        if self._allocator:
            self._allocator.release()
        peaks = [peak.peak_rss for peak in self._phases.values()]
        found: ProcessMemory = {
            "rank": self._rank,
            "host": socket.gethostname(),
            "phases": [peak.record() for peak in self._phases.values()],
            "peak_rss": max(peaks, default=self._process.memory_info().rss),
        }
        if self._device is not None:
            found["device"] = self._device
        high, group = high_water_mark(), cgroup_peak()
        if high is not None:
            found["high_water_rss"] = high
        if group is not None:
            found["cgroup_peak"] = group
        return found

    def _follow(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> int:
        with self._lock:
            rss: int = self._process.memory_info().rss
            if self._current is not None:
                self._current.peak_rss = max(self._current.peak_rss, rss)
        return rss


def memory_report(processes: list[ProcessMemory], device: str) -> MemoryReport:
    """Content of memory.json from the entries of all processes."""
    return {
        "schema_version": SCHEMA_VERSION,
        "unit": "bytes",
        "device": device,
        "status": "ok",
        "processes": processes,
        "peak_rss": max(process["peak_rss"] for process in processes),
    }


def failure_report(process: ProcessMemory, device: str, cause: str, phase: str | None, message: str) -> MemoryReport:
    """Content of memory.json where a stage ran out of memory. Only the process that did is in it: the others hang.

    Args:
        process: its entry.
        device: `cpu` or `cuda`.
        cause: `out_of_device_memory` or `out_of_host_memory`.
        phase: in which it happened; None between phases.
        message: of the exception.
    """
    failure: MemoryFailure = {**cast(MemoryFailure, parse_out_of_memory(message)), "cause": cause, "message": message}
    if phase is not None:
        failure["phase"] = phase
    return {**memory_report([process], device), "status": "oom", "failure": failure}
