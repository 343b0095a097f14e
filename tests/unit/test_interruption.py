"""Signals are requests; a second one ends the process; leases keep a second process away."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.runtime import lease as lease_module
from rlhf.runtime.interruption import Interruption, slurm_seconds_left
from rlhf.runtime.lease import StateLease


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_noted_and_handlers_come_back(number):
    outside = signal.signal(number, signal.default_int_handler)  # under `nohup make test` one is ignored
    before = signal.getsignal(number)
    interruption = Interruption()
    with interruption.listening():
        assert interruption.reason is None
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # delivered twice at once, as Slurm does
        time.sleep(0.01)
        assert interruption.reason == signal.Signals(number).name
    assert signal.getsignal(number) is before
    signal.signal(number, outside)


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interruption = Interruption()
        with interruption.listening():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
            assert interruption.reason is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("job", "status"), [(None, 128 + signal.SIGTERM), ("7", 0)])
def test_a_second_signal_ends_the_process_at_once_but_in_a_slurm_job(job, status):
    script = """
        import os, signal, time
        from rlhf.runtime import interruption
        interruption.REPEAT_SECONDS = 0.05
        wish = interruption.Interruption()
        with wish.listening():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            print("still here", flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 128 + signal.SIGTERM
    assert result.stdout == "still here\n"


def test_a_time_limit_is_expected_only_when_it_is_near():
    unlimited, limited = Interruption(), Interruption(100.0)
    unlimited.expect(1e9)
    limited.expect(50.0)
    assert unlimited.reason is None
    assert limited.reason is None
    limited.expect(91.0)  # a tenth is held back
    assert limited.reason == "the time limit is near"


def test_slurm_tells_the_limit_or_the_job_was_submitted_with_it(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_JOB_END_TIME"):
        monkeypatch.delenv(name, raising=False)
    assert slurm_seconds_left(10) is None
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert slurm_seconds_left(10) == 600.0
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 100))
    assert slurm_seconds_left(10) == pytest.approx(100, abs=3)


HOLD = """
    import sys, time
    from pathlib import Path
    from rlhf.runtime import lease
    lease.LEASE_SECONDS = float(sys.argv[2])
    held = lease.StateLease(Path(sys.argv[1]))
    held.acquire()
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path, seconds: float) -> subprocess.Popen:
    """Another process that holds a lease of so many seconds."""
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(folder), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lease of `tmp_path`."""
    process = hold(tmp_path, lease_module.LEASE_SECONDS)
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_at_once_and_told_who_holds_it(tmp_path, other):
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"computed by another job \(process {other.pid} on {socket.gethostname()}"):
        StateLease(tmp_path).acquire()
    assert time.monotonic() - start < 5


def test_the_lease_of_a_killed_process_is_free(tmp_path, other):
    other.kill()
    other.wait()
    lease = StateLease(tmp_path)
    lease.acquire()
    lease.require()
    assert json.loads((tmp_path / "holder.json").read_text())["pid"] == os.getpid()
    lease.release()


def test_a_silent_holder_on_another_host_is_superseded(tmp_path, monkeypatch):
    """The other host is this one under another name, so that its dead process cannot be looked up."""
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", 0.5)
    process = hold(tmp_path, 0.5)
    process.kill()
    process.wait()
    for name in ("lease", "holder.json"):
        file = tmp_path / name
        file.write_text(file.read_text().replace(socket.gethostname(), "elsewhere"))
    lease = StateLease(tmp_path)
    lease.acquire()
    lease.require()
    lease.release()


def test_who_was_superseded_must_not_write(tmp_path, monkeypatch):
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", 0.3)
    lease = StateLease(tmp_path)
    lease.acquire()
    lease.require()
    (tmp_path / "lease").unlink()  # as another host does with a claim that looked dead
    deadline = time.monotonic() + 10
    with pytest.raises(UserError, match="another process has taken over"):
        while time.monotonic() < deadline:
            lease.require()
            time.sleep(0.05)


def test_a_lease_never_taken_forbids_nothing(tmp_path):
    """The stage's classes are usable as a library, without a lease."""
    StateLease(tmp_path).require()
