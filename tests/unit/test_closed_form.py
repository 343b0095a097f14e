"""Closed forms of memory against dry runs and published figures."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode
from transformers import AutoConfig, PreTrainedConfig

from rlhf.config.stages import Optimization
from rlhf.errors import UserError
from rlhf.memory.article import article_activations, article_weights
from rlhf.memory.blueprint import Blueprint, materialise, weights
from rlhf.memory.closed_form import ActivationShape, checkpointed_by_layer, saved_by_layer
from rlhf.memory.tracker import WEIGHTS, Tracker

OPT_13B = ActivationShape("opt", 40, 5120, 40, 20480, 50272, batch=4, length=512, attention="eager")


def configuration(shape: ActivationShape) -> PreTrainedConfig:
    keys = {
        "opt": {"hidden_size": shape.width, "ffn_dim": shape.ffn, "num_attention_heads": shape.heads, "dropout": 0.0},
        "llama": {
            "hidden_size": shape.width,
            "intermediate_size": shape.ffn,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.heads,
        },
        "gpt2": {"n_embd": shape.width, "n_inner": shape.ffn, "n_head": shape.heads}
        | dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
        "gpt_neox": {
            "hidden_size": shape.width,
            "intermediate_size": shape.ffn,
            "num_attention_heads": shape.heads,
        },
    }[shape.family]
    if shape.family == "opt":
        keys["word_embed_proj_dim"] = shape.width
    config = AutoConfig.for_model(
        shape.family, **keys, vocab_size=64, pad_token_id=0, eos_token_id=1, bos_token_id=None
    )
    config._attn_implementation = shape.attention
    return config


def live_after_forward(shape: ActivationShape, layers: int, checkpointing: bool) -> int:
    """Bytes beside the weights, on fake tensors."""
    optimization = Optimization()
    model = Blueprint(configuration(shape), "lm", "bf16", optimization, checkpointing).build(layers)
    with FakeTensorMode(allow_non_fake_inputs=True):
        materialise(model)
        ids = torch.zeros(shape.batch, shape.length, dtype=torch.long)
        tracker = Tracker()
        with tracker:
            tracker.count(weights(model), WEIGHTS)
            before = tracker.live()
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
            held = tracker.live() - before
    assert logits.requires_grad
    return held


@st.composite
def shapes(draw: st.DrawFn) -> ActivationShape:
    """Sizes whose tensors are multiples of the allocator's 512 bytes."""
    heads = draw(st.sampled_from([2, 4, 8]))
    return ActivationShape(
        draw(st.sampled_from(["opt", "llama", "gpt2", "gpt_neox"])),
        layers=2,
        width=heads * 8 * draw(st.integers(1, 3)),
        heads=heads,
        ffn=32 * draw(st.integers(1, 9)),
        vocabulary=64,
        batch=draw(st.sampled_from([2, 4, 6])),
        length=128 * draw(st.integers(1, 3)),
        attention=draw(st.sampled_from(["sdpa", "eager"])),
    )


@given(shape=shapes(), checkpointing=st.booleans())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_layer_keeps_what_the_closed_form_says(shape: ActivationShape, checkpointing: bool) -> None:
    shorter, longer = (live_after_forward(shape, layers, checkpointing) for layers in (2, 3))
    expected = checkpointed_by_layer(shape) if checkpointing else sum(saved_by_layer(shape).values())
    assert longer - shorter == expected


def test_the_article_is_right_at_its_own_point_only() -> None:
    gib = 2**30
    assert article_activations(OPT_13B) / gib == pytest.approx(19.53, abs=0.005)
    assert article_weights(12_853_473_280) / gib == pytest.approx(23.94, abs=0.005)
    layer = sum(saved_by_layer(OPT_13B).values()) + 2 * OPT_13B.tokens * OPT_13B.width  # dropout masks: two of a byte
    assert 40 * layer / gib == pytest.approx(19.53, abs=0.01)
    long = ActivationShape("opt", 40, 5120, 40, 20480, 50272, batch=1, length=2048, attention="eager")
    longer = sum(saved_by_layer(long).values()) + 2 * long.tokens * long.width
    assert article_activations(long) / (40 * longer) == pytest.approx(0.61, abs=0.01)


def test_a_family_without_a_closed_form_is_named() -> None:
    with pytest.raises(UserError, match="bloom"):
        saved_by_layer(ActivationShape("bloom", 1, 8, 1, 8, 8, 1, 8))
