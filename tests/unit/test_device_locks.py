"""Stages side by side on one machine: real launchers, and stages that note what they were given.

The machine's devices are what a stand-in for nvidia-smi lists; those of each test have names of their own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import UserError
from rlhf.runtime.device_locks import FOLDER, held_device

WORKFLOW = Path(__file__).resolve().parents[2] / "workflow"
LAUNCHER = WORKFLOW / "scripts/launch.py"
SECONDS = 60.0

# Keeps its device as every script does, notes what it sees when it begins and ends, and ends when it is told.
STAGE = """
import json, os, sys, time
from pathlib import Path
from rlhf.runtime.device_locks import held_device

folder, name = Path(sys.argv[1]), sys.argv[2]
with held_device(os.environ):
    note = {"name": name, "pid": os.getpid(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "began": time.time()}
    note |= {key: os.environ.get(key) for key in ("LOCAL_RANK", "DS_ACCELERATOR", "CUDA_DEVICE_ORDER")}
    mine = folder / f"{name}-{os.getpid()}.json"
    beside = mine.with_suffix(".new")
    beside.write_text(json.dumps(note))
    beside.rename(mine)
    end = time.monotonic() + float(sys.argv[3])
    while time.monotonic() < end and not (folder / f"finish-{name}").exists():
        time.sleep(0.01)
    (folder / f"{name}-{os.getpid()}.end").write_text(repr(time.time()))
"""
# Starts processes as DeepSpeed's launcher does: they inherit no open file, and outlive it.
DEEPSPEED = """
import os, subprocess, sys
words = sys.argv[sys.argv.index("--master_port") + 2:]
started = [
    subprocess.Popen([sys.executable, *words], env=os.environ | {"LOCAL_RANK": str(rank)})
    for rank in range(len(os.environ["CUDA_VISIBLE_DEVICES"].split(",")))
]
for process in started:
    process.wait()
"""


class Machine:
    """A machine with devices, on which stages are started."""

    def __init__(self, folder: Path, devices: int) -> None:
        self.folder = folder
        self.uuids = [f"GPU-{uuid.uuid4()}" for _ in range(devices)]
        self._processes: list[subprocess.Popen[str]] = []
        (folder / "bin").mkdir()
        listing = "".join(f"GPU {index}: Stand-in (UUID: {name})\n" for index, name in enumerate(self.uuids))
        self._program("nvidia-smi", f'#!/bin/sh\ncat <<"END"\n{listing}END\n')
        self._program("deepspeed", f"#!{sys.executable}\n{DEEPSPEED}")
        (folder / "stage.py").write_text(STAGE)

    def _program(self, name: str, text: str) -> None:
        (self.folder / "bin" / name).write_text(text)
        (self.folder / "bin" / name).chmod(0o755)

    def start(
        self, name: str, gpus: int, *before: str, seconds: float = SECONDS, **variables: str
    ) -> subprocess.Popen[str]:
        """The launcher of a stage; what it says is in NAME.log."""
        words = [str(self.folder / "stage.py"), str(self.folder), name, str(seconds)]
        words += ["--execution", json.dumps({"gpus_per_node": gpus}), "--output", f"results/sft/{name}"]
        around = {key: text for key, text in os.environ.items() if not key.startswith(("SLURM_", "CUDA_", "DS_"))}
        around |= {"PATH": f"{self.folder}/bin:{around['PATH']}", "PYTHONPATH": str(WORKFLOW), **variables}
        with (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, *before, str(LAUNCHER), *words], env=around, stdout=log, stderr=log, text=True
            )
        self._processes.append(process)
        return process

    def notes(self, name: str = "*") -> list[dict[str, Any]]:
        """What the processes of a stage have noted, in the order in which they began."""
        found = [json.loads(file.read_text()) for file in self.folder.glob(f"{name}-*.json")]
        return sorted(found, key=lambda note: note["began"])

    def began(self, name: str, processes: int = 1) -> list[dict[str, Any]]:
        """Wait until all processes of a stage have begun."""
        self.wait(lambda: len(self.notes(name)) == processes, f"{name} to begin")
        return self.notes(name)

    def waits(self, name: str) -> str:
        """Wait until a launcher says that it waits; what it says."""
        self.wait(lambda: "waiting for" in self.log(name), f"{name} to wait")
        return self.log(name)

    def finish(self, name: str) -> None:
        """Let a stage end."""
        (self.folder / f"finish-{name}").touch()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < end, f"waited in vain for {what}: " + "\n".join(
                f"{file.name}: {file.read_text()}" for file in self.folder.glob("*.log")
            )
            time.sleep(0.02)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for note in self.notes():
            if not (self.folder / f"{note['name']}-{note['pid']}.end").exists():
                with suppress(ProcessLookupError):
                    os.kill(note["pid"], signal.SIGKILL)
        for name in self.uuids:
            (FOLDER / name).unlink(missing_ok=True)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Callable[[int], Machine]]:
    made: list[Machine] = []

    def make(devices: int) -> Machine:
        made.append(Machine(tmp_path, devices))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_stages_side_by_side_get_different_devices(machine: Callable[[int], Machine]) -> None:
    """Five launchers at once for three devices: each stage has one, and a device never has two stages."""
    place = machine(3)
    launchers = [place.start(f"stage{number}", 1, seconds=0.5) for number in range(5)]
    assert [launcher.wait(SECONDS) for launcher in launchers] == [0] * 5
    notes = place.notes()
    spans = [
        (note["gpus"], note["began"], float((place.folder / f"{note['name']}-{note['pid']}.end").read_text()))
        for note in notes
    ]
    assert [note["gpus"] in {"0", "1", "2"} for note in notes] == [True] * 5
    assert len({note["gpus"] for note in notes[:3]}) == 3
    for gpu, began, _ in spans:
        assert sum(other == gpu and start <= began < end for other, start, end in spans) == 1, spans
    assert {note["DS_ACCELERATOR"] for note in notes} == {"cuda"}
    assert {note["CUDA_DEVICE_ORDER"] for note in notes} == {"PCI_BUS_ID"}


def test_a_killed_launcher_frees_its_devices_and_those_who_wait_say_for_whom(
    machine: Callable[[int], Machine],
) -> None:
    place = machine(1)
    first = place.start("first", 1)
    (note,) = place.began("first")
    assert note["pid"] == first.pid  # the launcher has become the stage
    assert f"taken: 1 GPU: 0 (Stand-in, {place.uuids[0]})" in place.log("first")
    place.start("second", 1)
    said = place.waits("second")
    assert f"waiting for 1 free of 1 GPU: 0 (Stand-in, {place.uuids[0]})" in said
    assert f"In use: 0 by results/sft/first (process {first.pid})" in said
    assert place.notes("second") == []
    first.kill()
    assert place.began("second")[0]["gpus"] == "0"


def test_a_stage_gets_all_its_devices_or_keeps_none_from_others(machine: Callable[[int], Machine]) -> None:
    place = machine(2)
    place.start("one", 1)
    place.began("one")
    place.start("two", 2)
    place.waits("two")
    place.start("three", 1)
    assert {note["gpus"] for note in place.began("three") + place.notes("one")} == {"0", "1"}
    place.finish("one")
    place.finish("three")
    assert {note["gpus"] for note in place.began("two", processes=2)} == {"0,1"}


def test_a_process_that_outlives_its_launcher_keeps_its_device(machine: Callable[[int], Machine]) -> None:
    place = machine(3)
    both = place.start("both", 2, CUDA_VISIBLE_DEVICES="2,0")
    notes = place.began("both", processes=2)
    assert {(note["gpus"], note["LOCAL_RANK"]) for note in notes} == {("0,2", "0"), ("0,2", "1")}
    assert both.pid not in {note["pid"] for note in notes}
    both.kill()
    both.wait()
    place.start("next", 1, CUDA_VISIBLE_DEVICES="0,2")
    place.waits("next")
    assert place.notes("next") == []
    first, second = sorted(notes, key=lambda note: note["LOCAL_RANK"])
    os.kill(second["pid"], signal.SIGKILL)
    assert place.began("next")[0]["gpus"] == "2"
    os.kill(first["pid"], 0)  # is still there


def test_the_devices_of_a_user_are_not_left(machine: Callable[[int], Machine]) -> None:
    """One of three: two stages that may use it follow each other, and one that needs more is refused."""
    place = machine(3)
    for name in ("first", "second"):
        place.start(name, 1, CUDA_VISIBLE_DEVICES=place.uuids[1])
    place.wait(lambda: bool(place.notes("first") or place.notes("second")), "one of the two")
    assert place.notes()[0]["gpus"] == "1"
    waiting = "second" if place.notes("first") else "first"
    assert "In use: 1 by" in place.waits(waiting)
    refused = place.start("third", 2, CUDA_VISIBLE_DEVICES="1")
    assert refused.wait(SECONDS) == 2
    assert "error: execution.gpus_per_node: 2, but this machine, of which CUDA_VISIBLE_DEVICES=1" in place.log("third")


@pytest.mark.parametrize(("gpus", "variables"), [(0, {}), (1, {"DS_ACCELERATOR": "cpu"})])
def test_a_stage_on_the_cpu_sees_no_device_and_takes_none(
    machine: Callable[[int], Machine], gpus: int, variables: dict[str, str]
) -> None:
    place = machine(1)
    place.start("gpu", 1)
    place.began("gpu")
    place.start("cpu", gpus, CUDA_VISIBLE_DEVICES="0", **variables)
    (note,) = place.began("cpu")
    assert (note["gpus"], note["DS_ACCELERATOR"]) == ("", "cpu")
    assert ("CPU processes in place of 1 GPU(s)" in place.log("cpu")) == bool(gpus)


def test_in_a_slurm_job_its_assignment_holds(machine: Callable[[int], Machine]) -> None:
    """No lock is taken: two stages of one job may have the same device."""
    place = machine(1)
    srun = place.folder / "bin/srun"
    srun.write_text('#!/bin/sh\nwhile [ "$1" != --kill-on-bad-exit=1 ]; do shift; done\nshift\nexec "$@"\n')
    srun.chmod(0o755)
    for name in ("first", "second"):
        place.start(name, 1, SLURM_JOB_ID="7", CUDA_VISIBLE_DEVICES="5")
        assert place.began(name)[0]["gpus"] == "5"


def test_a_waiting_launcher_ends_with_what_started_it(machine: Callable[[int], Machine], tmp_path: Path) -> None:
    """Else it would train hours later, unseen."""
    place = machine(1)
    place.start("first", 1)
    place.began("first")
    starter = tmp_path / "snakemake"
    starter.write_text("import subprocess, sys\nprint(subprocess.Popen([sys.executable, *sys.argv[1:]]).wait())\n")
    snakemake = place.start("second", 1, str(starter))
    place.waits("second")
    snakemake.kill()
    place.wait(lambda: "interrupted: the process that started this one is gone" in place.log("second"), "its end")


def test_a_process_whose_device_was_given_to_another_stage_does_not_start(
    machine: Callable[[int], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = machine(1)
    launcher = place.start("now", 1)
    place.began("now")
    told = {"RLHF_DEVICES": f"0123456789abcdef,{place.uuids[0]}"}
    with (
        pytest.raises(UserError, match=rf"another stage has taken its GPU: results/sft/now \(process {launcher.pid}\)"),
        held_device(told),
    ):
        raise AssertionError("must not be reached")
    with held_device({"RLHF_DEVICES": "0123456789abcdef,GPU-of-another-file-system"}):
        pass  # in a container


def test_locks_can_be_taken_by_every_user(machine: Callable[[int], Machine]) -> None:
    place = machine(1)
    place.start("one", 1)
    place.began("one")
    modes = [path.stat().st_mode & 0o7777 for path in (FOLDER, FOLDER / place.uuids[0], FOLDER / "launchers")]
    assert modes == [0o1777, 0o666, 0o666]
