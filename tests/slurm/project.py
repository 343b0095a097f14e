"""Working directories of the tests, and Snakemake with the real profile in them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.snakemake import ENVIRONMENT, ROOT

IMPATIENT = Path(__file__).with_name("impatient.py")
PROFILE = ROOT / "profiles/slurm/config.yaml"
STUB_EXECUTION = {"nodes": 1, "gpus_per_node": 1, "threads": 1, "environment": {}, "wrapper": []}
WAIT_SECONDS = 240


def write_profile(
    folder: Path, partition: str | None = None, qos: str | None = None, warning: int = 20, **timers: int
) -> Path:
    """The real profile with other timers: jobs here take seconds, not hours.

    Args:
        folder: where to write it.
        partition: for all jobs, in place of the profile's.
        qos: for all jobs.
        warning: seconds between SIGTERM and the time limit.
        timers: further top-level numbers.
    """
    profile = yaml.safe_load(PROFILE.read_text())
    profile |= {"slurm-init-seconds-before-status-checks": 1, "latency-wait": 10}
    profile |= {name.replace("_", "-"): value for name, value in timers.items()}
    for resources in profile["set-resources"].values():
        resources["slurm_extra"] = resources["slurm_extra"].replace("TERM@300", f"TERM@{warning}")
        if partition:
            resources["slurm_partition"] = partition
        if qos:
            resources["qos"] = qos
    (folder / "profile").mkdir(parents=True, exist_ok=True)
    (folder / "profile/config.yaml").write_text(yaml.safe_dump(profile))
    return folder / "profile"


def start_snakemake(
    folder: Path, snakefile: Path, *arguments: str, before: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """Snakemake as a user starts it in a folder; a process group of its own, output in snakemake.out.

    Args:
        folder: the project's.
        snakefile: what to run.
        arguments: of Snakemake.
        before: words in front of the command.
    """
    command = [*before, sys.executable, IMPATIENT, "--snakefile", snakefile, "--nocolor", *arguments]
    with (folder / "snakemake.out").open("a") as output:
        return subprocess.Popen(
            list(map(str, command)),
            cwd=folder,
            env=ENVIRONMENT,
            stdout=output,
            stderr=output,
            text=True,
            process_group=0,
        )


def end(process: subprocess.Popen[str]) -> None:
    """Kill a process group that is still there."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def status(folder: Path) -> str:
    """What `rlhf-status` shows of a project."""
    command = [sys.executable, "-m", "rlhf.commands.status"]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout


def slurm(*command: str) -> str:
    """Output of a Slurm command."""
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def wait_until(
    condition: Callable[[], Any], what: str, seconds: float = WAIT_SECONDS, note: Callable[[], str] = str
) -> None:
    """Poll until something holds; `note` tells more where it does not."""
    end_time = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end_time, f"waited {seconds} s in vain: {what}; {note()}"
        time.sleep(0.2)


class Stub:
    """A project whose only stage is the counting trainer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state/sft/stub"
        self.processes: list[subprocess.Popen[str]] = []

    def start(
        self,
        *arguments: str,
        words: str = "",
        mem_mb: int = 1000,
        runtime: int = 30,
        profile: Path | None = None,
        execution: dict[str, Any] | None = None,
        before: Sequence[str] = (),
    ) -> subprocess.Popen[str]:
        """Start Snakemake; `words` are further arguments of the trainer, `before` is what stands before Snakemake."""
        config = {"words": words, "mem_mb": mem_mb, "runtime": runtime, "execution": STUB_EXECUTION | (execution or {})}
        (self.folder / "stub.yaml").write_text(yaml.safe_dump(config))
        given = ["--profile", profile or write_profile(self.folder), "--configfile", self.folder / "stub.yaml"]
        snakefile = Path(__file__).parent / "stub.smk"
        process = start_snakemake(self.folder, snakefile, *map(str, given), *arguments, before=before)
        self.processes.append(process)
        return process

    def starts(self) -> list[dict[str, Any]]:
        """What the trainer noted at each of its starts."""
        file = self.state / "starts.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def wait_for_start(self, number: int) -> dict[str, Any]:
        """Wait for the trainer's start of this number, and for its first new steps."""

        def started() -> bool:
            done = len(self.starts()) >= number
            assert done or any(process.poll() is None for process in self.processes), self.output()[-3000:]
            return done

        wait_until(started, f"start {number}", note=lambda: self.output()[-3000:])
        begin = self.starts()[number - 1]["step"]
        step = self.state / "step"
        wait_until(lambda: step.exists() and int(step.read_text()) > begin + 5, "steps")
        return self.starts()[number - 1]

    def finish(self, process: subprocess.Popen[str]) -> None:
        """Let the trainer finish, and Snakemake with it, without an error."""
        (self.state / "finish").touch()
        assert process.wait(WAIT_SECONDS) == 0, self.output()[-6000:]

    def result(self) -> int:
        """The step at which the trainer finished."""
        return json.loads((self.folder / "results/sft/stub/manifest.json").read_text())["step"]

    def output(self) -> str:
        """What Snakemake said."""
        return (self.folder / "snakemake.out").read_text()

    def log(self) -> str:
        """The stage's log."""
        return (self.folder / "logs/sft/stub.log").read_text()

    def jobs(self) -> list[str]:
        """States of all Slurm jobs of this project."""
        lines = slurm("squeue", "-h", "-t", "all", "-o", "%i|%T|%Z").splitlines()
        return [line.split("|")[1] for line in lines if line.endswith(f"|{self.folder}")]
