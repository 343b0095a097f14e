"""Whole training stages on the device: beside the CPU, in half precision, under ZeRO, again, and interrupted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rlhf.training import distributed
from tests.gpu.runs import INTERRUPTED_AFTER, KINDS, Runs

pytestmark = pytest.mark.gpu
Note = Callable[[str, Any], None]

SERIES = {
    "sft": ("loss", "grad_norm"),
    "reward": ("loss", "accuracy", "grad_norm"),
    "ppo": ("kl", "score", "entropy", "policy_loss", "value_loss", "grad_norm", "critic_grad_norm"),
}
# fp32 on another device rounds in another order, as other micro-batches do; the limit leaves room for its kernels.
FP32, WEIGHTS = 1e-4, 2e-4
HALF = {"bf16": 0.05, "fp16": 0.02}  # of the first step, before trajectories part


def values(runs: Runs, name: str, series: str) -> np.ndarray:
    """A series of the training steps."""
    return np.array([row[series] for row in runs.metrics(name) if row["phase"] == "train" and series in row])


def distance(runs: Runs, first: str, second: str, kind: str, steps: int | None = None) -> dict[str, float]:
    """Series -> largest difference of two runs, relative to its size where that is above 1."""
    found = {}
    for series in SERIES[kind]:
        one, other = (values(runs, name, series)[:steps] for name in (first, second))
        assert len(one) == len(other) > 0
        found[series] = float(np.abs(one - other).max() / max(1.0, np.abs(other).max()))
    return found


def weight_distance(runs: Runs, first: str, second: str) -> float:
    """Largest difference of two runs' weights."""
    one, other = (load_file(runs.output(name) / "model/model.safetensors") for name in (first, second))
    assert one.keys() == other.keys()
    return max(float((one[key].float() - other[key].float()).abs().max()) for key in one)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_in_fp32_is_the_same_on_the_device_and_on_the_cpu(
    runs: Runs, device: torch.device, kind: str, record_property: Note
) -> None:
    assert runs.manifest(f"{kind} fp32")["device"] == device.type
    assert runs.manifest(f"{kind} cpu")["device"] == "cpu"
    devices = [] if device.type == "cpu" else [distributed.device_name()]
    assert runs.manifest(f"{kind} fp32").get("devices", []) == devices
    assert "devices" not in runs.manifest(f"{kind} cpu")
    found = distance(runs, f"{kind} fp32", f"{kind} cpu", kind)
    weights = weight_distance(runs, f"{kind} fp32", f"{kind} cpu")
    record_property("metrics", max(found.values()))
    record_property("weights", weights)
    assert max(found.values()) <= FP32, found
    assert weights <= WEIGHTS


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_the_first_step_in_half_precision_is_near_that_in_fp32(
    runs: Runs, kind: str, dtype: str, record_property: Note
) -> None:
    found = distance(runs, f"{kind} {dtype}", f"{kind} cpu", kind, steps=1)
    found.pop("accuracy", None)  # counts: a pair that is nearly even may turn
    record_property("metrics", max(found.values()))
    assert max(found.values()) <= HALF[dtype], found


@pytest.mark.parametrize("dtype", HALF)
def test_ppo_in_half_precision_passes_its_own_checks(runs: Runs, dtype: str, record_property: Note) -> None:
    """That sampling and training agree, and that the first ratio is 1: else the stage would have stopped."""
    rows = runs.metrics(f"ppo {dtype}")
    record_property("first ratio", max(row["first_ratio_error"] for row in rows))
    record_property("mean first ratio", max(row["first_ratio_mean_error"] for row in rows))
    record_property("sampling", max(row["sampling_logprob_error"] for row in rows))
    assert len(rows) == 3
    for row in rows:
        found = [row[name] for name in SERIES["ppo"] if name in row]
        assert np.isfinite(found).all()
        # fp16 starts at a loss scale that may overflow: what took no step in an iteration has no loss there.
        assert len(found) == len(SERIES["ppo"]) or (dtype == "fp16" and row["skipped_steps"] > 0)


@pytest.mark.parametrize("way", ["zero 1", "zero 2", "zero 3", "zero 3 offload"])
@pytest.mark.parametrize("kind", KINDS)
def test_zero_on_one_gpu_computes_what_no_zero_does(runs: Runs, kind: str, way: str, record_property: Note) -> None:
    found = distance(runs, f"{kind} {way}", f"{kind} fp32", kind)
    weights = weight_distance(runs, f"{kind} {way}", f"{kind} fp32")
    record_property("metrics", max(found.values()))
    record_property("weights", weights)
    assert max(found.values()) <= FP32, found
    assert weights <= WEIGHTS


@pytest.mark.parametrize("name", [*KINDS, "sft long"])
def test_a_rerun_is_bit_identical(runs: Runs, name: str) -> None:
    """`sft long`: at the length of real rows the backward pass of attention adds up in parts."""
    assert runs.metrics(f"{name} again") == runs.metrics(f"{name} first")
    assert runs.weights(f"{name} again") == runs.weights(f"{name} first")


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_stage_ends_with_the_weights_of_an_unbroken_one(runs: Runs, kind: str) -> None:
    """In bf16, with dropout on the device where the stage has it."""
    manifest = runs.manifest(f"{kind} interrupted")
    assert manifest["attempts"] == 2
    assert manifest["checkpoints"]["resumed_from_step"] == INTERRUPTED_AFTER
    assert runs.metrics(f"{kind} interrupted") == runs.metrics(f"{kind} first")
    assert runs.weights(f"{kind} interrupted") == runs.weights(f"{kind} first")
