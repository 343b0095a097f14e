"""The dry run on fake tensors holds what the same program holds on real ones, to the byte."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from rlhf.config.stages import Optimization, RewardSettings, SftSettings
from rlhf.errors import UserError
from rlhf.memory import dryrun
from rlhf.memory.blueprint import Blueprint, count, count_parameters
from rlhf.memory.dryrun import dry_run, trace
from rlhf.memory.tracker import GRADIENTS, LOGITS, WEIGHTS, Tracker
from rlhf.planning.supervised import EVALUATION, FIRST, LATER, supervised_program

VOCABULARY = 211
SHAPES: dict[str, dict[str, Any]] = {
    "opt": {
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 16,
        "do_layer_norm_before": False,
    },
    "llama": {
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "intermediate_size": 88,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
    "gpt2": {"n_layer": 3, "n_embd": 32, "n_head": 2, "n_positions": 64},
    "gpt_neox": {
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    },
}
PATTERNS = {"opt": "decoder.layers.", "llama": "layers.", "gpt2": "h.", "gpt_neox": "layers."}
SFT, REWARD = SftSettings(max_seq_len=24), RewardSettings(loss="token_wise", max_seq_len=24)


def blueprint(
    family: str, lora: int = 0, checkpointing: bool = False, dtype: str = "fp32", layers: int = 3, head: str = "lm"
) -> Blueprint:
    config = AutoConfig.for_model(
        family, **SHAPES[family], vocab_size=VOCABULARY, pad_token_id=0, eos_token_id=1, bos_token_id=None
    )
    config.num_hidden_layers = layers
    optimization = Optimization(lora_dim=lora, lora_module_name=PATTERNS[family])
    return Blueprint(config, head, dtype, optimization, checkpointing, "sft")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("family", SHAPES)
def test_fake_tensors_hold_what_real_ones_hold(family: str, lora: int, checkpointing: bool) -> None:
    plan = blueprint(family, lora, checkpointing)
    program = supervised_program(SFT, 3, True, 4)
    executed = trace(plan.build(device="cpu"), plan, 3, program)
    assert dry_run(plan, program, cuda=False).items() >= executed.items()
    largest = max(executed.values(), key=lambda peak: peak.total)
    assert largest.kinds[WEIGHTS] > 0
    assert any(peak.kinds[LOGITS] for peak in executed.values())


def test_the_pair_loss_in_16_bit_is_traced_too() -> None:
    plan = blueprint("gpt_neox", 4, False, "bf16", head="score")
    program = supervised_program(REWARD, 2, False, 2)
    executed = trace(plan.build(device="cpu"), plan, 3, program)
    assert dry_run(plan, program, cuda=False).items() >= executed.items()
    assert {place.split("|")[0] for place in executed} == {FIRST, EVALUATION}


@pytest.mark.parametrize(
    ("family", "lora", "checkpointing"),
    [("opt", 4, True), ("gpt_neox", 0, False)],
)
def test_few_layers_tell_of_many(family: str, lora: int, checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = blueprint(family, lora, checkpointing, "bf16", layers=7)
    program = supervised_program(SFT, 3, True, 4)
    short = dry_run(plan, program)
    counts = count(plan, lambda model: [list(model.parameters())])
    monkeypatch.setattr(dryrun, "SHORT", (4, 7))
    whole = dry_run(plan, program)
    assert all(short[place] == whole[place] for place in short)
    middle = max(peak.total for place, peak in whole.items() if "middle" in place)
    assert middle <= max(peak.total for peak in short.values())
    assert counts == count_parameters(plan.build(), lambda model: [list(model.parameters())])


def test_unequal_layers_are_all_traced() -> None:
    plain, mixed = blueprint("llama", layers=8), blueprint("llama", layers=8)
    assert plain.uniform()
    mixed.config.layer_types = ["sliding_attention", "full_attention"] * 4
    assert not mixed.uniform()
    sparse = AutoConfig.for_model(
        "qwen2_moe",
        num_hidden_layers=8,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        moe_intermediate_size=16,
        mlp_only_layers=[0],
        vocab_size=VOCABULARY,
    )
    assert not Blueprint(sparse, "lm", "bf16", None).uniform()


def test_a_family_without_a_score_head_is_named() -> None:
    config = AutoConfig.for_model("granite", num_hidden_layers=2, hidden_size=32, num_attention_heads=2)
    with pytest.raises(UserError, match="granite"):
        Blueprint(config, "score", "bf16", None).build()


def test_gradients_wait_for_the_later_micro_batch() -> None:
    plan = blueprint("gpt2")
    program = supervised_program(SFT, 3, True, 4)
    places = dry_run(plan, program, cuda=False)
    trained = places[f"{LATER}|forward|before"].kinds[GRADIENTS]
    assert trained == places[f"{LATER}|forward|before"].kinds[WEIGHTS] - _buffers(plan)
    assert places[f"{FIRST}|forward|before"].kinds[GRADIENTS] == 0
    halved = dry_run(plan, program, cuda=False, gradient_share=0.5)
    assert halved[f"{LATER}|forward|before"].kinds[GRADIENTS] == -(-trained // 2)


def _buffers(plan: Blueprint) -> int:
    return sum(-(-b.numel() * b.element_size() // 512) * 512 for b in plan.build().buffers() if b.numel())


def test_dropout_on_cuda_keeps_one_byte_each() -> None:
    plan = blueprint("opt")
    plan.config.attention_dropout = 0.0
    with_dropout, without = copy.deepcopy(plan), copy.deepcopy(plan)
    without.config.dropout = 0.0
    program = supervised_program(SFT, 4, False, 1)
    place = f"{FIRST}|forward|last"
    held = [dry_run(p, program)[place].total for p in (with_dropout, without)]
    tokens, width, masks = 4 * 24, 32, 2 * 2 + 1  # two in each layer, and the last one is still at work
    assert held[0] - held[1] >= masks * tokens * width
    assert dry_run(with_dropout, program, cuda=False)[place].total > held[0]


def test_the_tracker_counts_storages_once_and_frees_them() -> None:
    tracker = Tracker()
    with tracker:
        first = torch.ones(1000)
        view = first.view(10, 100).t()
        assert tracker.live() == 4096
        second = first + 1
        assert tracker.live() == 8192
        del first
        assert tracker.live() == 8192  # the view keeps it
        del view
        assert tracker.live() == 4096
        del second
        torch.zeros(5, device="meta")
        assert tracker.live() == 0
    assert max(peak.total for peak in tracker.peaks().values()) == 8192
