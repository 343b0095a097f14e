"""Campaigns against what surrounds a trainer: Snakemake, its launchers, the other rank, the disk."""

from __future__ import annotations

import copy
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.faults.campaigns import PATIENCE, SETTINGS, Attempt, Campaign, DirectCampaign, is_halfway, whole_step
from tests.faults.processes import PAUSE, TWO_RANKS, log, slow_environment, start, wait_for_end, workers
from tests.faults.stages import Outcome, StageRun, outcome_of
from tests.project import Project
from tests.snakemake import ROOT, write_config

DELAY = 8.0  # seconds
REFUSAL = "this stage is being computed by another job"
REFUSED, AT_ONCE = "refused", "Snakemake killed, restarted at once"
AT_WORK = (REFUSED, AT_ONCE)  # afterwards the trainer may still work


class RanksCampaign(DirectCampaign):
    """Two ranks under the launcher of DeepSpeed: one dies or hangs for a while, or the launcher dies."""

    name = "two ranks"
    faults = 4

    def __init__(self, project: Project, kind: str, folder: Path, random_numbers: random.Random) -> None:
        super().__init__(project, kind, folder, random_numbers)
        self.launcher = (*TWO_RANKS, str(29780 + sorted(SETTINGS).index(kind)))  # kinds may run beside each other

    def _stage(self, folder: Path, **execution: Any) -> StageRun:
        keys = ("actor_zero_stage", "critic_zero_stage") if self.kind == "ppo" else ("zero_stage",)
        return super()._stage(folder, **dict.fromkeys(keys, 2), **execution)

    def strike(self, process: subprocess.Popen) -> str:
        ways = ["rank killed", "runner killed", "node launcher killed", "rank delayed"]
        how, ranks = ways[len(self.struck) % len(ways)], workers(process)
        if how == "runner killed" or not ranks:
            process.kill()
            return "runner killed"
        rank = self.random.choice(ranks)
        if how == "rank killed":
            rank.kill()
        elif how == "node launcher killed":
            rank.parent().kill()
        else:
            rank.suspend()
            threading.Timer(DELAY, rank.resume).start()
        return how


class FullDiskCampaign(DirectCampaign):
    """The state's disk is too small for a checkpoint at first, and then for more than one (needs root)."""

    name = "disk full"
    faults = 1

    def __init__(self, project: Project, kind: str, folder: Path, random_numbers: random.Random) -> None:
        super().__init__(project, kind, folder, random_numbers)
        self.interval = 1
        self.disk = self.stage.state.parent
        self.stage.execution["checkpoint_steps"] = self.interval

    def run(self) -> None:
        size = self._checkpoint_bytes()
        self.disk.mkdir()
        mount("-t", "tmpfs", "-o", f"size={size // 2}", "tmpfs", str(self.disk))
        try:
            self._roomier = f"remount,size={size + size // 2}"
            super().run()
        finally:
            subprocess.run(["umount", str(self.disk)], check=True)

    def attempt(self) -> bool:
        known = len(self.rows())
        process = start(self.stage, pause=0.0)
        code = process.wait(PATIENCE)
        if self.attempts:
            self.require_success(code, self.stage.folder / "output", log(self.stage))
            if not self.stage.outcome().manifest["checkpoints"]["skipped"]:
                self.problems["silent successes"].append("no checkpoint was skipped")
        else:
            if code != 1 or "it goes on from the last checkpoint" not in log(self.stage):
                self.problems["silent successes"].append(f"status {code} on a full disk: {log(self.stage)[-1500:]}")
            mount("-o", self._roomier, str(self.disk))
        fault = None if self.attempts else "disk full"
        self.attempts.append(Attempt(self.rows()[known:], fault, whole_step(self.stage.state, set())))
        return fault is None

    def _checkpoint_bytes(self) -> int:
        whole = self._stage(self.folder / "measured", checkpoint_steps=1, keep_state=True)
        whole.folder.mkdir()
        assert start(whole, pause=0.0).wait(PATIENCE) == 0, log(whole)
        self.measured = whole.outcome()
        folder = max((whole.state / "checkpoints").glob("*-step-*"))
        return sum(file.stat().st_blocks * 512 for file in folder.rglob("*"))


def mount(*arguments: str) -> None:
    """Mount or remount something."""
    subprocess.run(["mount", *arguments], check=True)


class SnakemakeRun:
    """One stage of a copy of the small project, slowed down, which Snakemake makes.

    Args:
        project: finished small project.
        kind: of the stage.
        folder: to work in.
        checkpoint_steps: as in the stage's `execution`.
    """

    def __init__(self, project: Project, kind: str, folder: Path, checkpoint_steps: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._work, self.log, self.journal = folder / "work", folder / "log.txt", folder / "journal.jsonl"
        shutil.copytree(project.folder, self._work)
        config = copy.deepcopy(project.config)
        config["defaults"][kind].setdefault("execution", {})["checkpoint_steps"] = checkpoint_steps
        write_config(self._work, config)
        place = f"{kind}/{project.results(kind).name}"
        self.output, self.state, self.stage_log = (
            self._work / path for path in (f"results/{place}", f"state/{place}", f"logs/{place}.log")
        )
        shutil.rmtree(self.output)
        self._target = f"results/{place}/manifest.json"

    def start(self, *arguments: str) -> subprocess.Popen:
        """Start Snakemake in a session of its own; what it prints goes to the log."""
        return self._snakemake(self._target, *arguments)

    def unlock(self) -> None:
        """Take away the lock of a Snakemake that was killed."""
        assert self._snakemake("--unlock").wait(PATIENCE) == 0, self.log.read_text()

    def _snakemake(self, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
        command += [*arguments, "--configfile", str(self._work / "config.yaml")]
        with self.log.open("ab") as log_file:
            return subprocess.Popen(
                command,
                cwd=self._work,
                env=slow_environment(self.journal, PAUSE),
                stdout=log_file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


class SnakemakeCampaign(Campaign):
    """SIGKILL of Snakemake, of the trainer below it, or of both; `snakemake` itself brings the stage to its end."""

    name = "under Snakemake"
    faults = 4

    def __init__(self, project: Project, kind: str, folder: Path, random_numbers: random.Random) -> None:
        super().__init__(project, kind, folder, random_numbers)
        self.made = SnakemakeRun(project, kind, folder, self.interval)

    def attempt(self) -> bool:
        self.made.unlock()
        known, printed = len(self.rows()), self.made.log.stat().st_size
        process = self.made.start("--rerun-incomplete")
        fault, began = None, time.monotonic()
        if len(self.struck) < self.faults and self.wait_for_moment(process, known):
            fault, began = self.strike(process), time.monotonic()
        code = process.wait(PATIENCE)
        text = self.made.log.read_bytes()[printed:].decode(errors="replace")
        if fault is None and code != 0 and REFUSAL in text:
            time.sleep(1.0)
            fault = REFUSED
        if fault is None:
            self.require_success(code, self.made.output, text)
        elif fault not in AT_WORK:
            wait_for_end(process.pid, PATIENCE)
        seconds = time.monotonic() - began
        whole = None if fault in AT_WORK else whole_step(self.made.state, set())
        halfway = is_halfway(self.made.state)
        self.attempts.append(Attempt(self.rows()[known:], fault, whole, halfway=halfway, seconds=seconds))
        return fault is None

    @property
    def struck(self) -> list[Attempt]:
        return [attempt for attempt in super().struck if attempt.fault != REFUSED]

    def strike(self, process: subprocess.Popen) -> str:
        """Kill, and say what."""
        ways = ["Snakemake killed", "trainer killed", "both killed", AT_ONCE]
        how = ways[len(self.struck) % len(ways)]
        trainers = [child for child in psutil.Process(process.pid).children(recursive=True) if is_trainer(child)]
        if how == "both killed":
            os.killpg(process.pid, signal.SIGKILL)
        elif how == "trainer killed" and trainers:
            trainers[0].kill()
        else:
            process.kill()
            how = how if how.startswith("Snakemake") else "Snakemake killed"
        return how

    def result(self) -> Outcome:
        return outcome_of(self.made.output)

    def expected(self) -> Outcome:
        return outcome_of(self.project.results(self.kind))


def is_trainer(process: psutil.Process) -> bool:
    """Whether a process runs a training script."""
    with suppress(psutil.NoSuchProcess):
        return any(word.endswith(".py") and "train_" in word for word in process.cmdline()[1:3])
    return False
