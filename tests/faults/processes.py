"""Stages in processes of their own, which real signals reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.faults.stages import StageRun
from tests.snakemake import ENVIRONMENT, ROOT

PAUSE = 0.3
TWO_RANKS = (str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--master_port")
DEEPSPEED = (*TWO_RANKS, "29777")


def command(run: StageRun, *launcher: str, pause: float) -> list[str]:
    """The command line of a stage, slowed down by a pause in seconds at each boundary between steps."""
    spec = run.spec
    (run.folder / "spec.yaml").write_text(yaml.safe_dump(spec.identity()))
    results, upstream = run.project.folder / "results", spec.upstream
    models = (
        ["--sft", str(run.project.results("sft") / "model"), "--reward", str(run.project.results("reward") / "model")]
        if run.kind == "ppo"
        else ["--model", str(run.project.folder / "resources/models" / upstream.model / "model")]
    )
    return [
        *(launcher or (sys.executable,)),
        str(ROOT / "tests/faults/slow.py"),
        str(pause),
        str(ROOT / f"workflow/scripts/train_{run.kind}.py"),
        *("--spec", str(run.folder / "spec.yaml"), "--execution", spec.execution.model_dump_json()),
        *("--tokens", *(str(results / "tokens" / id) for id in upstream.tokens)),
        *("--split", *(str(results / "split" / id / "rows") for id in upstream.split)),
        *("--output", str(run.folder / "output"), "--state", str(run.state)),
        *models,
    ]


def start(run: StageRun, *launcher: str, pause: float = PAUSE, **variables: str) -> subprocess.Popen:
    """Start a stage with further environment variables; what it prints is appended to log.txt."""
    with (run.folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            command(run, *launcher, pause=pause),
            env=ENVIRONMENT | {"JOURNAL": str(run.journal)} | variables,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for_step(run: StageRun, process: subprocess.Popen, step: int, timeout: float = 120) -> None:
    """Wait until a stage has done so many steps."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        assert process.poll() is None, log(run)
        file = run.state / "metrics.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        if any(row["step"] >= step for row in rows):
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached:\n{log(run)}")


def slow_environment(journal: Path, pause: float = PAUSE) -> dict[str, str]:
    """An environment in which training scripts that Snakemake starts are slow and keep a journal."""
    paths = (ROOT / "tests/faults/slowly", ENVIRONMENT["PYTHONPATH"], ROOT)
    return ENVIRONMENT | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "STAGE_PAUSE": str(pause),
        "JOURNAL": str(journal),
    }


def session(leader: int) -> list[psutil.Process]:
    """The living processes of a session."""
    return [process for process in psutil.process_iter() if _session_of(process) == leader]


def _session_of(process: psutil.Process) -> int | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getsid(process.pid)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None


def wait_for_end(leader: int, timeout: float = 120) -> float:
    """Wait until all processes of a session have ended; returns the seconds it took."""
    start = time.monotonic()
    while left := session(leader):
        if time.monotonic() - start > timeout:
            raise TimeoutError(f"still there after {timeout} s: {[process.cmdline() for process in left]}")
        time.sleep(0.1)
    return time.monotonic() - start


def log(run: StageRun) -> str:
    """The end of what a stage printed."""
    return (run.folder / "log.txt").read_text(errors="replace")[-4000:]


def finish(run: StageRun, *launcher: str, **options: Any) -> None:
    """Run a stage to its end; options as of `start`."""
    process = start(run, *launcher, **options)
    assert process.wait(300) == 0, log(run)


def workers(process: subprocess.Popen) -> list[psutil.Process]:
    """The training processes below a launcher."""
    found = psutil.Process(process.pid).children(recursive=True)
    return [child for child in found if "--local_rank" in " ".join(child.cmdline()) and "slow.py" in child.cmdline()[2]]


def checkpoint_steps(state: Path) -> list[int]:
    """Steps of the checkpoints that are there."""
    return sorted(int(path.name.rsplit("-", 1)[1]) for path in (state / "checkpoints").glob("*-step-*"))
