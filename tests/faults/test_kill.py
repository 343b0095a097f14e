"""Real signals to real processes: nothing is lost, and the end is the same."""

import signal
import time

import pytest

from rlhf.files import read_json
from tests.faults.processes import DEEPSPEED, checkpoint_steps, finish, log, start, wait_for_step, workers

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["sft", "reward", "ppo"])
def test_sigkill_loses_no_more_than_the_checkpoint_interval(stage_run, expected, kind):
    run = stage_run(kind, checkpoint_steps=1)
    process = start(run)
    wait_for_step(run, process, 2)
    process.kill()
    process.wait()
    assert not (run.folder / "output/manifest.json").exists()
    finish(run)
    result = run.outcome()
    assert result.manifest["checkpoints"]["resumed_from_step"] >= 1
    assert (result.weights, result.metrics) == (expected(kind).weights, expected(kind).metrics)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_says_go_on(stage_run, expected, number):
    run = stage_run("sft")
    process = start(run)
    wait_for_step(run, process, 2)
    process.send_signal(number)
    assert process.wait(60) == 75, log(run)
    steps = checkpoint_steps(run.state)
    assert steps[-1] >= 2
    assert f"interrupted: {number.name}: stopped after step {steps[-1]}, saved step {steps[-1]}" in log(run)
    assert read_json(run.state / "progress.json")["status"] == "interrupted"
    if number is signal.SIGTERM:
        finish(run)
        assert run.outcome().weights == expected("sft").weights


def test_a_second_process_is_refused_while_the_first_works(stage_run, expected):
    run = stage_run("sft")
    first = start(run, pause=5.0)  # longer than the second needs to start
    wait_for_step(run, first, 1)
    second = start(run)
    assert second.wait(120) == 2, log(run)
    assert "this stage is being computed by another job" in log(run)
    assert first.wait(120) == 0, log(run)
    assert run.outcome().weights == expected("sft").weights


def test_one_rank_of_two_dies(stage_run):
    """The other one is ended in bounded time, and the next start ends as an unbroken run of two ranks does."""
    whole = stage_run("sft", zero_stage=2)
    finish(whole, *DEEPSPEED)
    run = stage_run("sft", zero_stage=2, checkpoint_steps=1)
    process = start(run, *DEEPSPEED)
    wait_for_step(run, process, 2)
    began = time.monotonic()
    workers(process)[1].kill()
    assert process.wait(120) != 0
    assert time.monotonic() - began < 90
    finish(run, *DEEPSPEED)
    result = run.outcome()
    assert result.manifest["checkpoints"]["resumed_from_step"] >= 1
    assert result.manifest["world_size"] == 2
    assert (result.weights, result.metrics) == (whole.outcome().weights, whole.outcome().metrics)


def test_a_disk_slower_than_a_collective_waits_ends_no_stage(stage_run):
    """Two models are written, the averaged policy first, each for longer than a process waits in a collective."""
    run = stage_run("ppo", {"iterations": 1, "ema_decay": 0.9})
    finish(run, *DEEPSPEED, pause=0.0, DISK_SECONDS="5")
    result = run.outcome()
    assert result.manifest["world_size"] == 2
    assert {name.split("/")[0] for name in result.weights} == {"model", "model_ema"}
