"""A loss that becomes NaN in the middle: the stage stops and says where, or skips the step and counts it."""

import math

import pytest
import torch
from safetensors.torch import load_file

from rlhf.files import read_json
from rlhf.ppo import update
from rlhf.training.sft import AnswerLikelihood

pytestmark = pytest.mark.slow
MICRO_BATCHES = {"sft": 4, "ppo": 3}  # of one optimizer step


@pytest.fixture
def poison(monkeypatch):
    """Multiplies the loss of a kind of stage, in its n-th optimizer step from 1, by NaN."""

    def install(kind, step):
        owner, name = {"sft": (AnswerLikelihood, "loss"), "ppo": (update, "policy_loss")}[kind]
        original, calls = getattr(owner, name), [0]

        def poisoned(*arguments):
            result = original(*arguments)
            calls[0] += torch.is_grad_enabled()
            if calls[0] != MICRO_BATCHES[kind] * (step - 1) + 1 or not torch.is_grad_enabled():
                return result
            return result * math.nan if kind == "ppo" else (result[0] * math.nan, result[1])

        monkeypatch.setattr(owner, name, poisoned)

    yield install
    monkeypatch.undo()


def test_sft_stops_names_the_rows_and_can_go_on(stage_run, expected, poison, monkeypatch):
    run = stage_run("sft", checkpoint_steps=1)
    poison("sft", 3)
    with pytest.raises(FloatingPointError, match=r"the loss of step 3 is not finite \(the step was not applied\)"):
        run.start()
    found = read_json(run.state / "nonfinite.json")
    assert (found["step"], found["loss"], len(found["rows"])) == (3, "nan", 32)
    assert read_json(run.state / "failures/rank-0.json")["cause"] == "not_finite"
    assert read_json(run.state / "progress.json")["status"] == "failed"
    monkeypatch.undo()
    result = run.start()
    assert result.manifest["checkpoints"]["resumed_from_step"] == 2
    assert (result.weights, result.metrics) == (expected("sft").weights, expected("sft").metrics)


def test_ppo_stops_and_names_the_prompts(stage_run, poison):
    run = stage_run("ppo")
    poison("ppo", 6)  # the second step of the second iteration
    with pytest.raises(FloatingPointError, match=r"the gradient of step 2 is not finite \(the step was not applied\)"):
        run.start()
    assert len(read_json(run.state / "nonfinite.json")["rows"]) == 16
    assert not (run.folder / "output").exists()


@pytest.mark.parametrize(("kind", "step", "row"), [("sft", 3, 3), ("ppo", 6, 2)])
def test_a_skipped_step_is_counted_and_leaves_no_trace_in_the_weights(stage_run, expected, poison, kind, step, row):
    run = stage_run(kind, {"on_nonfinite": "skip"})
    poison(kind, step)
    result = run.start()
    skipped = {line["step"]: line.get("skipped_steps") for line in result.metrics if line["phase"] == "train"}
    assert [number for number, count in skipped.items() if count] == [row]
    assert skipped[row] == 1
    assert result.manifest["steps"]["done"] == result.manifest["steps"]["planned"]
    assert all(weight.isfinite().all() for weight in load_file(run.folder / "output/model/model.safetensors").values())
    assert result.weights != expected(kind).weights
