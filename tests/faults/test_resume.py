"""An interrupted stage ends with the weights and metrics of an uninterrupted one, wherever it was interrupted."""

import shutil

import pytest
import torch

from rlhf.files import read_json
from rlhf.training import stage as stage_module
from rlhf.training.checkpoints import Checkpoints
from rlhf.training.engine import Trainer
from rlhf.training.stage import TrainingStage
from tests.faults.stages import Killed, at_call, kill, request_stop

LORA = {"lora_dim": 4, "lora_module_name": "attn", "lora_learning_rate": 1e-2}
DROPOUT = {"dropout": 0.1}  # so that the state of the random generators matters
# DeepSpeed keeps small parameters whole under ZeRO-3, and all of these are small.
PARTITIONED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}


def zero(stage):
    """Execution settings of a ZeRO stage that really partitions."""
    return {"zero_stage": stage} | ({"deepspeed_config": PARTITIONED} if stage == 3 else {})


def assert_same(result, expected):
    assert result.weights == expected.weights
    assert result.metrics == expected.metrics


@pytest.mark.parametrize("kind", ["sft", "reward", "ppo"])
@pytest.mark.parametrize("boundary", [1, 2, 3])
def test_a_stop_between_steps(stage_run, expected, monkeypatch, kind, boundary):
    """The first boundary is before the first step."""
    run = stage_run(kind)
    with monkeypatch.context() as patch:
        at_call(patch, Checkpoints, "boundary", boundary, request_stop)
        assert run.is_stopped()
    assert not (run.folder / "output").exists()
    result = run.start()
    assert_same(result, expected(kind))
    assert result.manifest["checkpoints"]["resumed_from_step"] == (boundary - 1 or None)
    assert result.manifest["attempts"] == 2


@pytest.mark.parametrize("kind", ["sft", "reward", "ppo"])
@pytest.mark.parametrize("call", [1, 2, 5])
def test_a_stop_inside_an_evaluation_or_a_rollout(stage_run, expected, monkeypatch, kind, call):
    """The step is abandoned; in PPO calls 1 to 4 are generation batches, and later ones scoring."""
    execution = {} if kind == "ppo" else {"per_device_eval_batch_size": 32}
    run = stage_run(kind, **execution)
    with monkeypatch.context() as patch:
        at_call(patch, Checkpoints, "interrupt_point", call, request_stop)
        assert run.is_stopped()
    assert_same(run.start(), expected(kind, **execution))


@pytest.mark.parametrize("kind", ["sft", "reward", "ppo"])
def test_death_while_saving_falls_back_to_the_checkpoint_before(stage_run, expected, monkeypatch, kind):
    run = stage_run(kind, checkpoint_steps=1)
    with monkeypatch.context() as patch:
        at_call(patch, Trainer, "save", 2 if kind != "ppo" else 3, kill, after=True)
        with pytest.raises(Killed):
            run.start()
    result = run.start()
    assert_same(result, expected(kind))
    assert result.manifest["checkpoints"]["resumed_from_step"] == 1


@pytest.mark.parametrize("kind", ["sft", "reward", "ppo"])
def test_death_after_the_last_step(stage_run, expected, monkeypatch, kind):
    run = stage_run(kind, checkpoint_steps=1)
    with monkeypatch.context() as patch:
        at_call(patch, TrainingStage, "save", 1, kill)
        with pytest.raises(Killed):
            run.start()
    assert_same(run.start(), expected(kind))


@pytest.mark.parametrize("kind", ["sft", "reward", "ppo"])
def test_death_after_the_results_are_written(stage_run, expected, monkeypatch, kind):
    """Snakemake removes the results of a job that ended badly; they are not made again, but come back."""
    run = stage_run(kind)
    with monkeypatch.context() as patch:
        at_call(patch, stage_module, "set_aside", 1, kill, after=True)
        with pytest.raises(Killed):
            run.start()
    shutil.rmtree(run.folder / "output")
    with monkeypatch.context() as patch:
        at_call(patch, Trainer, "__init__", 1, kill)
        assert_same(run.start(), expected(kind))


def test_a_stop_on_an_epoch_border_and_again_and_again(stage_run, expected, monkeypatch):
    """Each attempt makes one step only; the epochs have different orders."""
    run, stops = stage_run("sft"), 0
    while True:
        with monkeypatch.context() as patch:
            at_call(patch, Checkpoints, "boundary", 2, request_stop)
            if not run.is_stopped():
                break
        stops += 1
    result = expected("sft")
    assert stops == result.manifest["steps"]["done"] >= 6
    assert_same(run.outcome(), result)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_zero_stage_goes_on_exactly(stage_run, expected, monkeypatch, zero_stage, dtype):
    settings = {"dtype": dtype, **DROPOUT}
    run = stage_run("sft", settings, **zero(zero_stage))
    with monkeypatch.context() as patch:
        at_call(patch, Checkpoints, "boundary", 4, request_stop)
        assert run.is_stopped()
    assert_same(run.start(), expected("sft", settings, **zero(zero_stage)))


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
@pytest.mark.parametrize("only", [True, False])
def test_lora_goes_on_exactly(stage_run, expected, monkeypatch, zero_stage, only):
    settings = {**LORA, "only_optimize_lora": only, **DROPOUT}
    run = stage_run("sft", settings, **zero(zero_stage))
    with monkeypatch.context() as patch:
        at_call(patch, Checkpoints, "boundary", 3, request_stop)
        assert run.is_stopped()
    assert_same(run.start(), expected("sft", settings, **zero(zero_stage)))


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_ppo_with_all_its_states_goes_on_exactly(stage_run, expected, monkeypatch, zero_stage):
    """A moving average, an adaptive KL coefficient, SFT rows mixed in, a value model that warms up first."""
    settings = {
        "ema_decay": 0.9,
        "kl_target": 1.0,
        "kl_horizon": 100,
        "ptx_coefficient": 1.0,
        "ptx_rows_per_step": 8,
        "critic_warmup_iterations": 1,
    }
    execution = zero(zero_stage)
    execution |= dict.fromkeys(("actor_zero_stage", "critic_zero_stage"), execution.pop("zero_stage"))
    run = stage_run("ppo", settings, **execution)
    for boundary in (2, 2):
        with monkeypatch.context() as patch:
            at_call(patch, Checkpoints, "boundary", boundary, request_stop)
            assert run.is_stopped()
    result = run.start()
    assert_same(result, expected("ppo", settings, **execution))
    assert any(name.startswith("model_ema") for name in result.weights)


def test_the_best_weights_and_early_stopping_survive(stage_run, expected, monkeypatch):
    settings = {
        "eval_interval": 1,
        "keep_best": True,
        "early_stopping_patience": 2,
        "learning_rate": 0.3,
        "lr_scheduler_type": "constant",
    }
    run = stage_run("sft", settings)
    with monkeypatch.context() as patch:
        at_call(patch, Checkpoints, "boundary", 3, request_stop)
        assert run.is_stopped()
    result, whole = run.start(), expected("sft", settings)
    assert_same(result, whole)
    assert whole.manifest["steps"]["stopped_early"]
    assert whole.manifest["steps"]["best_step"] < whole.manifest["steps"]["done"] < whole.manifest["steps"]["planned"]


def test_a_stage_that_runs_out_of_memory_leaves_its_measurement(stage_run, expected, monkeypatch):
    run = stage_run("sft", checkpoint_steps=1)
    message = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.15 GiB of which"

    def run_out(*_args, **_kwargs):
        raise torch.OutOfMemoryError(message)

    with monkeypatch.context() as patch:
        at_call(patch, Trainer, "step", 2, run_out)
        with pytest.raises(torch.OutOfMemoryError):
            run.start()
    report = read_json(run.state / "memory.json")
    assert (report["status"], report["stage"], report["failure"]["phase"]) == ("oom", "sft", "train")
    assert (report["failure"]["tried"], report["failure"]["message"]) == (5 * 2**29, message)
    (process,) = report["processes"]
    assert [phase["name"] for phase in process["phases"]] == ["load", "train"]
    with monkeypatch.context() as patch:
        at_call(patch, Checkpoints, "boundary", 2, request_stop)
        assert run.is_stopped()
    assert not (run.state / "memory.json").exists()  # it told of the attempt before
    assert_same(run.start(), expected("sft"))
    assert read_json(run.folder / "output/memory.json")["status"] == "ok"
