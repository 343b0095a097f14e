"""Adapters: what they add to a layer, where they are put, and what trains beside them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from rlhf.config.stages import Optimization
from rlhf.models.loading import load_policy, load_reward_backbone
from rlhf.models.lora import add_lora, linear_modules

PATTERNS = {"gpt2": "h.", "opt": "decoder.layers.", "llama": "layers."}
IDS = torch.tensor([[3, 9, 4, 30, 6]])


def settings(**changes: Any) -> Optimization:
    return Optimization(**({"lora_dim": 4, "lora_module_name": "h."} | changes))


def adapters(model: Any) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def move(model: Any) -> None:
    """Give both matrices of every adapter values; B is 0 at first."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (4.0, 1.0), (6.0, 1.5), (1.0, 0.25)])
def test_an_adapter_adds_its_product_times_alpha_over_rank(family_folder, alpha, scale):
    """Without alpha the scale is 1. In training mode too: adapters have no dropout of their own."""
    model = load_policy(family_folder, "fp32", 0.0).train()
    add_lora(model, settings(lora_alpha=alpha, lora_module_name=PATTERNS[family_folder.name]), "sft")
    move(model)
    seen: list[tuple[Any, Tensor, Tensor]] = []
    for layer in adapters(model).values():
        layer.register_forward_hook(lambda module, inputs, output: seen.append((module, inputs[0], output)))
    model(IDS)
    assert len(seen) == len(adapters(model)) > 0
    for layer, inputs, output in seen:
        (down,), (up,) = layer.lora_A.values(), layer.lora_B.values()
        added = scale * inputs.double() @ down.weight.double().T @ up.weight.double().T
        assert added.abs().max() > 0.01
        assert torch.allclose(output.double(), layer.get_base_layer()(inputs).double() + added, atol=1e-4)


def test_a_new_adapter_changes_nothing(gpt2_folder):
    model = load_policy(gpt2_folder, "fp32", 0.0).eval()
    before = model(IDS).logits
    add_lora(model, settings(), "sft")
    assert torch.equal(model(IDS).logits, before)


def test_adapters_are_where_the_pattern_says_and_as_large_as_the_rank(gpt2_folder):
    model = load_policy(gpt2_folder, "fp32")
    names = linear_modules(model)
    assert len(names) == 2 * 4 + 1  # two blocks of four matrices, and the output layer
    expected = {name for name in names if "mlp" in name}
    add_lora(model, settings(lora_module_name="mlp", lora_dim=3), "sft")
    assert set(adapters(model)) == expected
    for layer in adapters(model).values():
        ((down,), (up,)) = layer.lora_A.values(), layer.lora_B.values()
        assert (down.out_features, up.in_features) == (3, 3)


def test_without_a_rank_nothing_is_adapted_and_everything_trains(gpt2_folder):
    model = load_policy(gpt2_folder, "fp32")
    assert add_lora(model, settings(lora_dim=0, only_optimize_lora=True), "sft") is None
    assert not adapters(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("only_lora", [False, True])
def test_what_trains_beside_the_adapters(gpt2_folder, only_lora):
    model = load_reward_backbone(gpt2_folder, "fp32", seed=0)
    plain = {name for name, _ in model.named_parameters()}
    matrices = {f"{name}.weight" for name in linear_modules(model) if "h." in name}
    add_lora(model, settings(only_optimize_lora=only_lora), "reward")
    trained = {name.replace("base_layer.", "") for name, one in model.named_parameters() if one.requires_grad}
    beside = {name for name in trained if "lora_" not in name}
    assert beside == ({"score.weight"} if only_lora else plain - matrices)
    assert len(trained) - len(beside) == 2 * len(matrices)


def test_adapters_have_the_precision_of_the_model(gpt2_folder):
    model = load_policy(gpt2_folder, "bf16")
    add_lora(model, settings(), "sft")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
