"""The tests of tests/gpu, in a process of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.record import FILE
from benchmarks.gpu.worker import END_SECONDS, NO_GPU, ROOT, OutOfTime, search_path


def run_tests(record: Path, log: Path, rehearsal: bool, seconds: float) -> int:
    """Run the tests; returns pytest's exit status.

    Args:
        record: file that gets a line for each test (`benchmarks.gpu.record`).
        log: file that gets what pytest prints.
        rehearsal: on the CPU in the place of the device.
        seconds: time they may take.

    Raises:
        OutOfTime: they took longer, and were ended.
    """
    words = ["tests/gpu", "-q", "--tb=short", "-p", "benchmarks.gpu.record", "-p", "no:cacheprovider"]
    variables = {FILE: str(record), "PYTHONPATH": search_path(), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    if rehearsal:
        variables |= {"RLHF_GPU_TESTS": "cpu", **NO_GPU}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *words],
            cwd=ROOT,
            env=os.environ | variables,
            stdout=stream,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise OutOfTime(f"not done in {seconds:.0f} s") from None
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End pytest as the keyboard does: its fixtures then end the processes that they have started."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
