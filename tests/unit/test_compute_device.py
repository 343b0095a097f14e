"""A process computes where the configuration says, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf.errors import UserError
from rlhf.evaluation.frame import Evaluation
from rlhf.training import distributed
from rlhf.training.stage import StagePaths, TrainingStage
from tests.specifications import specification

WORKFLOW = Path(__file__).resolve().parents[2] / "workflow"
PROGRAM = """
import os, torch
from rlhf.training.distributed import on_cpu, require_device
print(on_cpu(), os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count())
require_device(0)
require_device(2)
"""
PATHS = StagePaths([], [], Path("results/sft/a"), Path("state/sft/a"))


def said(**variables: str) -> list[str]:
    """What a process says that is started by hand with these variables, for a stage of two GPUs."""
    around = {name: text for name, text in os.environ.items() if not name.startswith(("CUDA_", "DS_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=around | {"PYTHONPATH": str(WORKFLOW)} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    return [*done.stdout.splitlines(), *(done.stderr.splitlines()[-1:] if done.returncode else [])]


def test_deepspeeds_variable_hides_what_its_launcher_shows() -> None:
    """It counts processes in CUDA_VISIBLE_DEVICES also on the CPU."""
    assert said(CUDA_VISIBLE_DEVICES="0,1", DS_ACCELERATOR="cpu") == ["True  0"]


def test_a_process_that_sees_no_device_does_not_train_on_the_cpu_by_itself() -> None:
    first, last = said(CUDA_VISIBLE_DEVICES="")
    assert first == "True  0"
    assert (
        "UserError: execution.gpus_per_node: 2, but this process sees no CUDA device (CUDA_VISIBLE_DEVICES=''" in last
    )


@pytest.mark.parametrize("kind", ["sft", "evaluate_sft"])
def test_a_stage_looks_before_it_loads_anything(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(distributed, "on_cpu", lambda: True)
    monkeypatch.setattr(distributed, "CPU_ASKED", False)
    made: Any = TrainingStage if kind == "sft" else Evaluation
    with pytest.raises(UserError, match=r"execution\.gpus_per_node: 1, but this process sees no CUDA device"):
        made(specification(kind, execution={"gpus_per_node": 1}), PATHS)
    monkeypatch.setattr(distributed, "on_cpu", lambda: False)
    monkeypatch.setattr(distributed, "device_name", lambda: "Stand-in GPU-1")
    with pytest.raises(UserError, match=r"gpus_per_node: 0, but .* would compute on Stand-in GPU-1\. .*launch\.py"):
        made(specification(kind), PATHS)


def test_a_process_without_a_device_of_its_own_is_told_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    accelerator = SimpleNamespace(device_count=lambda: 2, set_device=chosen.append)
    monkeypatch.setattr(distributed, "get_accelerator", lambda: accelerator)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    distributed._take_own_device(1)
    with pytest.raises(UserError, match=r"process 2 of host .* needs a GPU, but 2 can be seen .*'4,5'"):
        distributed._take_own_device(2)
    assert chosen == [1]


def test_a_device_is_named_by_model_and_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(name="NVIDIA L4", uuid="5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77")
    monkeypatch.setattr(distributed, "on_cpu", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", {3: found}.__getitem__)
    assert distributed.device_name() == "NVIDIA L4 GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77"
