"""Peaks of the CUDA allocator of this process, phase by phase."""

from __future__ import annotations

from typing import Any

PEAKS = {
    "peak_allocated": "allocated_bytes.all.peak",
    "peak_active": "active_bytes.all.peak",
    "peak_reserved": "reserved_bytes.all.peak",
    "peak_inactive_split": "inactive_split_bytes.all.peak",  # reserved, cut into pieces and not in use: fragmentation
}
EVENTS = {"alloc_retries": "num_alloc_retries", "ooms": "num_ooms"}


def device_name(cuda: Any) -> str:
    """The device of this thread: its model, and the UUID by which nvidia-smi knows it.

    Args:
        cuda: `torch.cuda`, or what stands in for it in a test.
    """
    found = cuda.get_device_properties(cuda.current_device())
    return f"{found.name} GPU-{found.uuid}"


class AllocatorPeaks:
    """Follows the allocator of one device over phases, whoever resets its counters.

    DeepSpeed resets them while it makes engines (`see_memory_usage(force=True)`, `empty_cache`), and what had been the
    peak until then would be lost. All resets of torch go through one function, so its counters are read before it runs.

    Args:
        cuda: `torch.cuda`, or what stands in for it in a test.
    """

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self._device: int = cuda.current_device()  # that of the thread; others start with device 0
        self._reset = cuda.memory.reset_peak_memory_stats
        self._peaks: dict[str, int] = {}
        self._before: dict[str, int] = {}
        self._guard = self._note_and_reset
        self._install(self._guard)

    def begin(self) -> None:
        """Start to follow a phase: what was the peak before it is forgotten."""
        self._reset(self._device)
        stats = self._cuda.memory_stats(self._device)
        self._before = {name: stats.get(key, 0) for name, key in EVENTS.items()}
        self._peaks = {"peak_device": self._used()}

    def end(self) -> dict[str, int]:
        """End the phase; returns its peaks in bytes, and how often the allocator emptied its cache or gave up.

        `peak_device` is what the driver counts, other processes on the device included: the largest reserve of the
        phase, and what lies outside the allocator (context, NCCL) at its end.
        """
        self._note()
        stats = self._cuda.memory_stats(self._device)
        found = dict(self._peaks)
        outside = self._used() - stats.get("reserved_bytes.all.current", 0)
        found["peak_device"] = max(found["peak_device"], found.get("peak_reserved", 0) + outside)
        return found | {name: stats[key] - self._before[name] for name, key in EVENTS.items() if key in stats}

    def release(self) -> None:
        """Stop following: torch resets its counters by its own function again."""
        if self._cuda.memory.reset_peak_memory_stats is self._guard:
            self._install(self._reset)

    def _install(self, function: Any) -> None:
        for owner in (self._cuda, self._cuda.memory):
            owner.reset_peak_memory_stats = function

    def _note_and_reset(self, device: Any = None) -> None:
        self._note()
        self._reset(device)

    def _note(self) -> None:
        stats = self._cuda.memory_stats(self._device)  # empty until the device is used
        for name, key in PEAKS.items():
            if key in stats:
                self._peaks[name] = max(self._peaks.get(name, 0), stats[key])

    def _used(self) -> int:
        free, total = self._cuda.mem_get_info(self._device)
        return int(total - free)
