"""Workers of the GPU measurement: what becomes of jobs that return, raise, hang or end their process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.gpu.worker import NO_GPU, Crew, Job, JobFailed, OutOfTime, Worker

pytestmark = pytest.mark.slow
SECONDS = 120.0


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    """Workers that are ended with the test."""
    made = Crew(tmp_path, NO_GPU)
    yield made
    made.close()


def process_of(worker: Worker) -> int:
    """Number of a worker's process."""
    return int(worker.run(Job("os:getpid"), SECONDS))


def test_a_worker_goes_on_after_a_job_that_raises_and_tells_of_one_that_ends_it(crew: Crew) -> None:
    worker = crew.take(more=False)
    first = process_of(worker)
    with pytest.raises(JobFailed, match="FileNotFoundError: .*nowhere") as caught:
        worker.run(Job("os:stat", {"path": "nowhere"}), SECONDS)
    assert "Traceback" in caught.value.details
    assert process_of(worker) == first != os.getpid()
    with pytest.raises(JobFailed, match="ended with status 3"):
        worker.run(Job("os:_exit", {"status": 3}), SECONDS)
    with pytest.raises(JobFailed, match="ended with status 3"):
        worker.run(Job("os:getpid"), SECONDS)


def test_a_job_that_hangs_is_ended_in_time_and_the_next_worker_is_another(crew: Crew) -> None:
    worker = crew.take(more=True)
    process = process_of(worker)
    hanging = worker.send(Job("signal:pause"))
    started = time.monotonic()
    with pytest.raises(OutOfTime, match="not done in 1 s"):
        worker.wait(hanging, 1.0)
    assert time.monotonic() - started < 30
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    follower = crew.take(more=False)
    waiting = follower.send(Job("os:getpid", after=hanging))
    assert not waiting.answer.exists()
    hanging.answer.write_text("{}")  # as if the other worker had answered
    assert follower.wait(waiting, SECONDS) != process
