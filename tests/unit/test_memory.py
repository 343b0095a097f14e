"""Measured memory: a phase owns what happens while it runs, and nothing else."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rlhf.memory import measure
from rlhf.memory.measure import MemoryMonitor, memory_report

MB = 10**6


def hold(megabytes: int, seconds: float = 0.3) -> None:
    """Touch memory, keep it for many sampling intervals, and give it back."""
    block = np.ones(megabytes * MB, dtype=np.uint8)  # glibc maps blocks of this size, so that freeing returns them
    time.sleep(seconds)
    del block
    gc.collect()


def by_name(entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {phase["name"]: phase for phase in entry["phases"]}


def growth(phase: dict[str, Any]) -> float:
    """Megabytes above the start of the phase."""
    return (phase["peak_rss"] - phase["start_rss"]) / MB


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No accelerator, whatever the machine has."""
    monkeypatch.setattr(measure, "_cuda", lambda: None)


def test_a_phase_shows_what_it_held_even_if_it_gave_it_back(cpu: None) -> None:
    monitor = MemoryMonitor()
    with monitor.phase("idle"):
        time.sleep(0.1)
    with monitor.phase("load"):
        hold(200)
    with monitor.phase("idle after"):
        time.sleep(0.1)
    entry = monitor.stop()
    phases = by_name(entry)
    assert list(phases) == ["idle", "load", "idle after"]
    assert 150 < growth(phases["load"]) < 260
    assert growth(phases["idle"]) < 50
    assert growth(phases["idle after"]) < 50
    assert entry["peak_rss"] == phases["load"]["peak_rss"]


def test_memory_that_is_still_held_at_the_end_of_a_short_phase_counts(
    cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "SAMPLE_SECONDS", 60.0)  # the follower is too late for everything
    monitor = MemoryMonitor()
    with monitor.phase("load"):
        block = np.ones(200 * MB, dtype=np.uint8)
    (phase,) = monitor.stop()["phases"]
    assert growth(phase) > 150
    assert block.nbytes == 200 * MB


def test_a_phase_entered_again_keeps_its_largest_peak_and_its_total_time(cpu: None) -> None:
    monitor = MemoryMonitor()
    for megabytes, seconds in ((1, 0.1), (200, 0.3), (1, 0.1)):
        with monitor.phase("generate"):
            hold(megabytes, seconds)
        with monitor.phase("update"):
            pass
    phases = by_name(monitor.stop())
    assert list(phases) == ["generate", "update"]
    assert growth(phases["generate"]) > 150
    assert growth(phases["update"]) < 50
    assert phases["generate"]["seconds"] >= 0.5
    assert phases["update"]["seconds"] < phases["generate"]["seconds"] / 2


def test_what_happens_between_phases_is_not_theirs(cpu: None) -> None:
    monitor = MemoryMonitor()
    with monitor.phase("before"):
        pass
    hold(200)
    with monitor.phase("after"):
        pass
    assert all(growth(phase) < 50 for phase in monitor.stop()["phases"])


def test_an_exception_ends_its_phase_and_is_passed_on(cpu: None) -> None:
    monitor = MemoryMonitor()
    with pytest.raises(RuntimeError, match="no memory"), monitor.phase("train"):
        time.sleep(0.05)
        raise RuntimeError("no memory")
    hold(200)
    (phase,) = monitor.stop()["phases"]
    assert phase["seconds"] >= 0.05
    assert growth(phase) < 50


def test_stopping_ends_the_thread_and_describes_the_process(cpu: None) -> None:
    monitor = MemoryMonitor(rank=3)

    def followers() -> int:
        return sum(thread.name == "memory-monitor" for thread in threading.enumerate())

    running = followers()
    entry = monitor.stop()
    assert followers() == running - 1
    assert entry == {"rank": 3, "host": socket.gethostname(), "phases": [], "peak_rss": 0}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux counts here")
def test_bytes_are_those_the_system_counts(cpu: None) -> None:
    monitor = MemoryMonitor()
    with monitor.phase("idle"):
        pass
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert monitor.stop()["peak_rss"] == pytest.approx(resident, abs=20 * MB)


def test_device_figures_are_absent_without_a_device(cpu: None) -> None:
    monitor = MemoryMonitor()
    with monitor.phase("load"):
        pass
    (phase,) = monitor.stop()["phases"]
    assert phase.keys() == {"name", "start_rss", "peak_rss", "seconds"}


def test_device_peaks_are_reset_at_the_start_and_the_largest_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    counters = {"allocated": 0, "reserved": 0}
    device = SimpleNamespace(
        reset_peak_memory_stats=lambda: counters.update(allocated=0, reserved=0),
        max_memory_allocated=lambda: counters["allocated"],
        max_memory_reserved=lambda: counters["reserved"],
    )
    monkeypatch.setattr(measure, "_cuda", lambda: device)
    monitor = MemoryMonitor()
    for name, allocated, reserved in (("generate", 7, 9), ("update", 3, 5), ("generate", 6, 8)):
        with monitor.phase(name):
            counters["allocated"] = max(counters["allocated"], allocated)
            counters["reserved"] = max(counters["reserved"], reserved)
    phases = by_name(monitor.stop())
    figures = {name: (phase["peak_allocated"], phase["peak_reserved"]) for name, phase in phases.items()}
    assert figures == {"generate": (7, 9), "update": (3, 5)}


def test_a_report_of_two_processes_names_the_larger_peak(cpu: None) -> None:
    small = {"rank": 0, "host": "a", "phases": [], "peak_rss": 1}
    monitor = MemoryMonitor(rank=1)
    with monitor.phase("load"):
        pass
    large = monitor.stop()
    for processes in ([small, large], [large, small]):
        report = memory_report(processes, "cpu")
        assert report["processes"] == processes
        assert report["peak_rss"] == large["peak_rss"] > 1
        assert (report["unit"], report["device"], report["schema_version"]) == ("bytes", "cpu", 1)
