"""The parts of the measurement, one after another, and what they found."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.arithmetic import peak
from benchmarks.gpu.cases import SCALES, Case, configuration
from benchmarks.gpu.correctness import run_tests
from benchmarks.gpu.report import markdown
from benchmarks.gpu.stages import ROOT, Workplace
from benchmarks.gpu.worker import NO_GPU, Crew, Job, JobFailed, OutOfTime, Worker, tail

from rlhf.files import read_jsonl, write_json, write_text
from rlhf.runtime.manifest import code_hash

RESERVE, LEAST = 6.0, 8.0  # seconds: kept for the end; without which no part begins
START = 120.0  # for the imports of the first processes on a cold disk, and for what they make
CORRECTNESS, PLAIN, SUMS = 200.0, 60.0, 60.0
LOG_BYTES = 4_000_000
# Part of the driver's name -> name in the table of devices; the first that fits.
DEVICES = {
    "H100 80GB": "h100-80g",
    "H100 PCIe": "h100-80g",
    "H200": "h200",
    "A100-SXM4-80GB": "a100-80g",
    "L40S": "l40s",
    "L4": "l4",
}
GIB = 2**30
Found = dict[str, Any]


class NotRun(Exception):
    """A part has a reason not to run."""


class NoDevice(Exception):
    """There is no GPU to measure."""


class Measurement:
    """All parts; the results are written anew after each of them.

    Args:
        scale: `full` on a GPU, `tiny` on the CPU.
        seconds: time for everything.
        only: beginnings of the names of parts; None: all.
        output: folder of the results.
        folder: where to work.
    """

    def __init__(self, scale: str, seconds: float, only: list[str] | None, output: Path, folder: Path) -> None:
        self._name, self._scale, self._tiny = scale, SCALES[scale], scale == "tiny"
        self._only, self._output, self._folder = only, output, folder
        self._start, self._end = time.monotonic(), time.monotonic() + seconds
        self._rows = str(folder / "rows.jsonl")
        self._workplace = Workplace(folder, configuration(self._scale, self._rows, 0 if self._tiny else 1))
        self._models = {name: str(self._model(name)) for name in self._scale.models}
        self._crew = Crew(folder, NO_GPU if self._tiny else {}, fresh=not self._tiny)
        # In miniature one process does everything; else what needs no GPU is done beside what does.
        self._helper = self._crew.take(more=False) if self._tiny else self._crew.hire("helper", NO_GPU)
        self._plans: dict[str, Job] = {}
        self._machine: Found = {}
        self._result: Found = {
            "schema_version": 1,
            "scale": scale,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "code": {"hash": code_hash()},
            "machine": self._machine,
            "parts": {},
        }

    def name_commit(self, commit: str | None) -> None:
        """Say of which commit the code is; None: that of the checkout, if it is one."""
        self._result["code"]["commit"] = commit or _commit()

    def run(self) -> bool:
        """Run what is asked for; returns whether all of it worked, as far as it can on this machine.

        Raises:
            NoDevice: there is no GPU, and the scale is not the miniature.
        """
        measures = any(map(self._wanted, self._measured))
        first = self._crew.take(more=measures)
        self._attempt("machine", partial(self._look, first))
        if not self._tiny and self._machine.get("card", "unknown") is None:
            raise NoDevice("no CUDA device is visible; --tiny runs on the CPU")
        self._attempt("ceilings", partial(self._ceilings, first))
        if measures:
            made, weights = self._begin_material(first)
            self._attempt("correctness", self._correctness)
            self._attempt("material", partial(self._material, first, made, weights))
            self._crew.release(first)
            for case in self._scale.cases:
                self._attempt(case.name, partial(self._case, case))
            self._attempt("plain-training", self._plain_training)
            self._attempt("plain-generation", self._plain_generation)
        else:
            self._attempt("correctness", self._correctness)
        return all(part["status"] in ("ok", "not run") for part in self._result["parts"].values())

    def close(self) -> None:
        """End all processes, and write the results and the logs for the last time."""
        self._crew.close()
        self._write()
        logs = [f"==> {log.name}\n{log.read_text(errors='replace')}" for log in sorted(self._folder.glob("*.log"))]
        write_text(self._output / "log.txt", "\n".join(logs)[-LOG_BYTES:])

    # Parts

    def _look(self, worker: Worker, found: Found) -> None:
        self._machine |= worker.run(Job("benchmarks.gpu.machine:facts"), self._seconds(START))
        found["note"] = self._machine["card"] or "no CUDA device"

    def _ceilings(self, worker: Worker, found: Found) -> None:
        if self._tiny:
            raise NotRun("needs a CUDA device: these are rates of a card")
        found |= worker.run(Job("benchmarks.gpu.machine:ceilings"), self._seconds(30))

    def _correctness(self, found: Found) -> None:
        if importlib.util.find_spec("pytest") is None:
            raise NotRun("pytest is not installed")
        if self._tiny:
            found["note"] = "not run on a device: a rehearsal that compares the CPU with itself"
        record, log = self._folder / "tests.jsonl", self._folder / "tests.log"
        try:
            status = run_tests(record, log, self._tiny, self._seconds(CORRECTNESS))
        finally:
            found["tests"] = read_jsonl(record) if record.exists() else []
        if status or not found["tests"]:
            failed = sum(test["outcome"] == "failed" for test in found["tests"])
            raise JobFailed(f"{failed} failed; pytest's status is {status}", tail(log))

    def _begin_material(self, first: Worker) -> tuple[list[Job], Job]:
        """Have data and models made while other parts run; returns the jobs of both."""
        prepare = {"scale": self._name, "rows": self._rows, "folders": self._models}
        jobs = [Job("benchmarks.gpu.material:prepare", prepare)]
        jobs += map(Job.script, [*self._workplace.data(), *self._workplace.tokens()])
        for job in jobs:
            self._helper.send(job)
        rewards = {self._models[case.reward_model]: str(self._reward(case)) for case in self._scale.cases}
        device = "cpu" if self._tiny else "cuda"
        arguments = {"folders": list(self._models.values()), "rewards": rewards, "device": device}
        return jobs, first.send(Job("benchmarks.gpu.material:weights", arguments, after=jobs[0]))

    def _material(self, first: Worker, made: list[Job], weights: Job, found: Found) -> None:
        for job in made:
            self._helper.wait(job, self._seconds(START))
        counts = first.wait(weights, self._seconds(START))
        found["parameters"] = {name: counts[folder] for name, folder in self._models.items()}
        for case in self._scale.cases:
            if self._wanted(case.name):
                plan = self._workplace.plan(case.name, case.kind, case.name, None, self._gpu())
                self._plans[case.name] = self._helper.send(Job.script(plan))

    def _case(self, case: Case, found: Found) -> None:
        start = {"sft": self._model(case.policy), "reward": self._reward(case)}
        command = self._workplace.train(case.name, case.kind, case.name, start=start)
        output = self._workplace.output(case.kind, case.name)
        found |= {"kind": case.kind, "device_used_before": self._device_used()}
        self._alone(Job.script(command), self._seconds(case.seconds))
        shutil.rmtree(output / "model")  # of gigabytes
        arguments = {"output": str(output), "scale": self._name, "case": case.name, "models": self._models}
        speed = Job("benchmarks.gpu.measured:speed", arguments | {"data": self._data(case), "peak": self._peak()})
        found["speed"] = self._helper.run(speed, self._seconds(SUMS))
        self._helper.wait(self._plans[case.name], self._seconds(SUMS))
        memory = Job("benchmarks.gpu.measured:memory", {"output": str(output)})
        found["memory"] = self._helper.run(memory, self._seconds(SUMS))

    def _plain_training(self, found: Found) -> None:
        found["kind"] = "plain"
        case, arguments = self._plain()
        seed = self._workplace.stage(case.name, "sft").seed
        arguments |= {"batch_size": self._scale.batch, "learning_rate": 1e-5, "seed": seed}
        steps = self._alone(Job("benchmarks.gpu.plain:train", arguments), self._seconds(PLAIN))
        sums = {"steps": steps, "scale": self._name, "folder": arguments["model"], "peak": self._peak()}
        found["speed"] = self._helper.run(Job("benchmarks.gpu.measured:plain_speed", sums), self._seconds(SUMS))

    def _plain_generation(self, found: Found) -> None:
        found["kind"] = "plain"
        _, arguments = self._plain()
        arguments |= {"prompts": self._scale.samples, "answer": self._scale.answer}
        drawn = self._alone(Job("benchmarks.gpu.plain:generate", arguments), self._seconds(PLAIN))
        found["speed"] = {"generated_per_second": drawn["tokens"] / drawn["seconds"], **drawn}

    # What parts share

    def _attempt(self, name: str, part: Callable[[Found], None]) -> None:
        """Run a part, if it is wanted: what goes wrong in it is written down, and the next one goes on."""
        if not self._wanted(name):
            return
        found: Found = {}
        entry: Found = {"status": "ok"}
        started = time.monotonic()
        try:
            part(found)
        except NotRun as reason:
            entry = {"status": "not run", "message": str(reason)}
        except OutOfTime as error:
            entry = {"status": "out of time", "message": str(error)}
        except JobFailed as error:
            entry = {"status": "failed", "message": str(error), "details": error.details}
        except Exception as error:
            entry = {"status": "failed", "message": repr(error), "details": traceback.format_exc()}
        entry |= {"seconds": round(time.monotonic() - started, 1)}
        self._result["parts"][name] = entry | found
        print(f"{time.monotonic() - self._start:5.0f} s  {name}: {entry['status']}, {entry['seconds']} s", flush=True)
        if "message" in entry:
            print(f"         {entry['message']}", flush=True)
        self._write()

    def _wanted(self, name: str) -> bool:
        if self._only is None or name == "machine":
            return True
        if name == "material":
            return any(map(self._wanted, self._measured))
        return any(name.startswith(beginning) for beginning in self._only)

    @property
    def _measured(self) -> list[str]:
        """Names of the parts that need models and data."""
        return [case.name for case in self._scale.cases] + ["plain-training", "plain-generation"]

    def _seconds(self, limit: float) -> float:
        """Time that a step may take; in miniature, where the machine may be busy with anything, all that is left.

        Raises:
            OutOfTime: too little is left to begin.
        """
        left = self._end - RESERVE - time.monotonic()
        if left < LEAST:
            raise OutOfTime("no time was left")
        return left if self._tiny else min(limit, left)

    def _alone(self, job: Job, seconds: float) -> Any:
        """Run a job in a process that has run nothing else, and have the next one started meanwhile."""
        worker = self._crew.take(more=True)
        try:
            return worker.run(job, seconds)
        finally:
            self._crew.release(worker)

    def _plain(self) -> tuple[Case, Found]:
        (case,) = (one for one in self._scale.cases if one.name == f"sft-{self._scale.plain}")
        device = "cpu" if self._tiny else "cuda"
        return case, {"model": self._models[self._scale.plain], "device": device, **self._data(case)}

    def _model(self, name: str) -> Path:
        """Folder of a language model."""
        case = next(one for one in self._scale.cases if name in (one.policy, one.reward_model))
        return self._workplace.model(case.name, "policy" if name == case.policy else "reward_model")

    def _reward(self, case: Case) -> Path:
        """Folder of a reward model with the size of a language model."""
        return self._folder / "rewards" / case.reward_model

    def _data(self, case: Case) -> dict[str, list[str]]:
        tokens, splits = self._workplace.rows(case.name, case.kind)
        return {"tokens": list(map(str, tokens)), "splits": list(map(str, splits))}

    def _peak(self) -> float | None:
        return peak(self._machine["card"]) if self._machine.get("card") else None

    def _gpu(self) -> Found:
        """The device that memory is planned for, as `memory` of a configuration names it."""
        if self._tiny:
            return {}
        known = next((device for name, device in DEVICES.items() if name in self._machine["card"]), None)
        return {"gpu": known} if known else {"gpu_memory_gib": self._machine["memory"] / GIB}

    def _device_used(self) -> int | None:
        """Bytes that the driver counts on the card while no process of this program uses it."""
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
            return int(answer.split()[0]) * 2**20
        except (OSError, subprocess.SubprocessError, ValueError, IndexError):
            return None

    def _write(self) -> None:
        self._result["seconds"] = round(time.monotonic() - self._start, 1)
        card = re.sub(r"[^a-z0-9]+", "-", (self._machine.get("card") or "cpu").lower())
        date = self._result["started"][:10]
        write_json(self._output / f"results-{date}-{card}.json", self._result)
        write_text(self._output / f"results-{date}-{card}.md", markdown(self._result))


def _commit() -> str | None:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
