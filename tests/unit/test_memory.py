"""Measured memory: a phase owns what happens while it runs, and nothing else."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

from rlhf.memory import measure, process
from rlhf.memory.measure import MemoryMonitor, failure_report, memory_report
from rlhf.memory.out_of_memory import parse_out_of_memory

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


def test_a_phase_shows_what_it_held_even_if_it_gave_it_back() -> None:
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


def test_memory_that_is_still_held_at_the_end_of_a_short_phase_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SAMPLE_SECONDS", 60.0)  # the follower is too late for everything
    monitor = MemoryMonitor()
    with monitor.phase("load"):
        block = np.ones(200 * MB, dtype=np.uint8)
    (phase,) = monitor.stop()["phases"]
    assert growth(phase) > 150
    assert block.nbytes == 200 * MB


def test_a_phase_entered_again_keeps_its_largest_peak_and_its_total_time() -> None:
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


def test_what_happens_between_phases_is_not_theirs() -> None:
    monitor = MemoryMonitor()
    with monitor.phase("before"):
        pass
    hold(200)
    with monitor.phase("after"):
        pass
    assert all(growth(phase) < 50 for phase in monitor.stop()["phases"])


def test_an_exception_ends_its_phase_and_is_passed_on() -> None:
    monitor = MemoryMonitor()
    with pytest.raises(RuntimeError, match="no memory"), monitor.phase("train"):
        time.sleep(0.05)
        raise RuntimeError("no memory")
    hold(200)
    (phase,) = monitor.stop()["phases"]
    assert phase["seconds"] >= 0.05
    assert growth(phase) < 50


def test_stopping_ends_the_thread_and_describes_the_process() -> None:
    monitor = MemoryMonitor(rank=3)

    def followers() -> int:
        return sum(thread.name == "memory-monitor" for thread in threading.enumerate())

    running = followers()
    entry = monitor.stop()
    assert followers() == running - 1
    assert entry.keys() - {"high_water_rss", "cgroup_peak"} == {"rank", "host", "phases", "peak_rss"}
    assert (entry["rank"], entry["host"], entry["phases"]) == (3, socket.gethostname(), [])
    # What a process without phases has is what it takes now.
    assert entry["peak_rss"] == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)
    assert monitor.stop()["phases"] == []


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux counts here")
def test_bytes_are_those_the_system_counts() -> None:
    monitor = MemoryMonitor()
    with monitor.phase("idle"):
        pass
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert monitor.stop()["peak_rss"] == pytest.approx(resident, abs=20 * MB)


def test_device_figures_are_absent_without_a_device() -> None:
    monitor = MemoryMonitor()
    with monitor.phase("load"):
        pass
    found = monitor.stop()
    (phase,) = found["phases"]
    assert "device" not in found
    host = {"name", "start_rss", "peak_rss", "end_rss", "seconds"}
    assert phase.keys() - {"end_pss"} == host


class Cuda:
    """Counts as torch's allocator does, on device 1 of a thread that others do not share."""

    def __init__(self) -> None:
        self.memory = SimpleNamespace(reset_peak_memory_stats=self._reset)
        self.reset_peak_memory_stats = self._reset
        self.tensors = self.reserved = self.retries = self.ooms = 0
        self._peaks = {"allocated": 0, "reserved": 0}
        self.context, self.total = 500, 10_000

    def current_device(self) -> int:
        return 1

    def get_device_properties(self, device: int) -> SimpleNamespace:
        assert device == 1
        return SimpleNamespace(name="Stand-in", uuid="5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77")

    def hold(self, tensors: int, reserved: int) -> None:
        """A moment with so many bytes in tensors, of so many that are reserved."""
        self.tensors, self.reserved = tensors, reserved
        self._peaks = {
            "allocated": max(self._peaks["allocated"], tensors),
            "reserved": max(self._peaks["reserved"], reserved),
        }

    def _reset(self, device: int | None = None) -> None:
        assert device in (1, None)
        self._peaks = {"allocated": self.tensors, "reserved": self.reserved}

    def memory_stats(self, device: int) -> dict[str, int]:
        assert device == 1
        return {
            "allocated_bytes.all.peak": self._peaks["allocated"],
            "active_bytes.all.peak": self._peaks["allocated"] + 1,
            "reserved_bytes.all.peak": self._peaks["reserved"],
            "reserved_bytes.all.current": self.reserved,
            "inactive_split_bytes.all.peak": 2,
            "num_alloc_retries": self.retries,
            "num_ooms": self.ooms,
        }

    def mem_get_info(self, device: int) -> tuple[int, int]:
        assert device == 1
        return self.total - self.context - self.reserved, self.total


def test_device_peaks_begin_anew_with_each_phase_and_the_largest_is_kept() -> None:
    cuda = Cuda()
    monitor = MemoryMonitor(cuda=cuda)
    for name, tensors, reserved in (("generate", 70, 90), ("update", 30, 50), ("generate", 60, 80)):
        with monitor.phase(name):
            cuda.hold(tensors, reserved)
            cuda.hold(10, 20)
    found = monitor.stop()
    assert found["device"] == "Stand-in GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77"
    phases = by_name(found)
    figures = {name: (phase["peak_allocated"], phase["peak_reserved"]) for name, phase in phases.items()}
    assert figures == {"generate": (70, 90), "update": (30, 50)}
    assert (phases["update"]["peak_active"], phases["update"]["peak_inactive_split"]) == (31, 2)
    assert phases["generate"]["peak_device"] == 500 + 90


@pytest.mark.parametrize("own", [True, False], ids=["torch.cuda", "torch.cuda.memory"])
def test_a_peak_survives_a_reset_by_others(own: bool) -> None:
    cuda = Cuda()
    original = cuda.reset_peak_memory_stats
    monitor = MemoryMonitor(cuda=cuda)
    with monitor.phase("load"):
        cuda.hold(70, 90)
        cuda.hold(10, 90)
        (cuda if own else cuda.memory).reset_peak_memory_stats()
        assert cuda.memory_stats(1)["allocated_bytes.all.peak"] == 10
        cuda.hold(20, 90)
    (phase,) = monitor.stop()["phases"]
    assert phase["peak_allocated"] == 70
    assert cuda.reset_peak_memory_stats == cuda.memory.reset_peak_memory_stats == original


@pytest.mark.parametrize("reset", ["reset_peak_memory_stats", "reset_max_memory_allocated", "reset_max_memory_cached"])
def test_every_reset_that_deepspeed_uses_passes_by_the_guard(monkeypatch: pytest.MonkeyPatch, reset: str) -> None:
    """On the real module, whose counters the fake one provides."""
    cuda, calls = Cuda(), []
    for name in ("memory_stats", "mem_get_info", "current_device", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    for owner in (torch.cuda, torch.cuda.memory):
        monkeypatch.setattr(owner, "reset_peak_memory_stats", lambda device=None: (calls.append(1), cuda._reset()))
    monitor = MemoryMonitor(cuda=torch.cuda)
    with monitor.phase("load"):
        cuda.hold(70, 90)
        cuda.hold(10, 90)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            getattr(CUDA_Accelerator, reset)(None)
    (phase,) = monitor.stop()["phases"]
    assert phase["peak_allocated"] == 70
    assert len(calls) == 2  # the phase's own, and the other


def test_retries_and_failures_are_those_of_the_phase() -> None:
    cuda = Cuda()
    monitor = MemoryMonitor(cuda=cuda)
    cuda.retries = 5
    for name, retries, ooms in (("load", 0, 0), ("train", 2, 0), ("train", 1, 1)):
        with monitor.phase(name):
            cuda.retries += retries
            cuda.ooms += ooms
    phases = by_name(monitor.stop())
    assert [(phase["alloc_retries"], phase["ooms"]) for phase in phases.values()] == [(0, 0), (3, 1)]


def test_what_the_allocator_does_not_count_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda()
    monkeypatch.setattr(cuda, "memory_stats", lambda device: {})  # as torch says before the device is used
    monitor = MemoryMonitor(cuda=cuda)
    with monitor.phase("load"):
        pass
    (phase,) = monitor.stop()["phases"]
    assert phase["peak_device"] == 500
    assert not {"peak_allocated", "peak_reserved", "alloc_retries"} & phase.keys()


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux counts here")
def test_the_kernel_agrees_with_what_was_sampled() -> None:
    monitor = MemoryMonitor()
    with monitor.phase("load"):
        hold(200)
    entry = monitor.stop()
    (phase,) = entry["phases"]
    assert entry["high_water_rss"] >= phase["peak_rss"] - MB
    assert entry["high_water_rss"] > phase["end_rss"] + 150 * MB  # the block is gone at the end, not from the mark
    assert 0 < phase["end_pss"] <= phase["end_rss"] + 20 * MB


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("0::/job/step\n", "job/step/memory.peak"),
        ("0::/job/step\n", "memory.peak"),
        ("9:cpu:/a\n4:memory:/job\n0::/\n", "memory/job/memory.max_usage_in_bytes"),
        ("4:memory,cpu:/job\n", "memory/memory.max_usage_in_bytes"),
    ],
    ids=["v2", "v2 in a container", "v1", "v1 in a container"],
)
def test_the_peak_of_the_control_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, groups: str, file: str) -> None:
    monkeypatch.setattr(process, "PROC", tmp_path / "proc")
    monkeypatch.setattr(process, "CGROUPS", tmp_path / "cgroup")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cgroup").write_text(groups)
    assert process.cgroup_peak() is None
    (tmp_path / "cgroup" / file).parent.mkdir(parents=True)
    (tmp_path / "cgroup" / file).write_text("123456\n")
    assert process.cgroup_peak() == 123456


def test_without_proc_nothing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "PROC", tmp_path)
    monitor = MemoryMonitor()
    with monitor.phase("load"):
        pass
    entry = monitor.stop()
    assert "end_pss" not in entry["phases"][0]
    assert not {"high_water_rss", "cgroup_peak"} & entry.keys()


CUDA_MESSAGE = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.15 GiB of which 17.25 MiB is "
    "free. Including non-PyTorch memory, this process has 79.12 GiB memory in use. Of the allocated memory 77.52 GiB "
    "is allocated by PyTorch, and 1.05 GiB is reserved by PyTorch but unallocated. If reserved but unallocated memory "
    "is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)


def test_the_message_of_the_cuda_allocator_in_bytes() -> None:
    gib, mib = 2**30, 2**20
    assert parse_out_of_memory(CUDA_MESSAGE) == {
        "tried": 5 * gib // 2,
        "total": round(79.15 * gib),
        "free": 17 * mib + mib // 4,
        "in_process": round(79.12 * gib),
        "allocated": round(77.52 * gib),
        "reserved_unallocated": round(1.05 * gib),
        "reserved": round(77.52 * gib) + round(1.05 * gib),
    }


def test_the_message_of_a_real_failure_on_the_host() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**55, dtype=torch.uint8)
    assert parse_out_of_memory(str(raised.value)) == {"tried": 2**55}
    assert parse_out_of_memory("no memory") == {}


def test_a_failed_stage_tells_its_phase_and_the_message() -> None:
    monitor = MemoryMonitor(rank=2)
    with pytest.raises(RuntimeError), monitor.phase("train"):
        raise RuntimeError(CUDA_MESSAGE)
    report = failure_report(monitor.stop(), "cuda", "out_of_device_memory", monitor.failed_phase, CUDA_MESSAGE)
    assert (report["status"], report["schema_version"], report["processes"][0]["rank"]) == ("oom", 2, 2)
    failure = report["failure"]
    assert (failure["cause"], failure["phase"], failure["tried"]) == ("out_of_device_memory", "train", 5 * 2**29)


def test_a_report_of_two_processes_names_the_larger_peak() -> None:
    small = {"rank": 0, "host": "a", "phases": [], "peak_rss": 1}
    monitor = MemoryMonitor(rank=1)
    with monitor.phase("load"):
        pass
    large = monitor.stop()
    for processes in ([small, large], [large, small]):
        report = memory_report(processes, "cpu")
        assert report["processes"] == processes
        assert report["peak_rss"] == large["peak_rss"] > 1
        assert (report["unit"], report["device"], report["schema_version"]) == ("bytes", "cpu", 2)
