"""What surrounds a trainer is killed, or full: Snakemake, a launcher, the disk."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rlhf.runtime.failure import explain
from tests.faults.campaigns import read_journal, whole_step
from tests.faults.processes import DEEPSPEED, log, start, wait_for_end, wait_for_step
from tests.faults.stages import outcome_of
from tests.faults.surroundings import REFUSAL, SnakemakeRun, is_trainer, mount
from tests.project import Project

pytestmark = pytest.mark.slow
STOPPED = "the process that started this one is gone: stopped after step"


@pytest.fixture
def run(finished, tmp_path) -> SnakemakeRun:
    """An SFT stage that Snakemake makes, saved only when it is asked to stop."""
    return SnakemakeRun(finished, "sft", tmp_path / "run")


def begin(run: SnakemakeRun) -> subprocess.Popen:
    """Start Snakemake, and wait until its stage has done two steps."""
    process = run.start()
    deadline = time.monotonic() + 120
    while not any(row["action"] == "boundary" and row["step"] == 2 for row in read_journal(run.journal)):
        assert process.poll() is None and time.monotonic() < deadline, run.log.read_text()
        time.sleep(0.02)
    return process


def end(run: SnakemakeRun, finished: Project) -> None:
    """Start Snakemake again: the stage goes on from where it was saved, and ends as if nothing had been."""
    saved, known = whole_step(run.state, set()), len(read_journal(run.journal))
    assert run.start("--rerun-incomplete").wait(180) == 0, run.log.read_text()
    rows = read_journal(run.journal)[known:]
    assert next(row["step"] for row in rows if row["action"] == "restore" and row["when"] == "end") == saved >= 2
    result, expected = outcome_of(run.output), outcome_of(finished.results("sft"))
    assert (result.weights, result.metrics) == (expected.weights, expected.metrics)


def test_snakemake_is_killed_and_its_job_is_not(run, finished):
    """A second trainer is refused until the first one has noticed, saved and ended."""
    process = begin(run)
    trainer = next(child for child in psutil.Process(process.pid).children(recursive=True) if is_trainer(child))
    trainer.suspend()  # so that it is still there when the second one comes
    process.kill()
    process.wait()
    run.unlock()
    assert run.start("--rerun-incomplete").wait(120) != 0
    assert f"{REFUSAL} (process {trainer.pid} on" in run.log.read_text()
    trainer.resume()
    wait_for_end(process.pid, 60)
    assert STOPPED in (run.state / "logs/attempt-1.log").read_text()
    end(run, finished)


def test_what_was_finished_after_snakemake_was_killed_is_not_made_again(run, finished):
    """Killed while the trainer writes its results, which Snakemake then takes for incomplete."""
    process = run.start()
    deadline = time.monotonic() + 120
    while not any(row["action"] == "finish" for row in read_journal(run.journal)):
        assert process.poll() is None and time.monotonic() < deadline, run.log.read_text()
        time.sleep(0.02)
    process.kill()
    process.wait()
    wait_for_end(process.pid, 60)
    manifest, known = (run.output / "manifest.json").read_bytes(), len(read_journal(run.journal))
    run.unlock()
    assert run.start("--rerun-incomplete").wait(120) == 0, run.log.read_text()
    assert "was finished after its Snakemake had ended; accepted" in run.log.read_text()
    assert (run.output / "manifest.json").read_bytes() == manifest
    assert len(read_journal(run.journal)) == known
    assert outcome_of(run.output).weights == outcome_of(finished.results("sft")).weights


def test_ctrl_c_in_the_terminal_saves(run, finished):
    """It reaches Snakemake and the trainer, which are in the foreground together."""
    process = begin(run)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) != 0
    wait_for_end(process.pid, 60)
    assert "interrupted: SIGINT: stopped after step" in run.stage_log.read_text()
    end(run, finished)


def test_a_killed_launcher_leaves_no_rank_behind(stage_run):
    """Both ranks notice, save and end in bounded time; nothing was saved before."""
    broken = stage_run("sft", zero_stage=2)
    process = start(broken, *DEEPSPEED)
    wait_for_step(broken, process, 2)
    process.kill()
    process.wait()
    wait_for_end(process.pid, 60)
    assert STOPPED in log(broken)
    assert whole_step(broken.state, set()) >= 2


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[Path, str], None]]:
    """Mounts a small disk."""
    mounted = []

    def make(place: Path, size: str) -> None:
        place.mkdir(parents=True)
        try:
            mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))
        except (PermissionError, subprocess.CalledProcessError):
            pytest.skip("a small disk needs the right to mount one")
        mounted.append(place)

    yield make
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # the error holds a file open


def test_a_full_disk_stops_the_stage_or_costs_checkpoints(stage_run, expected, small_disk):
    """First the disk is too small for one checkpoint, and then for two."""
    measured = stage_run("sft", checkpoint_steps=1, keep_state=True)
    measured.start()
    folder = max((measured.state / "checkpoints").glob("*-step-*"))
    size = sum(file.stat().st_blocks * 512 for file in folder.rglob("*"))
    broken = stage_run("sft", checkpoint_steps=1)
    small_disk(broken.state.parent, str(size // 2))
    with pytest.raises((OSError, RuntimeError)) as raised:
        broken.start()
    assert explain(raised.value).cause == "disk_full"
    mount("-o", f"remount,size={size + size // 2}", str(broken.state.parent))
    result = broken.start()
    assert result.manifest["checkpoints"]["skipped"] > 0
    assert (result.weights, result.metrics) == (expected("sft").weights, expected("sft").metrics)
