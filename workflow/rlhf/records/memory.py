"""memory.json: measured peaks of memory of each process and phase of a stage, in bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypedDict

from rlhf.files import peek, read_object, write_json

MEMORY = "memory.json"


class PhaseMemory(TypedDict, total=False):
    """One phase of one process; what was not measured is absent. `rlhf.memory.measure.PhasePeak` explains each."""

    name: str
    start_rss: int
    peak_rss: int
    end_rss: int
    end_pss: int
    seconds: float
    peak_allocated: int
    peak_active: int
    peak_reserved: int
    peak_inactive_split: int
    peak_device: int
    alloc_retries: int
    ooms: int


class _Process(TypedDict):
    rank: int
    host: str
    phases: list[PhaseMemory]
    peak_rss: int


class ProcessMemory(_Process, total=False):
    """One process.

    Attributes:
        phases: in the order in which they were entered first.
        peak_rss: largest resident memory in any phase.
        device: model and UUID of its GPU; absent on the CPU.
        high_water_rss: the same as the kernel counts it, between phases too.
        cgroup_peak: largest memory of its control group (under a scheduler, the job), page cache included.
    """

    device: str
    high_water_rss: int
    cgroup_peak: int


class AllocatorMessage(TypedDict, total=False):
    """What an out-of-memory message says in numbers: bytes, rounded to 1/100 of their unit in the message.

    Attributes:
        tried: of the allocation that failed.
        total, free: of the device.
        in_process: all that this process has on it.
        allocated: in tensors.
        reserved_unallocated: kept by the allocator without use, so that it was no help: fragments.
        reserved: the sum of the two.
    """

    tried: int
    total: int
    free: int
    in_process: int
    allocated: int
    reserved_unallocated: int
    reserved: int


class MemoryFailure(AllocatorMessage, total=False):
    """What a process that ran out of memory had to say.

    Attributes:
        cause: `out_of_device_memory` or `out_of_host_memory`.
        phase: in which it happened; absent between phases.
        message: of the exception.
    """

    cause: str
    phase: str
    message: str


class _Report(TypedDict):
    device: str
    processes: list[ProcessMemory]
    peak_rss: int


class MemoryReport(_Report, total=False):
    """Content of memory.json.

    Attributes:
        device: `cpu` or `cuda`.
        processes: of a stage that was finished, all in the order of their ranks; else the one that failed.
        peak_rss: largest resident memory of a process.
        status: `oom` where the stage ran out of memory, and the file lies in its state folder.
        stage, id, failure: only there.
    """

    schema_version: int
    unit: Literal["bytes"]
    status: Literal["ok", "oom"]
    stage: str
    id: str
    failure: MemoryFailure


def read_memory(folder: Path) -> MemoryReport:
    """What was measured of a stage.

    Raises:
        UserError: the file is missing or damaged.
    """
    report: MemoryReport = read_object(folder / MEMORY)
    return report


def peek_memory(folder: Path) -> MemoryReport | None:
    """What was measured, where a stage may be made meanwhile: None where it is not there, empty where damaged."""
    report: MemoryReport | None = peek(folder / MEMORY)
    return report


def write_memory(folder: Path, report: MemoryReport) -> None:
    """Write memory.json into the folder of a finished stage, or into the state folder of one that failed."""
    write_json(folder / MEMORY, report)
