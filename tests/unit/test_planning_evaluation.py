"""Memory plans of the evaluations: one model at a time, in its precision, whole or shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf.config.schema import MemorySettings
from rlhf.errors import UserError
from rlhf.memory.devices import GIB, Device, find_device
from rlhf.planning.files import plan_from_files, refusal
from rlhf.planning.plan import plan_stage
from rlhf.records.plan import MemoryPlan
from tests.specifications import specification
from tests.unit.test_planning import OPT_13B, OPT_350M, opt

WIDTH, LAYERS, VOCABULARY = 512, 6, 1024
PROMPT, ANSWER, ROWS = 8, 56, 8
MODEL = opt(WIDTH, LAYERS, vocab_size=VOCABULARY)
# Counted by hand: 12 w^2 + 13 w of a layer, the embedding, which is tied to the output, and two norms.
WEIGHTS = LAYERS * (12 * WIDTH**2 + 13 * WIDTH) + (VOCABULARY + 2050) * WIDTH + 2 * WIDTH
ROLES = {"evaluate_sft": ["policy"], "evaluate_reward": ["reward"], "baseline": ["policy", "reward"]}
ROLES["evaluate_ppo"] = ["policy", "reference", "reward"]
PASSES = {
    "evaluate_sft": {"score policy"},
    "evaluate_reward": {"score reward"},
    "baseline": {"generate policy", "score reward"},
    "evaluate_ppo": {"generate policy", "score policy", "score reference", "score reward"},
}


def stage(kind: str, dtype: str = "fp32", **execution: Any) -> Any:
    sampling = {"max_prompt_seq_len": PROMPT, "max_answer_seq_len": ANSWER, "temperature": 1.0, "gold_reward": None}
    settings: dict[str, Any] = sampling if kind in ("baseline", "evaluate_ppo") else {"max_seq_len": PROMPT + ANSWER}
    how = {"per_device_eval_batch_size": ROWS, "gpus_per_node": 1} | execution
    upstream = {"sft": "s-00000000", "reward": "r-00000000", "ppo": "p-00000000", "baseline": "b-00000000"}
    needed = {"evaluate_sft": ["sft"], "evaluate_reward": ["reward"], "baseline": ["sft", "reward"]}
    own = {role: upstream[role] for role in needed.get(kind, upstream)}
    return specification(kind, settings | {"dtype": dtype}, how, own)


def planned(kind: str, dtype: str = "fp32", device: Device | None = None, **execution: Any) -> MemoryPlan:
    made = stage(kind, dtype, **execution)
    configs = dict.fromkeys(ROLES[kind], MODEL)
    return plan_stage(kind, made.settings, made.execution, configs, device, "adapt")


def held(plan: MemoryPlan, part: str, kind: str) -> int:
    (found,) = (one for one in plan["phases"] if one["part"] == part)
    return sum(row["bytes"] for row in found["rows"] if row["kind"] == kind)


@pytest.mark.parametrize("kind", ROLES)
def test_no_part_has_more_than_one_model(kind: str) -> None:
    plan = planned(kind)
    assert {part["part"] for part in plan["phases"]} == PASSES[kind] | {f"load {role}" for role in ROLES[kind]}
    for part in plan["phases"]:
        assert {row["model"] for row in part["rows"]} == {part["part"].split()[1]}
        assert not {"gradients", "optimizer"} & {row["kind"] for row in part["rows"]}
    assert plan["expected_allocated"] == max(part["allocated"] for part in plan["phases"])
    assert plan["disk"] == {} and plan["closed_form"] is None


@pytest.mark.parametrize(("dtype", "element"), [("fp32", 4), ("bf16", 2), ("fp16", 2)])
def test_weights_and_cache_have_the_precision_of_the_evaluation(dtype: str, element: int) -> None:
    plan = planned("baseline", dtype)
    assert held(plan, "generate policy", "weights") == pytest.approx(element * WEIGHTS, rel=0.001)
    keys_and_values = 2 * LAYERS * ROWS * (PROMPT + ANSWER) * WIDTH * element
    assert keys_and_values * 0.97 <= held(plan, "generate policy", "kv_cache") <= keys_and_values * 1.3


def test_processes_that_share_a_model_hold_a_part_of_it_each() -> None:
    whole, shared = (planned("baseline", gpus_per_node=4, zero_stage=zero) for zero in (0, 3))
    weights = [held(plan, "generate policy", "weights") for plan in (whole, shared)]
    assert weights[0] == pytest.approx(4 * WEIGHTS, rel=0.001)
    assert weights[1] == pytest.approx(weights[0] / 4, rel=0.02)
    assert held(shared, "generate policy", "buffers") > 0  # what is gathered


def test_a_stage_that_does_not_fit_shares_its_models_first_and_then_computes_fewer_rows_at_a_time() -> None:
    card = find_device("a100-40g")
    made = stage("baseline", "fp16", gpus_per_node=8, per_device_eval_batch_size=64)
    settings = made.settings.model_copy(update={"max_prompt_seq_len": 256, "max_answer_seq_len": 256})
    configs = {"policy": OPT_13B, "reward": OPT_350M}
    shared = plan_stage("baseline", settings, made.execution, configs, card, "adapt")
    taken = [step["name"] for step in shared["adaptations"]]
    assert (shared["verdict"], taken) == ("fits", ["zero_stage 3", "per_device_eval_batch_size 32"])
    assert shared["execution"]["zero_stage"] == 3
    names = [step["name"] for step in shared["after_out_of_memory"]]
    assert names == [f"per_device_eval_batch_size {size}" for size in (16, 8, 4, 2, 1)]
    alone = made.execution.model_copy(update={"gpus_per_node": 1})
    names = [step["name"] for step in plan_stage("baseline", settings, alone, configs, card)["advice"]]
    assert names and all(name.startswith("per_device_eval_batch_size ") for name in names)


def test_a_process_reads_one_model_after_the_other_and_writes_none() -> None:
    one, three = (planned(kind)["host"]["node"] for kind in ("evaluate_sft", "evaluate_ppo"))
    assert one == pytest.approx(three, rel=0.01)
    several = planned("evaluate_sft", gpus_per_node=4)["host"]["node"]
    assert several == pytest.approx(4 * one, rel=0.01)


def test_an_evaluation_is_planned_from_files_with_the_adapters_that_are_merged_by_then(tmp_path: Path) -> None:
    MODEL.save_pretrained(tmp_path / "model")
    model, device = tmp_path / "model", MemorySettings(gpu="l4", on_misfit="refuse")
    plans = {}
    for rank in (0, 64):
        adapters = {"lora_dim": rank, "lora_module_name": "layers."}
        before = specification("sft", adapters, id="s-00000000"), specification("reward", adapters, id="r-00000000")
        trained = specification("ppo", {"actor": adapters | {"dropout": 0.0}}, id="p-00000000")
        files = []
        for spec in (*before, trained):
            files.append(tmp_path / f"{spec.id}-{rank}.yaml")
            files[-1].write_text(yaml.safe_dump(spec.identity()))
        made = stage("evaluate_ppo", "bf16")
        plans[rank] = plan_from_files(made, device, [model] * 3, tmp_path / "plan.json", files)
        if rank == 0:
            with pytest.raises(UserError, match=r"--upstream: the spec\.yaml of ppo p-00000000 is missing"):
                plan_from_files(made, device, [model] * 3, tmp_path / "plan.json", files[:2])
    linear = LAYERS * (4 * (WIDTH + WIDTH) + (WIDTH + 4 * WIDTH) * 2) * 64 * 2  # both matrices of a layer, in bf16
    extra = {
        part: held(plans[64], part, "weights") - held(plans[0], part, "weights")
        for part in ("score policy", "score reference", "score reward")
    }
    assert extra["score reference"] == pytest.approx(linear, rel=0.01)
    assert extra["score policy"] == pytest.approx(2 * linear, rel=0.01)  # of SFT and of PPO
    assert extra["score reward"] == pytest.approx(linear, rel=0.01)


def test_a_refusal_names_the_stage_and_what_would_help(tmp_path: Path) -> None:
    MODEL.save_pretrained(tmp_path / "model")
    memory = MemorySettings(gpu_memory_gib=0.3, on_misfit="refuse")
    made = stage("evaluate_sft")
    before = specification("sft", id="s-00000000")
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(before.identity()))
    plan = plan_from_files(made, memory, [tmp_path / "model"], tmp_path / "plan.json", [tmp_path / "sft.yaml"])
    assert plan["decision"] == "refuse"
    assert plan["upper_device"] is not None and plan["upper_device"] > 0.3 * GIB
    assert refusal(plan).startswith(f"evaluate_sft {made.id}: needs up to")
