"""Loading: every weight of a folder, nothing else, in the precision that was asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, MambaConfig

from rlhf.errors import UserError
from rlhf.files import read_json
from rlhf.models.loading import load_policy, load_reward, load_reward_backbone
from rlhf.training.weights import plain_weights, whole_while_used
from tests.unit.conftest import edit_json, edit_weights, make_model
from tests.unit.partitions_of_two import LOADING, SAVING, ZERO3


def test_an_extra_weight_is_refused(gpt2_folder: Path) -> None:
    edit_weights(gpt2_folder, lambda tensors: tensors.update({"transformer.h.2.ln_1.bias": torch.zeros(32)}))
    for load in (lambda: load_policy(gpt2_folder, "fp32"), lambda: load_reward_backbone(gpt2_folder, "fp32", seed=0)):
        with pytest.raises(UserError, match=r"1 weight\(s\) unexpected, for example transformer\.h\.2\.ln_1\.bias"):
            load()


@pytest.mark.parametrize(("dtype", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_weights_have_the_precision_that_was_asked_for(gpt2_folder: Path, dtype: str, expected: torch.dtype) -> None:
    for model in (load_policy(gpt2_folder, dtype), load_reward_backbone(gpt2_folder, dtype, seed=0)):
        assert {parameter.dtype for parameter in model.parameters()} == {expected}


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_no_dropout_survives_the_override(tmp_path: Path, family: str) -> None:
    """Judged by what the model does: OPT and Llama apply dropout without a module."""
    folder = make_model(tmp_path / family, family, dropout=0.5)
    ids = torch.arange(3, 19)[None]
    for dropout, same in ((None, False), (0.0, True), (0.3, False)):
        for model in (load_policy(folder, "fp32", dropout), load_reward_backbone(folder, "fp32", 0, dropout)):
            with torch.no_grad():
                body = model.train().base_model
                first, second = (body(ids).last_hidden_state for _ in range(2))
            assert torch.equal(first, second) == same


def test_a_checkpoints_generation_defaults_are_dropped(gpt2_folder: Path, tmp_path: Path) -> None:
    hints = {"do_sample": True, "top_k": 7, "top_p": 0.5, "temperature": 0.1, "repetition_penalty": 9.0}
    (gpt2_folder / "generation_config.json").write_text(json.dumps({**hints, "eos_token_id": 3, "max_length": 5}))
    model = load_policy(gpt2_folder, "fp32")
    generation = model.generation_config
    assert (generation.eos_token_id, generation.pad_token_id) == (1, 0)
    assert not {name for name, value in hints.items() if getattr(generation, name, None) == value}
    model.save_pretrained(tmp_path / "saved")
    assert not hints.keys() & read_json(tmp_path / "saved/generation_config.json").keys()


# Reward models


# Huang et al. 2024: 1 / sqrt(width + 1); OPT's head reads the narrower word embedding.
@pytest.mark.parametrize(("family", "width", "deviation"), [("opt", 16, 0.2425), ("llama", 32, 0.1741)])
def test_a_score_head_is_drawn_from_its_seed_with_deviation_by_width(
    tmp_path: Path, family: str, width: int, deviation: float
) -> None:
    folder = make_model(tmp_path / family, family)
    heads = [load_reward_backbone(folder, "fp32", seed).score.weight.detach() for seed in (*range(40), 0)]
    assert heads[0].shape == (1, width)
    assert torch.equal(heads[0], heads[-1])
    assert not torch.equal(heads[0], heads[1])
    drawn = torch.cat(heads[:-1])
    assert float(drawn.std()) == pytest.approx(deviation, rel=0.08)
    assert abs(float(drawn.mean())) < deviation / 8


def test_a_trained_reward_model_needs_its_normalisation_and_its_head(gpt2_folder: Path, tmp_path: Path) -> None:
    model = load_reward_backbone(gpt2_folder, "fp32", seed=5)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"config\.json: reward_mean and reward_std are missing"):
        load_reward(tmp_path, "fp32")
    edit_json(tmp_path / "config.json", reward_mean=0.5, reward_std=2.0)
    loaded = load_reward(tmp_path, "fp32").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
    edit_weights(tmp_path, lambda tensors: tensors.pop("score.weight"))
    with pytest.raises(UserError, match=r"1 weight\(s\) missing, for example score\.weight"):
        load_reward(tmp_path, "fp32")


def test_families_that_cannot_score_are_refused(tmp_path: Path) -> None:
    MambaConfig(num_hidden_layers=1).save_pretrained(tmp_path / "mamba")
    with pytest.raises(UserError, match="mamba cannot be a reward model"):
        load_reward_backbone(tmp_path / "mamba", "fp32", seed=0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = BertConfig(**sizes, vocab_size=50, is_decoder=True)
    AutoModelForCausalLM.from_config(bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="bert has no linear `score` head; choose a decoder family"):
        load_reward_backbone(tmp_path / "bert", "fp32", seed=0)


# Partitions of ZeRO-3


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_partitions_hold_what_a_whole_model_holds(family_folder: Path, group: None, dtype: str) -> None:
    """Weights, the drawn head, buffers and types; and drawing nothing else, so that dropout stays the same."""
    zero3 = ZERO3 | ({"bf16": {"enabled": True}} if dtype == "bf16" else {})
    state = torch.get_rng_state()
    for load in (load_policy, lambda folder, dtype, zero3=None: load_reward_backbone(folder, dtype, 5, zero3=zero3)):
        expected, model = load(family_folder, dtype), load(family_folder, dtype, zero3=zero3)
        assert not any(parameter.numel() for parameter in model.parameters())
        found = plain_weights(model, keep=True)
        assert found.keys() == expected.state_dict().keys()
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=0)
        for one, other in zip(model.buffers(), expected.buffers(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        with torch.no_grad(), whole_while_used(model):
            ids = torch.tensor([[5, 6, 7]])
            torch.testing.assert_close(model.eval()(ids).logits, expected.eval()(ids).logits)
        assert not any(parameter.numel() for parameter in model.parameters())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.update({"transformer.h.2.ln_1.bias": torch.zeros(32)}), "unexpected, for example"),
        (lambda weights: weights.update({"transformer.ln_f.bias": torch.zeros(7)}), "of another shape, for example"),
        (lambda weights: weights.pop("transformer.ln_f.bias"), "missing, for example transformer.ln_f.bias"),
    ],
)
def test_a_damaged_folder_is_refused_before_it_is_partitioned(
    gpt2_folder: Path, group: None, change: Callable, message: str
) -> None:
    edit_weights(gpt2_folder, change)
    for load in (load_policy, lambda folder, dtype, zero3: load_reward_backbone(folder, dtype, 0, zero3=zero3)):
        with pytest.raises(UserError, match=message):
            load(gpt2_folder, "fp32", zero3=ZERO3)
    (gpt2_folder / "model.safetensors").write_bytes(b"\x00")
    with pytest.raises(UserError, match="no readable weights"):
        load_policy(gpt2_folder, "fp32", zero3=ZERO3)


def test_no_process_of_two_ever_holds_the_whole_model(gpt2_folder: Path, tmp_path: Path) -> None:
    """Nor gathers it for saving, but in the host memory of the process that writes."""
    script = Path(__file__).with_name("partitions_of_two.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    port = str(20_000 + os.getpid() % 20_000)
    subprocess.run([*launcher, "--master-port", port, str(script), str(gpt2_folder), str(tmp_path)], check=True)
    seen = [read_json(tmp_path / f"rank-{rank}.json") for rank in range(2)]
    for load, process in ((name, process) for process in seen for name in ("policy", "reward")):
        own = process[load]
        assert own["whole"] == 0
        assert own["share"] == pytest.approx(own["parameters"] * 4 / 2, rel=0.01)
    other = seen[1]["policy"]
    assert other["size"] == sum(parameter.nbytes for parameter in load_policy(gpt2_folder, "fp32").parameters())
    assert other["share"] + other["largest"] <= other["most_loading"] <= LOADING * other["size"]
    assert other["largest"] <= other["most_saving"] <= SAVING * other["size"]
    assert seen[0]["policy"]["as_saved"] and seen[0]["reward"]["as_saved"]
