"""Stages that are broken at random moments, again and again, until they are done all the same."""

from __future__ import annotations

import json
import random
import subprocess
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rlhf.files import read_json
from rlhf.reporting.verify import check
from tests.faults.processes import log, start, wait_for_end
from tests.faults.stages import SMALL, Outcome, StageRun
from tests.project import Project

SETTINGS = SMALL | {"ppo": {"iterations": 6}}
PATIENCE = 240.0  # seconds after which an attempt counts as hung


@dataclass
class Attempt:
    """One start of a stage, and what became of it.

    Attributes:
        rows: what the stage noted.
        fault: what broke it; None: nothing did.
        whole: step of the newest whole checkpoint afterwards; 0 where there was none, None where it was still at work.
        damaged: whether a checkpoint was damaged afterwards.
        halfway: whether its newest checkpoint was not complete yet.
        seconds: from the fault until all its processes were gone.
    """

    rows: list[dict[str, Any]]
    fault: str | None
    whole: int | None
    damaged: bool = False
    halfway: bool = False
    seconds: float = 0.0

    @property
    def restored(self) -> int | None:
        """Step at which it went on; None: it did not come so far."""
        steps = [row["step"] for row in self.rows if row["action"] == "restore" and row["when"] == "end"]
        return steps[0] if steps else None

    @property
    def reached(self) -> int | None:
        """Steps done at its end; None: it did not come so far."""
        return max((row["step"] for row in self.rows if row["action"] == "boundary"), default=None)

    def doing(self, kind: str) -> str:
        """What it was doing at its end."""
        last = self.rows[-1] if self.rows else {"action": "restore", "when": "begin"}
        if last["action"] == "restore":
            return "start-up"
        if last["action"] in ("save", "finish"):
            return {"save": "checkpoint", "finish": "results"}[last["action"]]
        if kind == "ppo":
            return "rollout or update"
        return "evaluation" if last["action"] == "inside" else "step"


def read_journal(path: Path) -> list[dict[str, Any]]:
    """What a stage noted so far; a last line that is cut off is none."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def lost_steps(attempts: list[Attempt]) -> list[int]:
    """For each attempt, how many of its steps had to be done again."""
    lost = []
    for place, attempt in enumerate(attempts):
        later = [other.restored for other in attempts[place + 1 :] if other.restored is not None]
        lost.append(max(0, attempt.reached - later[0]) if later and attempt.reached is not None else 0)
    return lost


def is_halfway(state: Path) -> bool:
    """Whether not all ranks have vouched for the newest checkpoint."""
    folders = sorted((state / "checkpoints").glob("*-step-*"))
    return bool(folders) and whole_step(state, set()) < int(folders[-1].name.rsplit("-", 1)[1])


def whole_step(state: Path, damaged: set[str]) -> int:
    """Step of the newest checkpoint for which all ranks vouched, and which was not damaged; 0 where there is none."""
    steps = [0]
    for folder in (state / "checkpoints").glob("*-step-*"):
        records = list(folder.glob("rank-*.json"))
        if folder.name not in damaged and records:
            processes = read_json(records[0])["identity"]["topology"]["processes"]
            steps.append(int(folder.name.rsplit("-", 1)[1]) if len(records) == processes else 0)
    return max(steps)


class Campaign(ABC):
    """One stage under faults until it is done.

    Args:
        project: finished small project.
        kind: of the stage.
        folder: to work in.
        random_numbers: for moments and kinds of faults.
    """

    name: ClassVar[str]
    faults = 3  # at most

    def __init__(self, project: Project, kind: str, folder: Path, random_numbers: random.Random) -> None:
        self.project, self.kind, self.folder, self.random = project, kind, folder, random_numbers
        self.interval = random_numbers.randint(1, 2)
        self.attempts: list[Attempt] = []
        self.problems: dict[str, list[str]] = {name: [] for name in PROBLEMS}
        self.outcome: Outcome | None = None
        self.journal = folder / "journal.jsonl"
        self._damaged: set[str] = set()
        folder.mkdir(parents=True)

    @property
    def struck(self) -> list[Attempt]:
        """Attempts that something broke."""
        return [attempt for attempt in self.attempts if attempt.fault is not None]

    def run(self) -> None:
        """Attempts, and faults in them, until the stage is done; what must not be is noted as a problem."""
        try:
            while not self.attempt():
                if len(self.attempts) > 40:
                    raise TimeoutError("does not come to an end")
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            self.problems["hangs"].append(str(error))
            return
        self.judge()

    def judge(self) -> None:
        """Compare what the stage ended with, and where it went on each time."""
        try:
            self.outcome, expected = self.result(), self.expected()
        except FileNotFoundError as error:
            self.problems["silent successes"].append(str(error))
            return
        if (self.outcome.weights, self.outcome.metrics) != (expected.weights, expected.metrics):
            self.problems["differing results"].append(self.name)
        for attempt, lost in zip(self.attempts, lost_steps(self.attempts), strict=True):
            # What was hit in the middle of a checkpoint goes on from the one before, which is an interval older.
            if lost > self.interval * (1 + attempt.halfway) and not attempt.damaged:
                self.problems["steps lost beyond the interval"].append(f"{lost} of {self.interval}")
        for before, after in zip(self.attempts, self.attempts[1:], strict=False):
            if before.whole is not None and after.restored not in (None, before.whole):
                self.problems["whole checkpoints not used"].append(f"{after.restored} in place of {before.whole}")
        pids = [row["pid"] for row in self.rows()]
        order = [pid for place, pid in enumerate(pids) if place == 0 or pids[place - 1] != pid]
        if len(order) != len(set(order)):
            self.problems["two writers at once"].append(str(order))

    @abstractmethod
    def attempt(self) -> bool:
        """One start of the stage, with a fault where there are some left; whether the stage is done."""

    @abstractmethod
    def result(self) -> Outcome:
        """What the stage left."""

    @abstractmethod
    def expected(self) -> Outcome:
        """What it leaves where nothing breaks it."""

    def rows(self) -> list[dict[str, Any]]:
        """What the stage noted so far."""
        return read_journal(self.journal)

    def wait_for_moment(self, process: subprocess.Popen, known: int) -> bool:
        """Wait for a random moment of an attempt; False where it has ended before.

        One moment in six lies in the start-up, the others anywhere after the first of the stage's notes.
        """
        begin, early = time.monotonic(), self.random.random() < 1 / 6
        after = self.random.uniform(0.5, 6.0) if early else self.random.uniform(0.0, 4.0)
        while process.poll() is None and time.monotonic() - begin < PATIENCE:
            if early or len(self.rows()) > known:
                time.sleep(after)
                return process.poll() is None
            time.sleep(0.01)
        return False

    def require_success(self, code: int, output: Path, text: str) -> None:
        """What an attempt that nothing broke must be: done, and whole."""
        if code != 0:
            self.problems["failures without a fault"].append(f"status {code}: {text[-1500:]}")
        elif check(output) is not None:
            self.problems["silent successes"].append(str(check(output)))


PROBLEMS = (
    "steps lost beyond the interval",
    "whole checkpoints not used",
    "differing results",
    "hangs",
    "silent successes",
    "failures without a fault",
    "two writers at once",
)


class DirectCampaign(Campaign):
    """SIGKILL of a trainer that runs alone; one time in four its newest checkpoint is damaged afterwards."""

    name = "trainer alone"
    _expected: ClassVar[dict[str, Outcome]] = {}

    def __init__(self, project: Project, kind: str, folder: Path, random_numbers: random.Random) -> None:
        super().__init__(project, kind, folder, random_numbers)
        self.launcher: tuple[str, ...] = ()
        self.stage = self._stage(folder, checkpoint_steps=self.interval)
        self.measured: Outcome | None = None  # of a run without pauses that saved after each step

    def _stage(self, folder: Path, **execution: Any) -> StageRun:
        return StageRun(self.project, self.kind, folder, SETTINGS[self.kind], execution)

    def attempt(self) -> bool:
        known = len(self.rows())
        process = start(self.stage, *self.launcher)
        fault, began = None, time.monotonic()
        if len(self.struck) < self.faults and self.wait_for_moment(process, known):
            fault, began = self.strike(process), time.monotonic()
        code = process.wait(PATIENCE)
        wait_for_end(process.pid, PATIENCE)
        seconds = time.monotonic() - began
        # As Snakemake sees it: DeepSpeed's runner ends with status 0 where its node launcher was killed by a signal.
        done = fault is None or (code == 0 and (self.stage.folder / "output/manifest.json").exists())
        if done:
            self.require_success(code, self.stage.folder / "output", log(self.stage))
        halfway = is_halfway(self.stage.state)
        damage = None if done or self.random.random() < 3 / 4 else self.damage()
        if damage is not None:
            fault = f"{fault}, checkpoint {damage}"
        whole = whole_step(self.stage.state, self._damaged)
        self.attempts.append(Attempt(self.rows()[known:], fault, whole, damage is not None, halfway, seconds))
        return done

    def strike(self, process: subprocess.Popen) -> str:
        """Break the stage; returns how."""
        process.kill()
        return "SIGKILL"

    def damage(self) -> str | None:
        """Break a file of the newest checkpoint, which then is no longer whole; None where there is none."""
        folders = sorted((self.stage.state / "checkpoints").glob("*-step-*"))
        files = [file for file in sorted(folders[-1].rglob("*")) if file.is_file()] if folders else []
        if not files:
            return None
        self._damaged.add(folders[-1].name)
        file, way = self.random.choice(files), self.random.choice(["truncated", "flipped", "removed"])
        content = bytearray(file.read_bytes())
        if way == "removed" or not content:
            file.unlink()
            return "removed"
        if way == "flipped":
            content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
        file.write_bytes(content if way == "flipped" else content[: len(content) // 2])
        return way

    def result(self) -> Outcome:
        return self.stage.outcome()

    def expected(self) -> Outcome:
        key = repr((self.kind, self.launcher))
        if key not in self._expected:
            whole = self._stage(self.folder / "whole")
            whole.folder.mkdir()
            assert start(whole, *self.launcher, pause=0.0).wait(PATIENCE) == 0, log(whole)
            self._expected[key] = whole.outcome()
        return self._expected[key]
