"""Gradients in half precision are added up in fp32: steps of 128 micro-batches against their sum in float64."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed.accelerator import get_accelerator

from rlhf.files import read_json
from rlhf.training.accumulation import sums_on_host
from rlhf.training.engine import deepspeed_config
from rlhf.training.weights import is_partitioned, plain_weights
from tests.unit import many_micro_batches
from tests.unit.many_micro_batches import OPTIMIZATION, expected, trained
from tests.unit.test_training import engine_settings

# What fp32 rounds; measured 2e-8. In the precision of the weights the norm is off by 1e-2 (bf16) and 3e-4 (fp16).
ALONE = 1e-6
# The mean of two processes' gradients is rounded to bf16 where they are reduced, up or down alike: measured 1.5e-5.
TOGETHER = 1e-4
SMALL_BUCKETS = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 500}}  # some weights need one of their own
PARTITIONED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
CASES: list[tuple[str, int, bool, dict[str, Any]]] = [
    ("bf16", 0, False, {}),
    ("bf16", 1, False, {"zero_optimization": {"stage": 1}}),
    ("bf16", 1, True, {}),
    ("bf16", 2, False, SMALL_BUCKETS),
    ("bf16", 2, True, SMALL_BUCKETS),
    ("bf16", 3, False, {}),
    ("bf16", 3, True, {}),
    ("fp16", 0, False, {}),
    ("fp16", 2, True, {}),
    ("fp16", 3, False, {}),
]


@pytest.fixture(autouse=True)
def fp16_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is slow there, but it computes."""
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)


@pytest.mark.parametrize(("dtype", "zero_stage", "offload", "overrides"), CASES)
def test_a_step_of_many_micro_batches_is_that_of_their_exact_sum(
    group: None, dtype: str, zero_stage: int, offload: bool, overrides: dict[str, Any]
) -> None:
    """Weights to the last bit, after a second step that must begin with empty sums."""
    exact, weights = expected(dtype, 1)
    norms, model = trained(dtype, zero_stage, offload, overrides)
    np.testing.assert_allclose(norms, exact, rtol=ALONE)
    assert is_partitioned(model) == (zero_stage == 3)
    found = plain_weights(model, keep=True)
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())


def test_a_step_of_two_processes_is_that_of_their_exact_sum(tmp_path: Path) -> None:
    cases = [("bf16", 0, False, {}), ("bf16", 2, True, SMALL_BUCKETS), ("bf16", 3, False, PARTITIONED)]
    script, output = many_micro_batches.__file__, tmp_path / "norms.json"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    port = str(20_000 + os.getpid() % 20_000)
    command = [*launcher, "--master-port", port, script, str(output), json.dumps(cases)]
    subprocess.run(command, check=True)
    exact, _ = expected("bf16", 2)
    for norms in read_json(output):
        np.testing.assert_allclose(norms, exact, rtol=TOGETHER)


def test_sums_that_overflow_fp16_do_not_skip_the_step(group: None) -> None:
    """Of micro-batches that do not: fp16 ends at 65504."""
    scaling = {"fp16": {"enabled": True, "initial_scale_power": 14}}
    exact, _ = expected("fp16", 1)
    assert exact[0] * 2**14 > 2**16
    norms, _ = trained("fp16", 2, False, scaling)
    np.testing.assert_allclose(norms, exact, rtol=1e-3)


@pytest.mark.parametrize("offload", [False, True])
def test_gradients_that_overflow_skip_the_step(group: None, offload: bool) -> None:
    """They are infinite in fp16 before they are added up; the next scale is as much too large."""
    _, network = trained("fp16", 2, offload, {"fp16": {"enabled": True, "initial_scale_power": 40, "hysteresis": 1}})
    before = many_micro_batches.model("fp16").state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())


@pytest.mark.parametrize(("dtype", "told"), [("fp32", None), ("bf16", "fp32")])
def test_what_an_offloaded_optimizer_of_zero_2_holds_on_the_device(dtype: str, told: str | None) -> None:
    """No sums: those are in host memory, with no setting that DeepSpeed knows."""
    for zero_stage, offload in ((2, False), (2, True), (3, True)):
        config = deepspeed_config(OPTIMIZATION, engine_settings(zero_stage=zero_stage, offload=offload, dtype=dtype))
        on_host = (zero_stage, offload) == (2, True)
        assert sums_on_host(config) == on_host
        assert config.get("data_types", {}).get("grad_accum_dtype") == (None if on_host else told)
