"""What a training job asks for in its next attempt."""

import json

import pytest

from rlhf.config.launch import planned_execution, planned_memory
from rlhf.records.attempts import out_of_memory_failures
from rlhf.runtime.attempts import Attempt

PLAN = {
    "execution": {"gradient_checkpointing": False, "mem_mb": None},
    "adaptations": [{"name": "offload"}],
    "resources": {"mem_mb": 1000},
    "after_out_of_memory": [
        {"name": "checkpointing", "execution": {"gradient_checkpointing": True, "mem_mb": None}},
        {"name": "half", "execution": {"gradient_checkpointing": True, "size": 4, "mem_mb": None}},
    ],
}


class OutOfMemoryError(RuntimeError):
    """Named as PyTorch's."""


def run_out_of_memory(state):
    with pytest.raises(OutOfMemoryError), Attempt(state):
        raise OutOfMemoryError("CUDA out of memory")


def test_the_first_attempt_runs_as_planned(tmp_path):
    execution = planned_execution(PLAN, tmp_path)
    assert execution == {"gradient_checkpointing": False, "mem_mb": 1000, "memory_steps": ["offload"]}
    assert planned_memory(PLAN, tmp_path, 1) == 1000


def test_each_failure_by_device_memory_is_one_step_down(tmp_path):
    names = []
    for failures in range(1, 5):
        run_out_of_memory(tmp_path)
        assert out_of_memory_failures(tmp_path) == failures
        names.append(planned_execution(PLAN, tmp_path)["memory_steps"][1:])
    both = ["checkpointing", "half"]
    assert names == [["checkpointing"], both, both, both]  # there are no more
    assert planned_execution(PLAN, tmp_path)["size"] == 4


def test_other_failures_and_interruptions_keep_the_step(tmp_path):
    run_out_of_memory(tmp_path)
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), Attempt(tmp_path):
            raise error("x")
    assert planned_execution(PLAN, tmp_path)["memory_steps"] == ["offload", "checkpointing"]


@pytest.mark.parametrize(
    ("attempt", "status", "expected"),
    [(1, "running", 1000), (2, "running", 1500), (3, "running", 2250), (2, "interrupted", 1000), (2, "failed", 1000)],
)
def test_who_was_killed_without_a_word_gets_more_host_memory(tmp_path, attempt, status, expected):
    (tmp_path / "progress.json").write_text(json.dumps({"status": status}))
    assert planned_memory(PLAN, tmp_path, attempt) == expected
