"""Adapters in delivered models: nothing that was trained is lost, in any phase, in any precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from rlhf.config.sources import ModelSettings
from rlhf.config.stages import Optimization
from rlhf.errors import UserError
from rlhf.models.cache import cache_model
from rlhf.models.loading import DTYPES, load_policy, load_reward, load_reward_backbone, load_tokenizer
from rlhf.models.lora import add_lora
from rlhf.models.merged import FILE, LowRank, fits, half_precision_error, read_merged, write_merged
from rlhf.models.saving import write_adapter, write_model
from rlhf.training import weights as training_weights
from rlhf.training.engine import parameter_groups
from rlhf.training.weights import adapter_weights, computing_in_fp32, merged_adapters, plain_weights, with_inherited
from tests.unit.conftest import edit_json, edit_weights, make_model

PATTERNS = {"gpt2": "h.", "opt": "decoder.layers.", "llama": "layers."}
ATTENTION = {"gpt2": "attn.c_attn", "opt": "q_proj", "llama": "q_proj"}
IDS = torch.tensor([[3, 4, 5, 6, 7, 11, 9, 2]])
CPU = torch.device("cpu")
ZERO3 = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
HALF = ["bf16", "fp16"]


def lora(folder: Path, **changes: Any) -> Optimization:
    """Settings that adapt all linear layers of a family; the scale is no power of two."""
    settings = {"lora_dim": 4, "lora_alpha": 6.0, "lora_module_name": PATTERNS[folder.name]}
    return Optimization(**settings | changes)


def train(model: Any, seed: int = 1, size: float = 3e-3) -> Any:
    """Move every trainable weight by little, as training does: most of it is below the rounding of bf16."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_((size * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype))
    return model.eval()


def deliver(model: Any, folder: Path, tokenizer: Path) -> Path:
    """What a stage writes."""
    weights, adapters = plain_weights(model, keep=True), with_inherited(model, merged_adapters(model, keep=True))
    write_model(model, weights, load_tokenizer(tokenizer), folder, "5GB", None, "# card\n", adapters)
    return folder


def answers(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def exact(model: Any) -> torch.Tensor:
    """What the weights mean: computed in fp32."""
    with torch.no_grad(), computing_in_fp32(model, CPU):
        return model.eval()(IDS).logits


def test_half_precision_goes_on_from_the_very_model_that_was_trained(family_folder: Path, tmp_path: Path) -> None:
    """To the last bit, also as a body of a reward model, and where its own adapter is added but not yet trained."""
    for dtype in HALF:
        model = load_policy(family_folder, dtype)
        add_lora(model, lora(family_folder), "sft")
        before = answers(model)
        train(model)
        folder = deliver(model, tmp_path / dtype, family_folder)
        trained, hidden = answers(model), model.base_model(IDS).last_hidden_state
        assert not torch.equal(trained, before)
        loaded = load_policy(folder, dtype)
        assert torch.equal(answers(loaded), trained)
        assert torch.equal(load_reward_backbone(folder, dtype, 5).eval().base_model(IDS).last_hidden_state, hidden)
        add_lora(loaded, lora(family_folder, lora_module_name=ATTENTION[family_folder.name]), "ppo.actor")
        assert torch.equal(answers(loaded), trained)
        train(loaded, seed=2)
        assert not torch.equal(answers(loaded), trained)


@pytest.mark.parametrize("dtype", HALF)
def test_without_its_own_adapter_a_policy_is_the_model_it_started_from(gpt2_folder: Path, tmp_path: Path, dtype: str):
    """So PPO's reference keeps what SFT has trained."""
    model = load_policy(gpt2_folder, dtype)
    add_lora(model, lora(gpt2_folder, only_optimize_lora=True), "sft")
    folder = deliver(train(model), tmp_path / "sft", gpt2_folder)
    policy = load_policy(folder, dtype)
    adapted = add_lora(policy, lora(gpt2_folder, only_optimize_lora=True), "ppo.actor")
    train(policy, seed=2)
    assert not torch.equal(answers(policy), answers(model))
    with adapted.disable_adapter():
        assert torch.equal(answers(policy), answers(model))


@pytest.mark.parametrize("second", ["all", "attention", "none"])
def test_three_phases_lose_nothing(family_folder: Path, tmp_path: Path, second: str) -> None:
    """SFT, a reward model that starts from it, and the value model: adapters on all layers, on some, or on none."""
    name, dtype = family_folder.name, "bf16"
    changes = {"all": {}, "attention": {"lora_module_name": ATTENTION[name]}, "none": {"lora_dim": 0}}[second]
    model = load_policy(family_folder, dtype)
    add_lora(model, lora(family_folder), "sft")
    sft = deliver(train(model), tmp_path / "sft", family_folder)
    reward = load_reward_backbone(sft, dtype, seed=5)
    reward.config.reward_mean, reward.config.reward_std = 0.0, 1.0
    add_lora(reward, lora(family_folder, **changes), "reward")
    before = answers(reward)
    train(reward, seed=2)
    assert not torch.equal(answers(reward), before)
    folder = deliver(reward, tmp_path / "reward", family_folder)
    value = load_reward(folder, dtype)
    assert torch.equal(answers(value), answers(reward))
    add_lora(value, lora(family_folder), "ppo.critic")
    last = deliver(train(value, seed=3), tmp_path / "value", family_folder)
    assert torch.equal(answers(load_reward(last, dtype)), answers(value))
    adapters = read_merged(last)
    module = next(module for module in adapters if ATTENTION[name] in module)
    assert len(adapters[module]) == (2 if second == "none" else 3)
    assert [change.scale for change in adapters[module]] == [1.5] * len(adapters[module])


def test_what_was_handed_on_is_frozen(gpt2_folder: Path, tmp_path: Path) -> None:
    model = load_policy(gpt2_folder, "bf16")
    add_lora(model, lora(gpt2_folder), "sft")
    folder = deliver(train(model), tmp_path / "sft", gpt2_folder)
    for optimization in (lora(gpt2_folder), lora(gpt2_folder, lora_dim=0)):
        policy = load_policy(folder, "bf16")
        add_lora(policy, optimization, "ppo.actor")
        own = {id(parameter) for group in parameter_groups(policy, optimization) for parameter in group["params"]}
        merged = {name for name, parameter in policy.named_parameters() if ".merged_" in name}
        assert len(merged) == 2 * 8  # c_attn, c_proj twice and c_fc of two layers
        assert not [name for name, parameter in policy.named_parameters() if name in merged and id(parameter) in own]
        trained = {name for name, parameter in policy.named_parameters() if id(parameter) in own}
        assert any(name.endswith("c_attn.weight") for name in trained) == (optimization.lora_dim == 0)


def whole(folder: Path) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("dtype", HALF)
def test_the_delivered_weights_hold_the_whole_change(family_folder: Path, tmp_path: Path, dtype: str) -> None:
    """Against base and adapter by a formula of its own, in float64; and how much rounding would lose of it."""
    model = load_policy(family_folder, dtype)
    base = {name: value.double().numpy() for name, value in model.state_dict().items()}
    adapted = add_lora(model, lora(family_folder, only_optimize_lora=True), "sft")
    folder = deliver(train(model, size=5e-4), tmp_path / "model", family_folder)
    write_adapter(model, adapter_weights(model, keep=True), adapted, tmp_path / "adapter", "base")
    pairs = load_file(tmp_path / "adapter/adapter_model.safetensors")
    delivered, change, kept, rounded = whole(folder), 0.0, 0.0, 0.0
    for key in sorted(name for name in pairs if "lora_A" in name):
        a, b = (pairs[key.replace("lora_A", side)].double().numpy() for side in ("lora_A", "lora_B"))
        delta = 1.5 * (b @ a).T if family_folder.name == "gpt2" else 1.5 * b @ a
        name = key.removeprefix("base_model.model.").replace("lora_A.", "")
        left = delivered[name] - base[name]
        np.testing.assert_allclose(left, delta, atol=2e-7)
        change, kept = change + (delta**2).sum(), kept + (delta * left).sum()
        half = torch.from_numpy(delivered[name]).to(DTYPES[dtype]).double().numpy()
        rounded += ((half - delivered[name]) ** 2).sum()
    assert 0.99 <= kept / change <= 1.01
    error = half_precision_error(load_file(folder / "model.safetensors"), read_merged(folder), DTYPES[dtype])
    assert error == pytest.approx((rounded / change) ** 0.5, rel=1e-3)
    assert error > (0.5 if dtype == "bf16" else 0.05)


def test_others_load_what_was_trained_and_everything_else_keeps_its_precision(gpt2_folder: Path, tmp_path: Path):
    model = load_policy(gpt2_folder, "bf16")
    add_lora(model, lora(gpt2_folder), "sft")
    folder = deliver(train(model), tmp_path / "model", gpt2_folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(answers(loaded), exact(model), rtol=1e-5, atol=1e-5)
    types = {name: tensor.dtype for name, tensor in load_file(folder / "model.safetensors").items()}
    adapted = {name for name, dtype in types.items() if dtype == torch.float32}
    assert adapted == {f"{name}.weight" for name in read_merged(folder)}
    assert set(types.values()) == {torch.float32, torch.bfloat16}
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]  # what other loaders read


@pytest.mark.parametrize("dtype", ["fp32", *HALF])
def test_without_adapters_a_model_is_delivered_in_its_own_precision(gpt2_folder: Path, tmp_path: Path, dtype: str):
    folder = deliver(train(load_policy(gpt2_folder, dtype)), tmp_path / "model", gpt2_folder)
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {DTYPES[dtype]}
    assert DTYPES[dtype] == getattr(torch, json.loads((folder / "config.json").read_text())["dtype"])
    assert not (folder / FILE).exists() and not read_merged(folder)


@pytest.mark.parametrize("only_lora", [True, False])
@pytest.mark.parametrize("dtype", HALF)
def test_an_adapter_on_the_model_of_the_phase_before_is_the_trained_model(
    family_folder: Path, tmp_path: Path, dtype: str, only_lora: bool
) -> None:
    """Also where a weight that earlier adapters changed was trained itself, because its layer has no new adapter."""
    model = load_policy(family_folder, dtype)
    adapted = add_lora(model, lora(family_folder, only_optimize_lora=True), "sft")
    sft = deliver(train(model), tmp_path / "sft", family_folder)
    own = ATTENTION[family_folder.name]
    settings = lora(family_folder, lora_module_name=own, only_optimize_lora=only_lora)
    policy = load_policy(sft, dtype)
    adapted = add_lora(policy, settings, "ppo.actor")
    train(policy, seed=2, size=0.03)
    write_adapter(policy, adapter_weights(policy, keep=True), adapted, tmp_path / "adapter", "base")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sft), tmp_path / "adapter")
    assert (exact(policy) - exact(model)).abs().max() > 1e-3
    torch.testing.assert_close(answers(loaded), exact(policy), rtol=1e-5, atol=1e-5)


def test_a_reward_models_adapter_and_folder_are_the_trained_model(gpt2_folder: Path, tmp_path: Path) -> None:
    model = load_reward_backbone(gpt2_folder, "bf16", seed=5)
    model.config.reward_mean, model.config.reward_std = 0.0, 1.0
    adapted = add_lora(model, lora(gpt2_folder, only_optimize_lora=True), "reward")
    folder = deliver(train(model), tmp_path / "reward", gpt2_folder)
    write_adapter(model, adapter_weights(model, keep=True), adapted, tmp_path / "adapter", "base")
    base = AutoModelForSequenceClassification.from_pretrained(gpt2_folder, num_labels=1, dtype=torch.bfloat16).float()
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(answers(loaded), exact(model), rtol=1e-5, atol=1e-5)
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    torch.testing.assert_close(answers(plain), exact(model), rtol=1e-5, atol=1e-5)


def test_fp32_loads_what_is_there_and_hands_on_earlier_adapters(gpt2_folder: Path, tmp_path: Path) -> None:
    """So that half precision after it finds them; a stage in between that trains everything changes nothing of that."""
    model = load_policy(gpt2_folder, "bf16")
    add_lora(model, lora(gpt2_folder), "sft")
    first = deliver(train(model), tmp_path / "first", gpt2_folder)
    plain = load_policy(first, "fp32")
    assert not [name for name, _ in plain.named_parameters() if "merged_" in name]
    stored = load_file(first / "model.safetensors")
    for name, value in plain.state_dict().items():
        if name in stored:
            assert torch.equal(value, stored[name].float())
    second = deliver(train(plain, seed=2, size=0.0), tmp_path / "second", gpt2_folder)
    assert torch.equal(answers(load_policy(second, "bf16")), answers(model))
    add_lora(plain, lora(gpt2_folder), "ppo.actor")
    third = deliver(train(plain, seed=3), tmp_path / "third", gpt2_folder)
    assert {len(changes) for changes in read_merged(third).values()} == {2}


def test_an_adapter_trained_in_fp32_is_not_lost_to_half_precision(gpt2_folder: Path, tmp_path: Path) -> None:
    model = load_policy(gpt2_folder, "fp32")
    base = {name: value.clone() for name, value in model.state_dict().items()}
    add_lora(model, lora(gpt2_folder, only_optimize_lora=True), "sft")
    folder = deliver(train(model), tmp_path / "model", gpt2_folder)
    torch.testing.assert_close(answers(load_policy(folder, "fp32")), answers(model), rtol=1e-5, atol=1e-5)
    found = plain_weights(load_policy(folder, "bf16"), keep=True)
    change = kept = 0.0
    for name, changes in read_merged(folder).items():
        delta = sum(1.5 * (c.b.double() @ c.a.double()).T for c in changes)
        left = found[f"{name}.weight"].double() - base[f"{name}.weight"].bfloat16().double()
        change, kept = change + float((delta**2).sum()), kept + float((delta * left).sum())
    assert 0.99 <= kept / change <= 1.01


@pytest.mark.parametrize("dtype", HALF)
def test_partitions_are_taken_apart_and_saved_alike(family_folder: Path, tmp_path: Path, group: None, dtype: str):
    model = load_policy(family_folder, dtype)
    add_lora(model, lora(family_folder), "sft")
    folder = deliver(train(model), tmp_path / "sft", family_folder)
    zero3 = ZERO3 | {"fp16" if dtype == "fp16" else "bf16": {"enabled": True}}
    for load in (load_policy, lambda folder, dtype, zero3=None: load_reward_backbone(folder, dtype, 5, zero3=zero3)):
        expected, partitioned = load(folder, dtype), load(folder, dtype, zero3=zero3)
        ours, theirs = (plain_weights(each, keep=True) for each in (partitioned, expected))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        ours, theirs = (merged_adapters(each, keep=True) for each in (partitioned, expected))
        assert ours.keys() == theirs.keys() and ours
        for name, changes in ours.items():
            for one, other in zip(changes, theirs[name], strict=True):
                assert torch.equal(one.a, other.a) and torch.equal(one.b, other.b) and one.scale == other.scale


def broken(folder: Path, change: Any) -> str:
    change(folder)
    with pytest.raises(UserError) as error:
        load_policy(folder, "bf16")
    return str(error.value)


def rename(folder: Path) -> None:
    with safe_open(folder / FILE, framework="pt") as file:
        metadata = {"scales": file.metadata()["scales"].replace("c_fc", "c_xx"), "format": "pt"}
    tensors = {name.replace("c_fc", "c_xx"): tensor for name, tensor in load_file(folder / FILE).items()}
    save_file(tensors, folder / FILE, metadata=metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / FILE).write_bytes(b"\x00"), "damaged"),
        (lambda folder: save_file(load_file(folder / FILE), folder / FILE), "damaged"),
        (rename, "c_xx is no linear layer"),
        (
            lambda folder: edit_weights(
                folder, lambda tensors: tensors.update({name: value.bfloat16() for name, value in tensors.items()})
            ),
            "not there in fp32",
        ),
    ],
    ids=["unreadable", "without scales", "of another model", "converted"],
)
def test_a_damaged_folder_is_refused(gpt2_folder: Path, tmp_path: Path, change: Any, message: str) -> None:
    model = load_policy(gpt2_folder, "bf16")
    add_lora(model, lora(gpt2_folder), "sft")
    assert message in broken(deliver(train(model), tmp_path / "model", gpt2_folder), change)


def test_an_output_layer_that_is_the_embedding_gets_no_adapter(tmp_path: Path) -> None:
    """Merged, its adapter would change the embedding as well, which is another model than was trained."""
    tied = make_model(tmp_path / "gpt2", "gpt2")
    with pytest.raises(UserError, match=r"sft\.lora_module_name: '' matches lm_head, whose weight is the input embed"):
        add_lora(load_policy(tied, "fp32"), lora(tied, lora_module_name=""), "sft")
    untied = make_model(tmp_path / "llama", "llama")
    model = load_policy(untied, "bf16")
    add_lora(model, lora(untied, lora_module_name=""), "sft")
    folder = deliver(train(model), tmp_path / "model", untied)
    assert torch.equal(answers(load_policy(folder, "bf16")), answers(model))
    body = load_reward_backbone(folder, "bf16", 5).eval().base_model(IDS).last_hidden_state  # has no such layer
    assert torch.equal(body, model.base_model(IDS).last_hidden_state)


def test_a_model_of_an_earlier_run_brings_its_adapters_into_the_cache(gpt2_folder: Path, tmp_path: Path) -> None:
    model = load_policy(gpt2_folder, "bf16")
    add_lora(model, lora(gpt2_folder), "sft")
    folder = deliver(train(model), tmp_path / "model", gpt2_folder)
    settings = ModelSettings(source={"path": str(folder)})
    cache_model(settings, tmp_path / "cache/mine", "models.mine")
    assert torch.equal(answers(load_policy(tmp_path / "cache/mine/model", "bf16")), answers(model))
    edit_weights(folder, lambda tensors: tensors.update({name: value.bfloat16() for name, value in tensors.items()}))
    edit_json(folder / "config.json", dtype="bfloat16")
    cache_model(settings, tmp_path / "cache/converted", "models.mine")
    assert not read_merged(tmp_path / "cache/converted/model")


def test_the_error_of_rounding_is_told_in_units_of_the_change() -> None:
    """Of two changes of one weight, and one of another, all far smaller than 1."""
    generator = torch.Generator().manual_seed(3)

    def change(rank: int, scale: float) -> LowRank:
        a, b = (0.01 * torch.randn(shape, generator=generator) for shape in ((rank, 5), (4, rank)))
        return LowRank(a, b, scale)

    adapters = {"first": [change(2, 0.5), change(3, 2.0)], "second": [change(1, 0.25)]}
    weights = {f"{name}.weight": torch.randn(4, 5, generator=generator) for name in adapters}
    rounding = sum(float((w.bfloat16().double() - w.double()).square().sum()) for w in weights.values())
    deltas = [sum(c.scale * (c.b.double() @ c.a.double()) for c in changes) for changes in adapters.values()]
    expected = (rounding / sum(float((delta**2).sum()) for delta in deltas)) ** 0.5
    assert half_precision_error(weights, adapters, torch.bfloat16) == pytest.approx(expected, rel=1e-5)
    still = [LowRank(torch.zeros(2, 5), torch.zeros(4, 2), 0.5)]
    assert half_precision_error(weights, {"first": still}, torch.bfloat16) is None


def test_adapters_of_a_file_are_read_in_the_order_in_which_they_were_merged(tmp_path: Path) -> None:
    """More than ten of a layer, whose numbers are not in the order of the alphabet."""
    made = {
        name: [LowRank(torch.full((2, 3), float(number)), torch.ones(4, 2), number / 8) for number in range(12)]
        for name in ("b.c", "a.d")
    }
    write_merged(tmp_path, made)
    found = read_merged(tmp_path)
    assert found.keys() == made.keys()
    for name, changes in made.items():
        assert [change.scale for change in found[name]] == [change.scale for change in changes]
        assert [float(change.a[0, 0]) for change in found[name]] == list(range(12))
    with safe_open(tmp_path / FILE, framework="pt") as file:
        assert set(file.metadata()) == {"scales"}


def test_what_is_delivered_does_not_follow_the_model(gpt2_folder: Path) -> None:
    model = load_policy(gpt2_folder, "fp32")
    add_lora(model, lora(gpt2_folder), "sft")
    adapters, weights = merged_adapters(train(model), keep=True), adapter_weights(model, keep=True)
    copies = [tensor for changes in adapters.values() for change in changes for tensor in (change.a, change.b)]
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert copies
    assert not own & {tensor.untyped_storage().data_ptr() for tensor in [*copies, *weights.values()]}


def test_processes_that_write_nothing_add_nothing_up(gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_policy(gpt2_folder, "fp32")
    add_lora(model, lora(gpt2_folder), "sft")
    monkeypatch.setattr(training_weights, "merged_weight", lambda layer: pytest.fail("added up"))
    assert plain_weights(model, keep=False) == adapter_weights(model, keep=False) == {}
    assert merged_adapters(model, keep=False) == {}


def test_adapters_fit_linear_layers_of_their_shape_alone() -> None:
    change = LowRank(torch.zeros(2, 6), torch.zeros(4, 2), 1.0)
    layers = {nn.Linear(6, 4): True, nn.Linear(4, 6): False, Conv1D(4, 6): True, nn.Embedding(4, 6): False}
    assert {layer: fits(layer, [change]) for layer in layers} == layers
