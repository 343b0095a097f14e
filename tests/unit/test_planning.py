"""Memory plans: PPO's phases, verdicts, steps that help, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from rlhf.commands.memory import main
from rlhf.config import resolve
from rlhf.config.schema import MemorySettings
from rlhf.config.stages import Optimization, PpoExecution, PpoSection, PpoSettings, SftSection
from rlhf.errors import UserError
from rlhf.memory.blueprint import Blueprint, Counts, count_parameters
from rlhf.memory.devices import GIB, Device, device_memory, find_device
from rlhf.memory.dryrun import DryRun, dry_run, trace
from rlhf.memory.host import LIBRARIES, host_memory
from rlhf.memory.parts import ALL_KINDS, Resident, largest, load_part, save_part
from rlhf.memory.states import Engine
from rlhf.memory.tracker import ACTIVATIONS, CACHE, GRANULARITY, LOGITS
from rlhf.models.scores import answer_logits, token_logprobs
from rlhf.planning.files import plan_from_files
from rlhf.planning.ladder import ladder
from rlhf.planning.plan import plan_stage
from rlhf.planning.ppo import (
    DECODE,
    FIRST,
    PREFILL,
    SCORE,
    generation_program,
    longest_samples,
    scoring_program,
    update_program,
)
from rlhf.ppo.losses import log_ratio, policy_loss
from rlhf.records.plan import StagePlan
from tests.records import problems
from tests.specifications import specification

ROWS, PROMPT, ANSWER = 3, 10, 6
WORKED = {"max_prompt_seq_len": PROMPT, "max_answer_seq_len": ANSWER}


def opt(width: int = 64, layers: int = 3, **more: Any) -> PreTrainedConfig:
    keys = {"ffn_dim": 4 * width, "num_attention_heads": 4, "word_embed_proj_dim": width, "vocab_size": 256} | more
    return AutoConfig.for_model(
        "opt", hidden_size=width, num_hidden_layers=layers, **keys, pad_token_id=0, eos_token_id=1, bos_token_id=None
    )


OPT_13B = opt(5120, 40, num_attention_heads=40, vocab_size=50272, max_position_embeddings=2048)
OPT_350M = opt(1024, 24, num_attention_heads=16, vocab_size=50272, word_embed_proj_dim=512, do_layer_norm_before=False)


def rectangle() -> Any:
    return longest_samples(ROWS, PROMPT, ANSWER)


def programs() -> dict[str, Any]:
    settings = PpoSettings(**WORKED)
    return {
        "generation": ("lm", generation_program(ROWS, PROMPT, ANSWER)),
        "policy scores": ("lm", scoring_program(rectangle(), "policy", 0.7)),
        "reward scores": ("score", scoring_program(rectangle(), "reward", 1.0)),
        "policy update": ("lm", update_program(rectangle(), "policy", settings, True, 0)),
        "mixed update": ("lm", update_program(rectangle(), "policy", settings, False, 2)),
        "value update": ("score", update_program(rectangle(), "value", settings, False, 0)),
    }


@pytest.mark.parametrize("name", programs())
def test_parts_of_ppo_hold_what_real_tensors_hold(name: str) -> None:
    head, program = programs()[name]
    optimization = Optimization(dropout=0.0)
    plan = Blueprint(opt(), head, "fp32", optimization)
    executed = trace(plan.build(device="cpu"), plan, 3, program)
    assert dry_run(plan, program, cuda=False).items() >= executed.items()
    names = {place.split("|")[0] for place in executed}
    assert names & {PREFILL, SCORE, FIRST}


@pytest.mark.parametrize("trains", [False, True])
def test_the_plan_of_a_pass_holds_what_the_stage_holds(trains: bool) -> None:
    """The stage chooses logits by a mask, the plan by columns: the same tables, those of answer tokens alone."""
    optimization = Optimization(dropout=0.0)
    part, plan = rectangle(), Blueprint(opt(vocab_size=4096), "lm", "fp32", optimization)  # logits make the peak
    name = FIRST if trains else SCORE

    def logprobs(run: DryRun) -> Tensor:
        return part.table(token_logprobs(answer_logits(run.model, *part.inputs) / 0.7, part.targets))

    def stage(run: DryRun) -> None:
        run.model.train(trains)
        run.clock.start(name)
        with torch.set_grad_enabled(trains):
            ratio = log_ratio(logprobs(run), torch.zeros(part.mask.shape), part.mask).exp()
            if trains:
                policy_loss(ratio, torch.zeros(part.mask.shape), part.mask, 0.2).backward()

    settings = PpoSettings(**WORKED, temperature=0.7)
    planned = update_program(part, "policy", settings, False, 0) if trains else scoring_program(part, "reference", 0.7)
    found = [trace(plan.build(device="cpu"), plan, 3, program) for program in (planned, stage)]
    wide, same = (max(peak.kinds[LOGITS] for peak in places.values()) for places in found)
    assert wide == same
    assert wide % (4 * 4096 * ROWS * ANSWER) == 0 < wide  # fp32, vocabulary; no prompt
    ours, theirs = (largest(places, name) for places in found)
    # Between them: the samples, which the plan counts, masks, and a copy of the chosen hidden states.
    assert abs(sum(ours.values()) - sum(theirs.values())) <= 8 * GRANULARITY + 4 * 64 * ROWS * ANSWER


def test_the_cache_holds_keys_and_values_of_all_tokens() -> None:
    plan = Blueprint(opt(layers=4), "lm", "bf16", None)
    places = dry_run(plan, generation_program(8, 100, 28))
    held = places[f"{DECODE}|forward|after"].kinds[CACHE]
    assert held == 2 * 4 * 8 * 128 * 64 * 2  # two, layers, rows, tokens, width, bytes


def ppo_plan(execution: dict[str, Any], device: Device | None, on_misfit: str = "warn") -> dict[str, Any]:
    actor = {"lora_dim": 128}
    section = PpoSection(dtype="fp16", prompts_per_rollout=4, actor=actor, execution=execution)
    return plan_stage("ppo", section, section.execution, {"policy": OPT_13B, "reward": OPT_350M}, device, on_misfit)


def test_ppo_of_13b_on_one_gpu_is_the_worked_example() -> None:
    """Four models on one card: 67 to 68 GiB, of which weights are 50, optimizer states 12, and sums of gradients 4."""
    execution = {
        "gpus_per_node": 1,
        "actor_zero_stage": 2,
        "critic_zero_stage": 2,
        "actor_gradient_checkpointing": True,
        "per_device_training_batch_size": 4,
        "per_device_generation_batch_size": 4,
    }
    plan = ppo_plan(execution, None)
    assert 67 < plan["expected_allocated"] / GIB < 68
    step = next(part for part in plan["phases"] if part["part"] == "actor step")
    kinds = {row["kind"]: row["bytes"] / GIB for row in step["rows"] if row["model"] == "policy"}
    assert kinds["gradients"] == pytest.approx(kinds["optimizer"] / 3, abs=0.01)  # 4 bytes to 12
    assert plan["verdict"] == "not judged"
    assert plan["decision"] == "accept"
    allocated = {part["phase"]: part["allocated"] for part in plan["phases"]}
    assert allocated.keys() == {"load", "generate", "score", "train", "save"}
    scoring = next(part for part in plan["phases"] if part["phase"] == "score")
    kept = {row["model"]: row["bytes"] / GIB for row in scoring["rows"] if row["kind"] == "weights"}
    assert kept == pytest.approx({"policy": 24.82, "reference": 23.94, "reward": 0.62, "value": 0.62}, abs=0.01)


def sft_plan(device: Device | None, on_misfit: str, **execution: Any) -> dict[str, Any]:
    section = SftSection(dtype="fp16", lora_dim=128, global_batch_size=32, execution=execution)
    return plan_stage("sft", section, section.execution, {"model": OPT_13B}, device, on_misfit)


def test_steps_make_it_fit_and_the_plan_says_which() -> None:
    device = find_device("a6000")
    plan = sft_plan(device, "adapt", gpus_per_node=1, per_device_train_batch_size=8)
    assert plan["verdict"] == "fits"
    assert plan["decision"] == "adapt"
    names = [entry["name"] for entry in plan["adaptations"]]
    assert names[0].startswith("evaluate") or "gradient_checkpointing" in names
    assert plan["execution"]["gradient_checkpointing"] is True
    assert plan["as_given"]["upper_device"] > 0.97 * device.capacity >= plan["upper_device"]
    saved = sum(entry["saves"] for entry in plan["adaptations"])
    assert saved == plan["as_given"]["upper_device"] - plan["upper_device"]


def test_what_cannot_fit_is_refused_and_a_remedy_is_named() -> None:
    plan = sft_plan(find_device("t4"), "refuse", gpus_per_node=1, per_device_train_batch_size=1)
    assert (plan["verdict"], plan["decision"]) == ("does not fit", "refuse")
    assert plan["adaptations"] == []
    assert [entry["name"] for entry in plan["advice"]]
    assert "would do" in plan["remedy"]
    assert plan["execution"]["gradient_checkpointing"] is False  # nothing was changed


def test_a_warning_changes_nothing() -> None:
    plan = sft_plan(find_device("a6000"), "warn", gpus_per_node=1, per_device_train_batch_size=8)
    assert (plan["verdict"], plan["decision"], plan["adaptations"]) == ("does not fit", "warn", [])
    assert plan["advice"]


def test_on_the_cpu_tensors_are_host_memory() -> None:
    section = SftSection(dtype="fp32", max_seq_len=32)
    plan = plan_stage("sft", section, section.execution, {"model": opt()}, None)
    assert plan["expected_device"] is None
    assert plan["resources"]["gpus"] == 0
    assert plan["host"]["node"] >= plan["expected_allocated"]
    assert plan["resources"]["mem_mb"] * 1e6 >= plan["host"]["node"]


def test_the_article_stands_beside_the_closed_form() -> None:
    plan = sft_plan(None, "warn", gpus_per_node=8, per_device_train_batch_size=4)
    article = plan["closed_form"]["article"]
    assert article["weights"] / GIB == pytest.approx(23.94, abs=0.005)
    assert article["activations"] / GIB == pytest.approx(19.53, abs=0.005)


def test_the_ladder_keeps_the_result_and_starts_with_what_is_free() -> None:
    execution = PpoExecution(gpus_per_node=4)
    steps = list(ladder(execution, 10**9))
    names = [step.name for step in steps]
    assert names[0] == "actor_gradient_checkpointing"
    assert names.index("offload_reference_model") < names.index("actor_zero_stage 3") < names.index("offload")
    assert {key for step in steps for key in step.change} <= PpoExecution.model_fields.keys()
    alone = [step.name for step in ladder(PpoExecution(gpus_per_node=1), 10**9)]
    assert "offload" in alone
    assert not [name for name in alone if "zero" in name]


def test_three_numbers_of_a_device() -> None:
    memory = device_memory(1000, 0.25, context=200, communicators=0, repeated=300)
    assert (memory.expected_allocated, memory.expected_device, memory.upper_device) == (1000, 1450, 1925)
    assert find_device("A100_80G").capacity == 80 * GIB
    assert find_device(None, 12).capacity == 12 * GIB
    with pytest.raises(UserError, match="gpu_memory_gib"):
        find_device("abacus")


def test_how_memory_is_planned_is_no_part_of_a_stage() -> None:
    config = yaml.safe_load((Path(__file__).resolve().parents[2] / "config/config.yaml").read_text())
    plain = resolve(config, lambda path, key: "")
    config["defaults"]["memory"] = {"gpu": "l4", "on_misfit": "refuse"}
    planned = resolve(config, lambda path, key: "")
    assert planned.stages.keys() == plain.stages.keys()
    assert {stage.memory.gpu for stage in planned.of_kind("ppo")} == {"l4"}
    assert all("memory" not in stage.spec()["settings"] for stage in planned.of_kind("sft"))


def test_a_plan_is_made_from_the_files_of_a_stage(folder: Path, tmp_path: Path) -> None:
    stage = specification("sft", {"dtype": "fp32", "max_seq_len": 32}, {"gpus_per_node": 1}, id="x-00000000")
    output = tmp_path / "memory_plan.json"
    plan = plan_from_files(stage, MemorySettings(gpu_memory_gib=0.1, on_misfit="refuse"), [folder], output)
    assert (plan["verdict"], plan["decision"]) == ("does not fit", "refuse")
    written = json.loads(output.read_text())
    assert written == json.loads(json.dumps({"id": "x-00000000", **plan}))
    assert {row["kind"] for part in written["phases"] for row in part["rows"]} <= set(ALL_KINDS)
    assert problems(written, StagePlan) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    opt().save_pretrained(tmp_path)
    return tmp_path


def test_the_command_says_so_by_its_exit_status(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(folder), "--set", "max_seq_len=64", "--set", "execution.per_device_train_batch_size=2"]
    assert main([*arguments, "--gpu", "l4"]) == 0
    assert "verdict: fits on l4" in capsys.readouterr().out
    assert main([*arguments, "--gpu-memory-gib", "0.1", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["verdict"] == "does not fit"
    assert main([*arguments, "--set", "lora_dims=2"]) == 2
    assert "lora_dim" in capsys.readouterr().err
    assert main([str(folder / "nothing")]) == 2
    assert main([str(folder), "--stage", "ppo"]) == 2
    assert "--reward-model" in capsys.readouterr().err


# Partitions of ZeRO-3, counted by hand: 16-bit weights, 8 processes, no small tensors


def partitioned(role: str, trained: int, cuda: bool = True, **adapted: int) -> Resident:
    sizes = {"largest": 100, "largest_trained": 100, "small": 0, "whole": 1600, "page_locked": 2048} | adapted
    counts = Counts(all=800, trained=trained, **sizes, groups=(trained,))
    return Resident(role, Engine(3, "bf16", 8, reduce_bucket=0, cuda=cuda), counts)


def test_zero_3_reads_shares_and_the_largest_tensor() -> None:
    frozen = [partitioned(role, 0) for role in ("reference", "reward")]
    assert load_part(frozen).total == 2 * (2 * 100) + 2 * 100
    trained = partitioned("policy", 800)  # its engine: master weights, and sums of gradients in fp32
    assert load_part([*frozen, trained]).total == 3 * 200 + 4 * 100 + 4 * 100


def test_zero_3_writes_tensor_by_tensor() -> None:
    states = {800: 200 + 4 * 100 + 12 * 100, 80: 200 + 4 * 10 + 12 * 10}
    asked = {ACTIVATIONS: 7}
    # What was written is compared: the largest tensor is gathered, and copied to fp32, while a sequence is answered.
    assert save_part([partitioned("policy", 800)], "policy", asked).total == states[800] + 200 + 400 + 7
    # The weight of an adapted layer in fp32, its change, and their sum.
    adapted = {"adapted": 400, "largest_adapted": 100, "adapters": 80}
    assert save_part([partitioned("policy", 80, **adapted)], "policy", asked).total == states[80] + 200 + 3 * 400
    # On the CPU the weights wait beside them, those with adapters in fp32; after them comes the model that is loaded.
    on_cpu = partitioned("policy", 80, cuda=False, **adapted)
    assert save_part([on_cpu], "policy", asked).total == states[80] + 200 + 3 * 400 + 4 * 400 + 2 * 320
    assert save_part([partitioned("policy", 800, cuda=False)], "policy", asked).total == states[800] + 607 + 1600
    assert host_memory([on_cpu], [], 1, accumulates=False, cuda=True).save == LIBRARIES[True] + 4 * 400 + 2 * 320


def test_a_model_at_rest_takes_page_locked_host_memory() -> None:
    """Each tensor of it in a block of a power of two, on every process."""
    counts = count_parameters(torch.nn.Linear(5, 3), lambda model: [])  # 60 bytes and 12
    assert (counts.whole, counts.page_locked) == (72, 64 + 16)
    resting = Resident("reference", Engine(0, "fp32", 1), counts, on_device=False)
    host = host_memory([resting], [], processes=4, accumulates=False, cuda=True)
    assert host.steady == LIBRARIES[True] + 80
    assert host.load == LIBRARIES[True] + 72 + 80


def test_under_zero_3_the_first_process_alone_reads_the_files() -> None:
    models = [partitioned("policy", 800), partitioned("reference", 0)]
    host = host_memory(models, [], processes=8, accumulates=False, cuda=True)
    assert host.load == LIBRARIES[True]
    assert host.node == 8 * LIBRARIES[True] + 1600
