"""Operations that the GPU measurement counts, against PyTorch's own counter."""

from __future__ import annotations

import pytest
import torch
from benchmarks.gpu import arithmetic
from benchmarks.gpu.arithmetic import Model
from benchmarks.gpu.cases import PUBLISHED, SCALES, configuration
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, OPTConfig

TOKENS = 24
SIZES = {"num_hidden_layers": 3, "hidden_size": 32, "ffn_dim": 80, "num_attention_heads": 4, "vocab_size": 64}
SAME = OPTConfig(**SIZES, word_embed_proj_dim=32, pad_token_id=1)
NARROW = OPTConfig(**SIZES, word_embed_proj_dim=16, do_layer_norm_before=False, pad_token_id=1)


def counted(config: OPTConfig, training: bool, head: bool = True) -> tuple[int, int]:
    """Operations of one sequence by torch: (of matrix products with weights, of attention)."""
    auto_class = AutoModelForCausalLM if head else AutoModelForSequenceClassification
    model = auto_class.from_config(config, attn_implementation="eager")
    model = model if head else model.base_model
    ids = torch.randint(2, config.vocab_size, (1, TOKENS))
    with FlopCounterMode(display=False) as counter:
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)[0]
        if training:
            output.float().sum().backward()
    by_operation = {str(operation): number for operation, number in counter.get_flop_counts()["Global"].items()}
    attention = by_operation.pop("aten.bmm", 0)
    return sum(by_operation.values()), attention


@pytest.mark.parametrize("config", [SAME, NARROW])
def test_a_forward_pass_has_the_operations_that_torch_counts(config: OPTConfig) -> None:
    model = Model.of(config)
    products, attention = counted(config, training=False)
    assert 2 * model.body * TOKENS + model.head(TOKENS) == products
    # Torch counts all pairs of tokens, where a causal model needs those with an earlier one and itself.
    causal = model.sequence(TOKENS) - 2 * model.body * TOKENS
    assert causal * 2 * TOKENS == attention * (TOKENS + 1)


def test_training_has_three_times_the_operations_of_a_forward_pass() -> None:
    products, attention = counted(SAME, training=True)
    ours = arithmetic.sft(Model.of(SAME), [TOKENS], [TOKENS])
    assert ours == products + attention * (TOKENS + 1) // (2 * TOKENS)


def test_a_reward_model_has_no_output_layer() -> None:
    products, attention = counted(NARROW, training=False, head=False)
    forward = arithmetic.reward(Model.of(NARROW), [TOKENS]) // arithmetic.TRAINING
    assert forward == products + attention * (TOKENS + 1) // (2 * TOKENS)


def test_an_iteration_of_ppo_is_the_sum_of_its_passes() -> None:
    """Prompts of 10 and answers of 14 tokens; the head only where an answer's token is predicted."""
    policy, value = Model.of(SAME), Model.of(NARROW)
    work = arithmetic.ppo(policy, value, samples=5, prompt=10.0, answer=14.0)
    forward = policy.sequence(24) + policy.head(14)
    assert work.generate == 5 * (policy.sequence(23) + policy.head(14))
    assert work.score == 5 * (2 * forward + 2 * value.sequence(24))
    assert work.train == 5 * 3 * (forward + value.sequence(24))
    assert work.all == work.generate + work.score + work.train


def test_a_billion_parameters_need_about_six_operations_each_per_token() -> None:
    """The rule of thumb (Kaplan et al. 2020), which leaves attention out."""
    config = OPTConfig(**{key: value for key, value in PUBLISHED["opt-1300m"].items() if key != "model_type"})
    model = Model.of(config)
    tokens = arithmetic.sft(model, [512], [512]) / 512
    assert 1.0 < tokens / (6 * 1.3158e9) < 1.05


@pytest.mark.parametrize(
    ("card", "expected"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H200", 989e12), ("Tesla T4", None)],
)
def test_the_peak_of_a_card_is_known_or_said_to_be_unknown(card: str, expected: float | None) -> None:
    assert arithmetic.peak(card) == expected


@pytest.mark.parametrize("scale", SCALES)
def test_each_case_is_an_experiment_of_its_own(scale: str) -> None:
    size = SCALES[scale]
    config = configuration(size, "rows.jsonl", 1)
    assert list(config["experiments"]) == [case.name for case in size.cases]
    assert {f"sft-{size.plain}"} <= config["experiments"].keys()
    assert all({case.policy, case.reward_model} <= size.models.keys() for case in size.cases)
