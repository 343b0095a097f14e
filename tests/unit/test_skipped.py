"""A step whose loss is not a number: skipped, counted and without a trace in the weights, or the end of the stage."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf.runtime.files import read_json

from rlhf.training.sft import AnswerLikelihood
from tests.oracle.conftest import Start, starts  # noqa: F401  (a fixture)
from tests.oracle.stages import Outcome, run, weights_in

SFT: dict[str, Any] = {
    "global_batch_size": 4,
    "num_train_epochs": 2,
    "max_seq_len": 32,
    "dropout": 0.0,
    "dtype": "fp32",
    "learning_rate": 1.0e-3,
    "lr_scheduler_type": "constant",
    "execution": {"per_device_train_batch_size": 4},
}


def train(folder: Path, begin: Start, **settings: Any) -> Outcome:
    return run("sft", folder, [begin.data], {"sft": SFT | settings}, model=begin.policy)


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the loss of the training steps of given numbers, from 1, not a number."""

    def install(*numbers: int) -> None:
        loss, steps = AnswerLikelihood.loss, [0]

        def poisoned(*arguments: Any) -> Any:
            total, statistics = loss(*arguments)
            steps[0] += torch.is_grad_enabled()
            bad = torch.is_grad_enabled() and steps[0] in numbers
            return (total * math.nan if bad else total), statistics

        monkeypatch.setattr(AnswerLikelihood, "loss", poisoned)

    return install


def test_skipped_steps_are_counted(starts, tmp_path, group, poison):  # noqa: F811
    poison(2, 3)
    outcome = train(tmp_path / "sft", starts["gpt2"], on_nonfinite="skip")
    lines = outcome.lines("train")
    assert [line.get("skipped_steps") for line in lines] == [None, 1, 2, None]
    assert ["loss" in line for line in lines] == [True, False, False, True]
    summary = json.loads((outcome.output / "manifest.json").read_text())["steps"]
    assert (summary["planned"], summary["done"], summary["skipped_steps"]) == (4, 4, 2)


def test_a_skipped_step_leaves_the_weights_alone(starts, tmp_path, group, poison):  # noqa: F811
    poison(1, 2, 3, 4)
    outcome = train(tmp_path / "sft", starts["gpt2"], on_nonfinite="skip")
    before, after = weights_in(starts["gpt2"].policy), weights_in(outcome.output / "model")
    assert all((after[name] == weight).all() for name, weight in before.items())
    first, last = outcome.lines("eval")[0], outcome.lines("eval")[-1]
    assert first["loss"] == last["loss"]


def test_without_leave_to_skip_the_stage_ends_and_names_the_rows(starts, tmp_path, group, poison):  # noqa: F811
    poison(3)
    with pytest.raises(FloatingPointError, match=r"the loss of step 3 is not finite \(the step was not applied\)"):
        train(tmp_path / "sft", starts["gpt2"], on_nonfinite="stop")
    found = read_json(tmp_path / "sft/state/nonfinite.json")
    assert (found["step"], found["loss"], len(found["rows"])) == (3, "nan", 4)
    rows = starts["gpt2"].data.rows_of("sft")
    assert all(dataset == 0 and row in rows for dataset, row in found["rows"])
    assert not (tmp_path / "sft/model").exists()
