"""The predicted peaks of an engine against DeepSpeed itself, executed on the CPU."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from transformers import AutoConfig

from rlhf.config.stages import SftExecution, SftSettings
from rlhf.memory.blueprint import Blueprint, weights
from rlhf.memory.states import host_states, host_step_extra
from rlhf.memory.tracker import WEIGHTS, Tracker
from rlhf.planning.rows import LongestRows
from rlhf.planning.supervised import forecast_supervised
from rlhf.planning.traces import Traces
from rlhf.training.engine import EngineSettings, Trainer
from rlhf.training.sft import AnswerLikelihood

CONFIG = AutoConfig.for_model(
    "opt",
    num_hidden_layers=3,
    hidden_size=256,
    ffn_dim=512,
    num_attention_heads=2,
    max_position_embeddings=64,
    word_embed_proj_dim=256,
    vocab_size=211,
    pad_token_id=0,
    eos_token_id=1,
    bos_token_id=None,
)
LENGTH, MICRO = 24, 3
BUCKET = {"zero_optimization": {"reduce_bucket_size": 200_000}}


def executed(settings: SftSettings, execution: SftExecution) -> dict[str, int]:
    """Peaks of making an engine, and of two steps of two micro-batches."""
    place = ["load"]
    tracker = Tracker(CONFIG.vocab_size, lambda: place[0])
    model = Blueprint(CONFIG, "lm", settings.dtype, settings).build(device="cpu")
    engine = EngineSettings(execution.zero_stage, settings.dtype, MICRO, execution.offload, False, BUCKET)
    rows = LongestRows.of_length(LENGTH)
    with tracker:
        tracker.count(weights(model), WEIGHTS)
        trainer = Trainer(model, settings, engine, total_steps=10)
        for _ in range(2):
            for last in (False, True):
                place[0] = "backward"
                loss, _ = AnswerLikelihood().loss(trainer.engine, rows, np.arange(MICRO))
                trainer.engine.set_gradient_accumulation_boundary(last)
                trainer.engine.backward(loss, scale_wrt_gas=False)
                del loss
            place[0] = "step"
            trainer.engine.step()
            place[0] = "after"
            gc.collect()
    trainer.engine.destroy()
    return {name: peak.total for name, peak in tracker.peaks().items()}


@pytest.mark.parametrize(
    ("zero_stage", "dtype", "offload", "lora"),
    [
        (0, "fp32", False, 0),
        (0, "bf16", False, 0),
        (2, "bf16", False, 0),
        (3, "bf16", False, 0),
        (2, "bf16", False, 8),
        (2, "bf16", True, 0),
        (3, "bf16", True, 0),
    ],
)
def test_deepspeed_holds_what_is_predicted(group: None, zero_stage: int, dtype: str, offload: bool, lora: int) -> None:
    settings = SftSettings(
        dtype=dtype, global_batch_size=2 * MICRO, max_seq_len=LENGTH, weight_decay=0.1, lora_dim=lora
    )
    execution = SftExecution(
        zero_stage=zero_stage, offload=offload, per_device_train_batch_size=MICRO, deepspeed_config=BUCKET
    )
    forecast = forecast_supervised(settings, execution, CONFIG, Traces(cuda=False))
    parts = {part.name: part.total for part in forecast.parts}
    (model,) = forecast.models
    on_host = host_states(model.engine, model.counts, accumulates=True)
    found = executed(settings, execution)
    assert parts["backward"] + on_host == pytest.approx(found["backward"], rel=0.06)
    step = parts["step"] + on_host + host_step_extra(model.engine, model.counts)
    assert step == pytest.approx(found["step"], rel=0.06)
    if not offload and not lora:
        assert parts["load"] == pytest.approx(found["load"], rel=0.06)
