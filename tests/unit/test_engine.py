"""The engine under every DeepSpeed option: the same training, or one clear refusal."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from deepspeed.accelerator import get_accelerator

from rlhf.data.batching import micro_batches
from rlhf.errors import UserError
from rlhf.models.loading import load_policy, load_reward_backbone, load_tokenizer
from rlhf.models.lora import add_lora
from rlhf.models.saving import write_model
from rlhf.models.scores import TokenScorer
from rlhf.training import distributed
from rlhf.training.engine import Trainer, partitioned_loading
from rlhf.training.reward import GroupPreference
from rlhf.training.sft import AnswerLikelihood
from rlhf.training.weights import WeightAverage, is_partitioned, plain_weights
from tests.specifications import changed
from tests.unit.conftest import ListCorpus
from tests.unit.test_training import OPTIMIZATION, engine_settings, lazy_losses

# Clipping and decay act, so that a wrong norm or a step too many shows in the weights.
SETTINGS = changed(OPTIMIZATION, gradient_clipping=0.5, weight_decay=0.1)
ADAPTERS = {"lora_dim": 4, "lora_module_name": "attn", "lora_learning_rate": 1e-2}


def steps(trainer: Trainer, corpus: ListCorpus, number: int, objective=None, after: Callable = lambda: None) -> list:
    """Gradient norms of a few steps on all rows, in four micro-batches."""
    objective, rows = objective or AnswerLikelihood(), np.arange(len(corpus))
    count = objective.count(corpus, rows)
    norms = []
    for _ in range(number):
        share = micro_batches(rows, objective.lengths(corpus), 4, 0, 1)
        norms.append(trainer.step(lazy_losses(trainer, objective, corpus, share, count)))
        after()
    return norms


def train(folder: Path, corpus: ListCorpus, output: Path, lora: bool = False, **changes) -> tuple[list, dict, dict]:
    """Norms of three steps; the weights that are saved, and those of the average."""
    settings, engine = changed(SETTINGS, **(ADAPTERS if lora else {})), engine_settings(micro_batch_size=4, **changes)
    model = load_policy(folder, engine.dtype, zero3=partitioned_loading(settings, engine))
    torch.manual_seed(0)
    add_lora(model, settings, "sft")
    trainer = Trainer(model, settings, engine, 3)
    average = WeightAverage(model, 0.5)
    norms = steps(trainer, corpus, 3, after=average.update)
    saved = []
    for name, weights in (("average", average.in_place()), ("last", nullcontext())):
        with weights:
            plain = plain_weights(model, keep=True)
            write_model(model, plain, load_tokenizer(folder), output / name, "5GB", None, "card")
        saved.append(load_policy(output / name, "fp32").state_dict())
    return norms, *saved


def farthest(first: dict, second: dict) -> float:
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("lora", [False, True])
def test_every_stage_and_offload_is_the_same_training(
    gpt2_folder, list_corpus, group, tmp_path, monkeypatch, dtype, lora
):
    """Norms, merged weights and averaged weights; half precision within what it rounds."""
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)  # slow on a CPU, but it computes
    exact = train(gpt2_folder, list_corpus, tmp_path / "exact", lora)
    rounding = {"fp32": 1e-6, "bf16": 5e-3, "fp16": 1e-3}[dtype]
    for stage, offload in ((0, False), (1, False), (2, True), (3, False), (3, True)):
        output = tmp_path / f"{stage}-{offload}"
        norms, *saved = train(gpt2_folder, list_corpus, output, lora, zero_stage=stage, offload=offload, dtype=dtype)
        np.testing.assert_allclose(norms, exact[0], rtol=rounding)
        for weights, expected in zip(saved, exact[1:], strict=True):
            assert farthest(weights, expected) < 5 * rounding
        assert farthest(*saved) > 1e-3  # the average lags behind


def test_a_step_that_overflows_is_skipped(gpt2_folder, list_corpus, group, monkeypatch):
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)
    model = load_policy(gpt2_folder, "fp16")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    overrides = {"fp16": {"enabled": True, "initial_scale_power": 24, "hysteresis": 1}}
    trainer = Trainer(model, SETTINGS, engine_settings(micro_batch_size=4, dtype="fp16", overrides=overrides), 3)
    assert steps(trainer, list_corpus, 1) == [None]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_precision_that_the_device_lacks_is_refused(gpt2_folder, group, monkeypatch):
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: False)
    with pytest.raises(UserError, match=r"dtype: fp16 does not work on this device \(cpu\); choose bf16, fp32"):
        Trainer(load_policy(gpt2_folder, "fp16"), SETTINGS, engine_settings(dtype="fp16"), 1)


def test_sums_over_processes_are_exact_above_the_integers_of_fp32(group, monkeypatch):
    monkeypatch.setattr(distributed, "on_cpu", lambda: False)  # as on a GPU
    assert distributed.all_sum(2**24 + 1, 0.5) == [2**24 + 1, 0.5]


# Gradient checkpointing


def saved_bytes(trainer: Trainer, corpus: ListCorpus) -> int:
    """What autograd keeps of one micro-batch, parameters apart."""
    total, own = 0, {parameter.data_ptr() for parameter in trainer.module.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += 0 if tensor.data_ptr() in own else tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        AnswerLikelihood().loss(trainer.engine, corpus, np.arange(8))
    return total


@pytest.mark.parametrize("lora", [False, True])
def test_gradient_checkpointing_is_seen_to_save_memory(family_folder, list_corpus, group, lora):
    kept = {}
    for checkpointing in (False, True):
        model = load_policy(family_folder, "fp32")
        settings = changed(
            SETTINGS, **ADAPTERS | {"lora_module_name": "1.", "lora_dim": 4 if lora else 0, "only_optimize_lora": True}
        )
        add_lora(model, settings, "sft")  # nothing below layer 1 has a gradient
        trainer = Trainer(model, settings, engine_settings(gradient_checkpointing=checkpointing), 2)
        kept[checkpointing] = saved_bytes(trainer, list_corpus)
        steps(trainer, list_corpus, 2)
        assert trainer.facts() == ({"gradient_checkpointing_effective": True} if checkpointing else {})
    assert kept[True] < (0.85 if lora else 0.6) * kept[False]


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_checkpointing_works_for_a_value_model_under_every_stage(gpt2_folder, list_corpus, group, zero_stage):
    engine = engine_settings(zero_stage=zero_stage, gradient_checkpointing=True)
    zero3 = partitioned_loading(SETTINGS, engine)
    trainer = Trainer(TokenScorer(load_reward_backbone(gpt2_folder, "fp32", seed=0, zero3=zero3)), SETTINGS, engine, 1)
    steps(trainer, list_corpus, 1, GroupPreference())
    assert trainer.facts() == {"gradient_checkpointing_effective": True}


@pytest.mark.parametrize("layers", [1, 2])
def test_checkpointing_without_effect_is_refused_in_the_first_step(gpt2_folder, list_corpus, group, layers):
    model = load_policy(gpt2_folder, "fp32")
    trainer = Trainer(model, SETTINGS, engine_settings(gradient_checkpointing=True), 1)
    for layer in model.transformer.h[:layers]:
        layer.gradient_checkpointing = False  # as a family that has the flag but does not read it
    with pytest.raises(UserError, match=f"no effect: {layers} of 2 layers kept their activations"):
        steps(trainer, list_corpus, 1)


def test_a_family_without_checkpointing_is_refused(gpt2_folder, group):
    model = load_policy(gpt2_folder, "fp32")
    model.supports_gradient_checkpointing = False
    with pytest.raises(UserError, match="gradient checkpointing is not possible"):
        Trainer(model, SETTINGS, engine_settings(gradient_checkpointing=True), 1)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_only_zero_3_partitions_parameters(gpt2_folder, group, zero_stage):
    engine = engine_settings(zero_stage=zero_stage)
    model = load_policy(gpt2_folder, "fp32", zero3=partitioned_loading(SETTINGS, engine))
    Trainer(model, SETTINGS, engine, 1)
    assert is_partitioned(model) == (zero_stage == 3)
