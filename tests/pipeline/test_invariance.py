"""How a stage runs must not change what it computes: classes of runs that have one trajectory.

Each member differs from its class's reference in `execution`, in the number of processes, or in a setting that only
says how. Members of one process run in one process, after another; those of two start with DeepSpeed's launcher.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from rlhf.files import read_jsonl
from rlhf.models.loading import load_policy
from rlhf.training.sft import AnswerLikelihood
from rlhf.training.stage import StagePaths
from rlhf.training.supervised import mean_loss
from tests.project import Project
from tests.snakemake import ROOT, run_processes
from tests.specifications import specification_of

LORA = {"lora_dim": 4, "lora_module_name": "attn", "lora_learning_rate": 1e-2, "only_optimize_lora": True}
SERIES = {
    "sft": ("loss", "grad_norm"),
    "reward": ("loss", "accuracy", "grad_norm"),
    "ppo": ("kl", "score", "policy_loss", "value_loss", "grad_norm", "critic_grad_norm"),
}
LARGEST, MEAN = 2e-5, 5e-6  # the mean catches a systematic shift that stays small
WEIGHTS = 5e-5
# Adam blows the rounding noise of gradients that are exactly 0 up to whole steps (key biases): not with this epsilon.
CALM = {"adam_epsilon": 1e-5}
# ZeRO-3 leaves parameters of fewer than 100,000 numbers whole: here all of them, unless it is told otherwise.
PARTITIONED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
SMALL_BUCKETS = {"zero_optimization": {"reduce_bucket_size": 1000, "allgather_bucket_size": 1000}}


@dataclass(frozen=True)
class Member:
    """A run that must reproduce the reference of its class."""

    execution: dict[str, Any] = field(default_factory=dict)
    processes: int = 1


def zero(stage: int, processes: int = 1, **more: Any) -> Member:
    return Member({"zero_stage": stage} | more, processes=processes)


def ppo_zero(stage: int, processes: int = 1, **more: Any) -> Member:
    return Member({"actor_zero_stage": stage, "critic_zero_stage": stage} | more, processes=processes)


SUPERVISED = {
    "reference": Member(),
    "micro-batches of 1": Member({"per_device_train_batch_size": 1}),
    "one micro-batch": Member({"per_device_train_batch_size": 32}),
    "checkpointing": Member({"gradient_checkpointing": True}),
    "zero 1": zero(1),
    "zero 2, offload, small buckets": zero(2, offload=True, deepspeed_config=SMALL_BUCKETS),
    "zero 3, partitioned": zero(3, deepspeed_config=PARTITIONED),
    "zero 3, offload, checkpointing": zero(3, offload=True, gradient_checkpointing=True),
    "2 ranks": Member(processes=2),
    "2 ranks, uneven": Member({"per_device_train_batch_size": 5}, processes=2),
    "2 ranks, zero 2": zero(2, 2),
    "2 ranks, zero 3, checkpointing": zero(3, 2, gradient_checkpointing=True),
    "2 ranks, zero 3, partitioned, offload": zero(3, 2, offload=True, deepspeed_config=PARTITIONED),
}
PACKED = {
    "packed": Member({"packing": True}),
    "packed, 2 ranks, zero 3": zero(3, 2, packing=True),
}
SHARED_PROMPTS = {
    "prompt computed once": Member({"share_prompt": True}),
    "prompt computed once, 2 ranks, zero 2": zero(2, 2, share_prompt=True),
}
ADAPTERS = {
    "reference": Member(),
    "micro-batches of 1": Member({"per_device_train_batch_size": 1}),
    "zero 3, checkpointing": zero(3, gradient_checkpointing=True),
    "2 ranks, zero 2": zero(2, 2),
    "2 ranks, zero 3, partitioned": zero(3, 2, deepspeed_config=PARTITIONED),
}
PPO = {
    "reference": Member(),
    "other micro-batches": Member({"per_device_training_batch_size": 8, "per_device_generation_batch_size": 16}),
    "checkpointing": Member({"actor_gradient_checkpointing": True, "critic_gradient_checkpointing": True}),
    "zero 1": ppo_zero(1),
    "zero 2, offload": ppo_zero(2, offload=True),
    "zero 3": ppo_zero(3),
    "2 ranks": Member(processes=2),
    "2 ranks, zero 3": ppo_zero(3, 2),
    "2 ranks, zero 3, partitioned, offload": ppo_zero(
        3, 2, offload_reference_model=True, offload_reward_model=True, deepspeed_config=PARTITIONED
    ),
}
PPO_ADAPTERS = {
    "reference": Member({"reference": "separate"}),
    "adapters off": Member({"reference": "adapters_off"}),
    "adapters off, 2 ranks, zero 3": Member({"actor_zero_stage": 3, "reference": "adapters_off"}, processes=2),
}
# Class -> stage, settings that all its members share, members. Without dropout: its masks belong to a micro-batch.
CLASSES: dict[str, tuple[str, dict[str, Any], dict[str, Member]]] = {
    "sft": ("sft", {"dropout": 0.0, **CALM}, SUPERVISED | PACKED),
    "sft with adapters": ("sft", {"dropout": 0.0, **CALM, **LORA}, ADAPTERS),
    "reward": ("reward", {"dropout": 0.0, **CALM}, SUPERVISED | SHARED_PROMPTS),
    "ppo": ("ppo", {"actor": CALM, "critic": CALM, "ema_decay": 0.5}, PPO),
    "ppo with adapters": ("ppo", {"actor": LORA | CALM, "critic": CALM, "ema_decay": 0.5}, PPO_ADAPTERS),
}
CASES = [(name, member) for name, (_, _, members) in CLASSES.items() for member in members if member != "reference"]
# In bf16 a micro-batch of another size is rounded otherwise, and so are the weights after it: only near the reference.
BF16 = {"dropout": 0.0, "dtype": "bf16", **CALM}
SUPERVISED_BF16 = {
    "reference": Member(),
    "micro-batches of 1": Member({"per_device_train_batch_size": 1}),
    "one micro-batch": Member({"per_device_train_batch_size": 32}),
    "zero 2, offload, small buckets": zero(2, offload=True, deepspeed_config=SMALL_BUCKETS),
    "2 ranks, uneven": Member({"per_device_train_batch_size": 5}, processes=2),
    "2 ranks, zero 3": zero(3, 2),
}
PPO_BF16 = {
    "reference": Member(),
    "micro-batches of 1": Member({"per_device_training_batch_size": 1, "per_device_generation_batch_size": 16}),
    "2 ranks": Member(processes=2),
}
CLASSES_BF16: dict[str, tuple[str, dict[str, Any], dict[str, Member]]] = {
    "sft in bf16": ("sft", BF16, SUPERVISED_BF16),
    "reward in bf16": ("reward", BF16, SUPERVISED_BF16),
    # One rollout: later ones are of other weights, and a unit in the last place may change a token that is sampled.
    "ppo in bf16": ("ppo", {"actor": CALM, "critic": CALM, "dtype": "bf16", "iterations": 1}, PPO_BF16),
}
CASES_BF16 = [(name, member) for name, (_, _, own) in CLASSES_BF16.items() for member in own if member != "reference"]
# Stage -> series -> largest and mean difference: three times what was measured, or a little more. The accuracy of a
# batch is left out, because one unit in the last place turns a pair round.
NEAR = {
    "sft": {"loss": (1e-3, 2e-4), "grad_norm": (1e-2, 1.5e-3)},
    "reward": {"loss": (5e-3, 1e-3), "grad_norm": (5e-3, 1e-3)},
    "ppo": {
        "policy_loss": (3e-4, 3e-4),
        "value_loss": (1e-3, 1e-3),
        "grad_norm": (3e-3, 3e-3),
        "critic_grad_norm": (3e-3, 3e-3),
    },
}
# Norm of the difference of all weights, relative to theirs: three times what was measured, a fourteenth of what
# training changes, or less.
NEAR_WEIGHTS = {"sft": 8e-3, "reward": 5e-3, "ppo": 1.2e-3}
# Not members: they must be told apart.
SHIFTED = {
    "sft": ("sft", {"dropout": 0.0, **CALM, "learning_rate": 5.01e-3}, {"shifted": Member()}),
    "sft in bf16": ("sft", BF16 | {"learning_rate": 5.2e-3}, {"shifted": Member()}),
}


class Runs:
    """All members of all classes, run once."""

    def __init__(self, project: Project, folder: Path) -> None:
        self._project, self._folder = project, folder
        commands: dict[int, list[list[str]]] = {
            1: [self._command("as in the workflow", kind, {}, Member()) for kind in SERIES]
        }
        for table in (CLASSES, CLASSES_BF16, SHIFTED):
            for name, (kind, settings, members) in table.items():
                for title, member in members.items():
                    command = self._command(f"{name}/{title}", kind, settings, member)
                    commands.setdefault(member.processes, []).append(command)
        for processes, lines in commands.items():
            self._run(processes, lines)

    def folder(self, name: str, kind: str) -> Path:
        return self._folder / f"{name} ({kind})".replace("/", "-")

    def metrics(self, name: str, kind: str) -> list[dict[str, float]]:
        return read_jsonl(self.folder(name, kind) / "metrics.jsonl")

    def paths(self, kind: str, output: Path) -> StagePaths:
        upstream, results = self._project.plan.of_kind(kind)[0].upstream, self._project.folder / "results"
        tokens = [results / "tokens" / id for id in upstream.tokens]
        splits = [results / "split" / id / "rows" for id in upstream.split]
        return StagePaths(tokens, splits, output, output / "state")

    def spec(self, kind: str, settings: dict[str, Any], execution: dict[str, Any] | None = None) -> Any:
        return specification_of(self._project.plan.of_kind(kind)[0], settings, execution)

    def _command(self, name: str, kind: str, settings: dict[str, Any], member: Member) -> list[str]:
        output = self.folder(name, kind)
        output.mkdir()
        spec = self.spec(kind, settings, member.execution)
        (output / "spec.yaml").write_text(yaml.safe_dump(spec.identity()))
        paths = self.paths(kind, output)
        command = [ROOT / f"workflow/scripts/train_{kind}.py", "--spec", output / "spec.yaml"]
        command += ["--execution", spec.execution.model_dump_json()]
        command += ["--tokens", *paths.tokens, "--split", *paths.splits]
        command += ["--output", output, "--state", paths.state]
        if kind == "ppo":
            results = {role: self._project.results(role) / "model" for role in ("sft", "reward")}
            command += ["--sft", results["sft"], "--reward", results["reward"]]
        else:
            model = spec.upstream.model
            command += ["--model", self._project.folder / "resources/models" / model / "model"]
        return list(map(str, command))

    def _run(self, processes: int, commands: list[list[str]]) -> None:
        listing = self._folder / f"commands-{processes}.json"
        listing.write_text(json.dumps(commands))
        run_processes(processes, ROOT / "tests/pipeline/run_scripts.py", listing, timeout=900)


@pytest.fixture(scope="module")
def runs(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All runs of this file."""
    return Runs(finished, tmp_path_factory.mktemp("invariance"))


def distances(
    first: list[dict[str, float]], second: list[dict[str, float]], series: tuple[str, ...], rows: int = 3
) -> dict[str, Any]:
    """Series -> largest and mean difference over the trajectory, relative to its size where that is above 1.

    Each series has at least so many `rows`.
    """
    found = {}
    for name in series:
        one, other = (np.array([row[name] for row in run if name in row]) for run in (first, second))
        assert len(one) == len(other) >= rows
        difference = (one - other) / max(1.0, float(np.abs(other).max()))
        found[name] = (float(np.abs(difference).max()), float(abs(difference.mean())))
    return found


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def relative_distance(first: dict[str, Any], second: dict[str, Any]) -> float:
    """Norm of the difference of all weights, divided by that of the second ones."""
    one, other = (torch.cat([found[key].double().flatten() for key in second]) for found in (first, second))
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(("name", "member"), CASES)
def test_a_member_has_the_trajectory_and_the_weights_of_its_class(runs: Runs, name: str, member: str) -> None:
    kind = CLASSES[name][0]
    reference = runs.metrics(f"{name}/reference", kind)
    found = distances(runs.metrics(f"{name}/{member}", kind), reference, SERIES[kind])
    assert all(largest <= LARGEST and mean <= MEAN for largest, mean in found.values()), found
    for model in ("model", "model_ema") if kind == "ppo" else ("model",):
        ours, theirs = (weights(runs.folder(f"{name}/{title}", kind) / model) for title in (member, "reference"))
        assert ours.keys() == theirs.keys()
        assert max(float((ours[key] - theirs[key]).abs().max()) for key in ours) <= WEIGHTS


@pytest.mark.parametrize(("name", "member"), CASES_BF16)
def test_in_bf16_a_member_is_near_the_trajectory_and_the_weights_of_its_class(
    runs: Runs, name: str, member: str
) -> None:
    kind = CLASSES_BF16[name][0]
    ours, theirs = (runs.metrics(f"{name}/{title}", kind) for title in (member, "reference"))
    found = distances(ours, theirs, tuple(NEAR[kind]), rows=1 if kind == "ppo" else 3)
    for series, (largest, mean) in NEAR[kind].items():
        assert found[series][0] <= largest and found[series][1] <= mean, (series, found)
    models = [weights(runs.folder(f"{name}/{title}", kind) / "model") for title in (member, "reference")]
    assert relative_distance(*models) <= NEAR_WEIGHTS[kind]


def test_the_limits_of_bf16_tell_a_twenty_fifth_of_the_learning_rate_apart(runs: Runs) -> None:
    reference = runs.metrics("sft in bf16/reference", "sft")
    found = distances(runs.metrics("sft in bf16/shifted", "sft"), reference, SERIES["sft"])["loss"]
    assert found[0] > NEAR["sft"]["loss"][0] and found[1] > NEAR["sft"]["loss"][1]


def test_the_limits_tell_a_fifth_of_a_percent_of_the_learning_rate_apart(runs: Runs) -> None:
    found = distances(runs.metrics("sft/shifted", "sft"), runs.metrics("sft/reference", "sft"), SERIES["sft"])
    assert found["loss"][0] > LARGEST and found["loss"][1] > MEAN


@pytest.mark.parametrize("kind", list(SERIES))
def test_scripts_after_one_another_are_what_the_workflow_runs(runs: Runs, finished: Project, kind: str) -> None:
    """To the last digit, dropout and sampling included."""
    ours = runs.metrics("as in the workflow", kind)
    for row, expected in zip(ours, read_jsonl(finished.results(kind) / "metrics.jsonl"), strict=True):
        assert [row.get(name) for name in SERIES[kind]] == [expected.get(name) for name in SERIES[kind]]


def test_merged_adapters_compute_what_the_unmerged_did(runs: Runs, group: None) -> None:
    folder = runs.folder("sft with adapters/reference", "sft")
    rows = runs.metrics("sft with adapters/reference", "sft")
    stage_paths = runs.paths("sft", folder)
    unseen = stage_paths.corpus("eval", "sft")
    unseen.keep(np.arange(len(unseen)) < 1000, "sft.max_eval_rows")
    merged = mean_loss(load_policy(folder / "model", "fp32").eval(), AnswerLikelihood(), unseen, 16)["loss"]
    assert merged == pytest.approx(rows[-1]["loss"], abs=1e-5)
    assert rows[-1]["phase"] == "eval" and rows[-1]["loss"] < rows[0]["loss"] - 0.1
