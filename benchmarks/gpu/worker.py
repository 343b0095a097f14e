"""Processes that import what training needs once, and then run one job after another.

A start costs more than a small stage; but a peak of memory is clean only in a process that has run nothing else. So the
next process can be started, and make its imports, while the present one computes. The device is touched by the first
job, not before.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OFFLINE = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS")
ENVIRONMENT = {
    **dict.fromkeys((*OFFLINE, "HF_DATASETS_DISABLE_PROGRESS_BARS"), "1"),
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
POLL_SECONDS, END_SECONDS, SHOWN_LINES = 0.02, 5.0, 40


class JobFailed(Exception):
    """A job raised, or its process ended; `details` is the traceback or the end of the log."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class OutOfTime(Exception):
    """A job was not done in its time; its process is ended."""


@dataclass
class Job:
    """A call in a worker.

    Args:
        call: `module:function`.
        arguments: its keyword arguments, which JSON can hold.
        after: a job of any worker, sent before: this one begins when that one has an answer, good or bad.
        answer: file of the answer; known when the job is sent.
    """

    call: str
    arguments: dict[str, Any] = field(default_factory=dict)
    after: Job | None = None
    answer: Path = Path()

    @classmethod
    def script(cls, command: list[str], after: Job | None = None) -> Job:
        """A script of the workflow with its command line."""
        return cls("benchmarks.gpu.jobs:run_script", {"command": command}, after)


class Worker:
    """A process for jobs, in a process group of its own.

    Args:
        log: file that gets what it prints.
        environment: variables beside those of this process.
    """

    def __init__(self, log: Path, environment: dict[str, str] | None = None) -> None:
        self._log = log
        self._numbers = itertools.count()
        self._answers = Path(tempfile.mkdtemp(prefix="answers-", dir=log.parent))
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu.jobs"],
                cwd=ROOT,
                env=os.environ | ENVIRONMENT | {"PYTHONPATH": search_path()} | (environment or {}),
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    def send(self, job: Job) -> Job:
        """Queue a job; jobs are done in the order in which they were sent."""
        assert self._process.stdin is not None
        job.answer = self._answers / f"{next(self._numbers)}.json"
        line = {"call": job.call, "arguments": job.arguments, "answer": str(job.answer)}
        line["after"] = None if job.after is None else str(job.after.answer)
        with contextlib.suppress(BrokenPipeError):  # `wait` says that the process has ended
            self._process.stdin.write(json.dumps(line).encode() + b"\n")
            self._process.stdin.flush()
        return job

    def wait(self, job: Job, seconds: float) -> Any:
        """What a job returned.

        Raises:
            JobFailed: it raised, or its process has ended.
            OutOfTime: it was not done in time; the process is ended.
        """
        end = time.monotonic() + seconds
        while not job.answer.exists():
            status = self._process.poll()
            if status is not None and not job.answer.exists():
                raise JobFailed(f"the process ended with status {status}", tail(self._log))
            if time.monotonic() > end:
                self.kill()
                raise OutOfTime(f"not done in {seconds:.0f} s")
            time.sleep(POLL_SECONDS)
        answer = json.loads(job.answer.read_text(encoding="utf-8"))
        if "error" in answer:
            raise JobFailed(answer["error"], answer["traceback"])
        return answer["value"]

    def run(self, job: Job, seconds: float) -> Any:
        """Send a job and wait for it."""
        return self.wait(self.send(job), seconds)

    def close(self) -> None:
        """Let the process end after its jobs; one that does not is killed."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the process and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Crew:
    """Workers for jobs that must not share a process; the next one is started before it is needed.

    Args:
        folder: of their logs.
        environment: variables beside those of this process.
        fresh: False: one worker does everything.
    """

    def __init__(self, folder: Path, environment: dict[str, str], fresh: bool = True) -> None:
        self._folder, self._environment, self._fresh = folder, environment, fresh
        self._numbers = itertools.count(1)
        self._standby: Worker | None = None
        self._all: list[Worker] = []

    def hire(self, name: str, environment: dict[str, str]) -> Worker:
        """A worker beside the others, for any number of jobs."""
        self._all.append(Worker(self._folder / f"{name}.log", environment))
        return self._all[-1]

    def take(self, more: bool) -> Worker:
        """A worker that has done nothing yet; `more`: another one will be needed after it."""
        worker = self._standby or self._next()
        self._standby = worker if not self._fresh else self._next() if more else None
        return worker

    def release(self, worker: Worker) -> None:
        """The worker is not needed any more: its memory is free before the next one begins."""
        if self._fresh:
            worker.close()

    def close(self) -> None:
        """End all workers."""
        for worker in self._all:
            worker.kill()

    def _next(self) -> Worker:
        return self.hire(f"worker-{next(self._numbers):02d}", self._environment)


def search_path() -> str:
    """PYTHONPATH with the repository and its library in front."""
    given = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join([str(ROOT / "workflow"), str(ROOT), *([given] if given else [])])


def tail(log: Path, lines: int = SHOWN_LINES) -> str:
    """The last lines of a file."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
