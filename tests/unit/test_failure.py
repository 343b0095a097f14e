"""Causes and remedies of failures, and the records of attempts."""

import errno
import json
import logging
import os
import subprocess
import sys

import pytest
import torch

from rlhf.errors import Interrupted, PeerFailed, UserError
from rlhf.runtime.attempts import Attempt
from rlhf.runtime.failure import explain
from rlhf.training.faults import FaultCounter

CASES = [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out_of_device_memory", "ZeRO stage"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_host_memory", "mem_mb"),
    (MemoryError(), "out_of_host_memory", "mem_mb"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_host_memory", "mem_mb"),
    (OSError(errno.ENOSPC, "No space left on device"), "disk_full", "last checkpoint"),
    (RuntimeError("[enforce fail] . unexpected pos 64 vs 0"), "disk_full", "free space"),
    (FloatingPointError("the loss of step 3 is not finite"), "not_finite", "learning rate"),
    (FileNotFoundError(2, "No such file", "x"), "missing_file", "snakemake"),
    (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), "lost_process", "another process"),
    (RuntimeError("NCCL error: unhandled system error"), "lost_process", "another process"),
    (RuntimeError("Failed to recv, got 0 bytes. Connection was likely closed. Did"), "lost_process", "another process"),
    (KeyError("x"), "unexpected", "traceback"),
]


@pytest.mark.parametrize(("error", "cause", "remedy"), CASES, ids=lambda value: str(value)[:30])
def test_causes(error, cause, remedy):
    failure = explain(error)
    assert failure.cause == cause
    assert remedy in failure.remedy
    assert type(error).__name__ in failure.message
    assert "\n" not in str(failure)


def test_a_users_mistake_explains_itself():
    assert str(explain(UserError("sft.x: wrong"))) == "sft.x: wrong"


def test_what_another_process_failed_of_is_not_taken_for_a_failure_of_this_one():
    failure = explain(PeerFailed("process 1 has failed: OSError: [Errno 28] No space left on device"))
    assert failure.cause == "lost_process"
    assert str(failure) == "process 1 has failed: OSError: [Errno 28] No space left on device"


def test_a_real_full_disk_is_recognised(tmp_path):
    """/dev/full is a device on which every write fails as on a full disk."""
    with pytest.raises(OSError, match="space") as raised, open("/dev/full", "w") as stream:
        stream.write("x" * 10**6)
    assert explain(raised.value).cause == "disk_full"
    with pytest.raises((OSError, RuntimeError)) as written:
        torch.save(torch.zeros(10**6), "/dev/full")
    assert explain(written.value).cause == "disk_full"


def test_every_attempt_keeps_its_log_and_the_last_failure_its_cause(tmp_path):
    logger, before = logging.getLogger("rlhf.test"), logging.getLogger("rlhf").handlers[:]
    logger.setLevel(logging.INFO)
    with pytest.raises(ZeroDivisionError), Attempt(tmp_path):
        logger.info("first")
        raise ZeroDivisionError("never mind")
    record = json.loads((tmp_path / "failures/rank-0.json").read_text())
    assert (record["cause"], record["rank"], record["pid"]) == ("unexpected", 0, os.getpid())
    with pytest.raises(Interrupted), Attempt(tmp_path) as attempt:
        logger.info("second")
        raise Interrupted("later")
    assert attempt.number == 2
    assert not (tmp_path / "failures").exists()  # an interruption is no failure
    logs = [(tmp_path / f"logs/attempt-{number}.log").read_text() for number in (1, 2)]
    assert "first" in logs[0] and "ZeroDivisionError" in logs[0] and "second" not in logs[0]
    assert "second" in logs[1]
    assert logging.getLogger("rlhf").handlers == before


def test_a_failure_that_cannot_be_recorded_leaves_no_open_log(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = logging.getLogger("rlhf").handlers[:]
    with pytest.raises(OSError, match="space"), Attempt(tmp_path):
        monkeypatch.setattr("rlhf.runtime.attempts.write_failure", full)
        raise ZeroDivisionError
    assert logging.getLogger("rlhf").handlers == before


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        ('UserError("a")', 2, "error: a"),
        ('Interrupted("b")', 75, "interrupted: b"),
        ('ValueError("c")', 1, "error: ValueError: c; the traceback above tells where"),
    ],
)
def test_exit_status_and_last_line(error, status, line):
    code = f"""
from rlhf.errors import Interrupted, UserError
from rlhf.runtime.logging import run_script
def main():
    raise {error}
run_script(main)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == status
    assert result.stderr.splitlines()[-1] == line
    assert ("Traceback" in result.stderr) == (status == 1)


ROWS = [(0, row) for row in range(20)]


def test_a_finite_step_passes(tmp_path, group):
    assert FaultCounter(tmp_path, "fp32", "stop").check(1, 0.5, 2.0, ROWS)
    assert FaultCounter(tmp_path, "fp32", "stop").check(1, None, 2.0, ROWS)


@pytest.mark.parametrize(
    ("loss", "norm", "text"),
    [
        (float("nan"), None, "the loss of step 3 is not finite (the step was not applied)"),
        (1.0, None, "the gradient of step 3 is not finite (the step was not applied)"),
        (1.0, float("inf"), "the step was applied: the weights are lost"),
    ],
)
def test_a_step_that_is_not_finite_stops_and_names_its_rows(tmp_path, group, loss, norm, text):
    with pytest.raises(FloatingPointError) as raised:
        FaultCounter(tmp_path, "fp32", "stop").check(3, loss, norm, ROWS)
    assert text in str(raised.value)
    assert "0:0, 0:1" in str(raised.value)
    assert json.loads((tmp_path / "nonfinite.json").read_text())["rows"] == [list(row) for row in ROWS]


def test_it_is_skipped_where_that_is_asked_or_belongs_to_loss_scaling(tmp_path, group, caplog):
    assert not FaultCounter(tmp_path, "fp32", "skip").check(1, float("nan"), None, ROWS)
    assert not FaultCounter(tmp_path, "fp16", "stop").check(1, 1.0, None, ROWS)
    assert caplog.text.count("is skipped") == 2
    with pytest.raises(FloatingPointError, match="weights are lost"):  # what was applied cannot be skipped
        FaultCounter(tmp_path, "fp32", "skip").check(1, 1.0, float("nan"), ROWS)
