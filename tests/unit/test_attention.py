"""Packed sequences: the mask and the positions against loops, and models against texts that stand alone."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf.models.attention import segment_mask, segment_positions, supports_segments

SEGMENTS = torch.tensor([[0, 0, 1, 1, 1, 2, -1, -1], [5, 5, 5, 0, 0, 5, 3, 3], [-1, 4, 4, 4, 0, -1, 0, 1]])
LARGE = {"vocab_size": 60, "hidden_size": 32, "num_attention_heads": 4, "initializer_range": 0.3}
LAYERS = {"num_hidden_layers": 2, "max_position_embeddings": 64, "intermediate_size": 64}
HEADS = {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}


def tiny(family, **changes):
    special = {
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 60, "initializer_range": 0.3},
        "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 60, "initializer_range": 0.3},
        "opt": {**LARGE, "num_hidden_layers": 2, "ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.3},
        "gpt_neox": {**LARGE, **LAYERS},
    }
    config = AutoConfig.for_model(family, **special.get(family, {**LARGE, **LAYERS, **HEADS}), **changes)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@pytest.mark.parametrize("shared", [None, 0, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mask_allows_what_the_definition_allows(shared, dtype):
    mask = segment_mask(SEGMENTS, dtype, shared)
    assert mask.dtype == dtype
    assert mask.shape == (3, 1, 8, 8)
    for row, segments in enumerate(SEGMENTS.tolist()):
        for i, own in enumerate(segments):
            for j, other in enumerate(segments):
                allowed = i == j or (j <= i and other != -1 and other in (own, shared))
                assert float(mask[row, 0, i, j]) == (0.0 if allowed else torch.finfo(dtype).min)


@pytest.mark.parametrize("shared", [None, 0, 5])
def test_positions_count_within_a_segment(shared):
    positions = segment_positions(SEGMENTS, shared)
    assert positions.dtype == torch.int64
    for row, segments in enumerate(SEGMENTS.tolist()):
        for i, own in enumerate(segments):
            before = 0 if own == shared or shared is None else segments.count(shared)
            assert positions[row, i] == (0 if own == -1 else before + segments[:i].count(own))


@pytest.mark.parametrize(
    ("family", "supported"),
    [
        ("opt", True),
        ("gpt2", True),
        ("gpt_neox", True),
        ("llama", True),
        ("mistral", True),
        ("qwen2", True),
        ("gemma", True),
        ("glm", True),
        ("glm4", True),
        ("bloom", False),
    ],
)
def test_support_is_found_by_trial(family, supported):
    model = tiny(family)
    model.train()
    assert supports_segments(model, longest=32) is supported
    assert model.training


def test_finding_out_draws_nothing_from_the_stages_seed():
    model = tiny("llama")
    before = torch.get_rng_state()
    supports_segments(model, longest=32)
    assert torch.equal(torch.get_rng_state(), before)


def test_support_in_half_precision():
    assert supports_segments(tiny("llama").bfloat16(), longest=32)


def test_a_window_narrower_than_a_segment_is_refused():
    model = tiny("mistral", sliding_window=16)
    assert supports_segments(model, longest=16)
    assert not supports_segments(model, longest=17)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
def test_a_model_that_ignores_the_mask_or_the_positions_is_refused(ignored, dtype):
    model = tiny("gpt2").to(dtype)
    forward = model.transformer.forward

    def heedless(*args, **kwargs):
        return forward(*args, **kwargs | {ignored: None})

    model.transformer.forward = heedless
    assert not supports_segments(model, longest=32)


def small_leak(logits, packed):
    """A hundredth of what comes before a packed segment."""
    return logits + 0.01 * logits.roll(5, 1) if packed else logits


def scaled(logits, packed):
    """Nothing of another segment, but not what the segment gives alone either."""
    return 1.2 * logits if packed else logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fault", [small_leak, scaled])
def test_a_small_difference_is_refused(fault, dtype):
    """Much less than a missing mask makes; a leak in half precision, where rounding is as large, by what it touches."""
    model = tiny("gpt2").to(dtype)
    forward = model.forward

    def faulty(input_ids, **arguments):
        output = forward(input_ids=input_ids, **arguments)
        output.logits = fault(output.logits, input_ids.shape[1] == 15)
        return output

    assert supports_segments(model, longest=32)
    model.forward = faulty
    assert not supports_segments(model, longest=32)
