"""Small stages, each run once: on the CPU, on the device, interrupted, again, under ZeRO."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.gpu.stages import Workplace
from benchmarks.gpu.worker import NO_GPU, Job, Worker

from rlhf.config.expand import deep_merge
from rlhf.files import read_json, read_jsonl, sha256_tree

KINDS = ("sft", "reward", "ppo")
DTYPES = ("fp32", "bf16", "fp16")
REHEARSAL = os.environ.get("RLHF_GPU_TESTS") == "cpu"  # the CPU in the place of the device, and few of the cases
FAMILIES = ("gpt2",) if REHEARSAL else ("gpt2", "opt", "llama")
LONG = 64 if REHEARSAL else 512  # tokens of a row at which attention's kernels divide their work
SECONDS = 400.0  # for one run, and all before it
TIMES = ("time", "tokens_per_second", "time_generate", "time_score", "time_train")
CPU, DEVICE = "cpu", "device"
INTERRUPTED_AFTER = 2  # steps

# Adam blows the rounding noise of gradients that are exactly 0 up to whole steps (key biases): not with this epsilon.
CALM = {"adam_epsilon": 1e-5, "num_warmup_steps": 0}
CONFIG: dict[str, Any] = {
    "datasets": {
        "reviews": {
            "source": {
                "generator": "rlhf.data.reviews:generate_pairs",
                "arguments": {"rows": 200, "seed": 0},
                "eval_share": 0.2,
            }
        },
        "long": {"source": {"path": "long.jsonl", "eval_share": 0.2}},
    },
    "models": {
        "small": {
            "source": "scratch",
            "architecture": {
                "model_type": "gpt2",
                "n_layer": 2,
                "n_embd": 32,
                "n_head": 2,
                "n_positions": 64,
                **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.1),
            },
            "tokenizer": {"dataset": "reviews", "kind": "words", "vocab_size": 128},
        },
        "wide": {
            "source": "scratch",
            "architecture": {"model_type": "gpt2", "n_layer": 2, "n_embd": 256, "n_head": 4, "n_positions": LONG},
            "tokenizer": {"dataset": "long", "kind": "words", "vocab_size": 256},
        },
    },
    "defaults": {
        "data_path": ["reviews"],
        "data_split": "2,2,1",
        "policy": "small",
        "reward_model": "small",
        "sft": {"global_batch_size": 16, "learning_rate": 5e-3, "max_seq_len": 64, "dropout": 0.0, **CALM},
        "reward": {"global_batch_size": 16, "learning_rate": 2e-3, "max_seq_len": 64, "dropout": 0.0, **CALM},
        "ppo": {
            "iterations": 3,
            "prompts_per_rollout": 8,
            "minibatches": 2,
            "max_prompt_seq_len": 20,
            "max_answer_seq_len": 12,
            "temperature": 0.8,
            "actor": {"learning_rate": 1e-3, **CALM},
            "critic": {"learning_rate": 1e-3, **CALM},
            "execution": {"per_device_training_batch_size": 3, "per_device_generation_batch_size": 5},
        },
    },
    "experiments": {},
}
OF_LENGTH = {"data_path": ["long"], "policy": "wide", "reward_model": "wide"}
LONG_SETTINGS = {"max_seq_len": LONG, "global_batch_size": 8}
# With dropout, whose masks belong to what a checkpoint must hold.
DROPOUT = {"sft": {"dropout": 0.1}, "reward": {"dropout": 0.1}, "ppo": {}}


def zero(kind: str, stage: int, **more: Any) -> dict[str, Any]:
    """Execution under ZeRO; small buckets and no whole parameters, so that partitioning has something to do."""
    engine = {"reduce_bucket_size": 1000, "stage3_param_persistence_threshold": 0}
    keys = ("actor_zero_stage", "critic_zero_stage") if kind == "ppo" else ("zero_stage",)
    return dict.fromkeys(keys, stage) | {"deepspeed_config": {"zero_optimization": engine}} | more


@dataclass(frozen=True)
class Member:
    """One run.

    Args:
        kind: of the stage.
        dtype: its precision.
        place: `cpu` or `device`.
        execution: changes of how it runs.
        dropout: whether layers drop at random.
        interrupted: it gets a SIGTERM, and is started again.
        long: on rows of realistic length.
    """

    kind: str
    dtype: str
    place: str = DEVICE
    execution: dict[str, Any] = field(default_factory=dict)
    dropout: bool = False
    interrupted: bool = False
    long: bool = False

    @property
    def experiment(self) -> str:
        """What it computes."""
        return f"{self.kind}-{self.dtype}" + ("-dropout" if self.dropout else "") + ("-long" if self.long else "")

    @property
    def settings(self) -> dict[str, Any]:
        """Its experiment in the configuration."""
        own = {"dtype": self.dtype, **(DROPOUT[self.kind] if self.dropout else {})}
        if self.long:
            return OF_LENGTH | {self.kind: own | LONG_SETTINGS}
        return {self.kind: own}


def members() -> dict[str, Member]:
    """Name -> run, in the order in which they are made.

    A rehearsal leaves out fp16, in which the CPU does not train, and most of what the tests of stages on the CPU have.
    """
    found = {}
    for kind in KINDS:
        found[f"{kind} cpu"] = Member(kind, "fp32", CPU)
    for kind in KINDS:
        for dtype in DTYPES:
            found[f"{kind} {dtype}"] = Member(kind, dtype)
        for name in ("first", "again"):
            found[f"{kind} {name}"] = Member(kind, "bf16", dropout=True)
        found[f"{kind} interrupted"] = Member(kind, "bf16", dropout=True, interrupted=True)
        for stage in (1, 2, 3):
            found[f"{kind} zero {stage}"] = Member(kind, "fp32", execution=zero(kind, stage))
        found[f"{kind} zero 3 offload"] = Member(kind, "fp32", execution=zero(kind, 3, offload=True))
    for name in ("first", "again"):
        found[f"sft long {name}"] = Member("sft", "bf16", dropout=True, long=True)
    if REHEARSAL:
        kept, more = ("cpu", "fp32", "bf16", "first", "interrupted"), ("sft zero 3 offload", "sft long again")
        return {name: one for name, one in found.items() if name.endswith(kept) or name in more}
    return found


def long_rows(count: int) -> list[dict[str, str]]:
    """Random words, which nearly fill a sequence."""
    generator = np.random.default_rng(0)

    def text() -> str:
        numbers = generator.integers(200, size=generator.integers(7 * LONG // 16, LONG // 2))  # EOS comes with the ids
        return " ".join(f"w{number}" for number in numbers)

    return [{"prompt": text(), "chosen": f" {text()}", "rejected": f" {text()}"} for _ in range(count)]


class Runs:
    """All runs, in the background, in two processes: one without a GPU, and one with it.

    Args:
        folder: where they work.
        device: `cuda`; or `cpu`, where one process does both.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self._device = device
        self._members = members()
        (folder / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long_rows(40)))
        self._workplace = Workplace(folder, self._config(folder))
        cpu = Worker(folder / "cpu.log", NO_GPU)
        self._workers = {CPU: cpu, DEVICE: cpu if device == "cpu" else Worker(folder / "device.log")}
        prepared = [*self._workplace.data(), *self._workplace.models(), *self._workplace.tokens()]
        jobs = [cpu.send(Job.script(command)) for command in prepared]
        self._jobs: dict[str, list[Job]] = {}
        self._send(CPU, KINDS, jobs[-1])
        self._send(DEVICE, ("sft", "reward"), jobs[-1])
        # PPO on the device starts from the models that the CPU has trained.
        self._send(DEVICE, ("ppo",), self._jobs["reward cpu"][-1])

    def output(self, name: str) -> Path:
        """Folder of a run's results, when it is done.

        Raises:
            JobFailed: the run failed.
        """
        if name not in self._members:
            pytest.skip(f"{name}: not in a rehearsal on the CPU")
        member = self._members[name]
        for job in self._jobs[name]:
            self._workers[member.place].wait(job, SECONDS)
        return self._workplace.output(member.kind, name.replace(" ", "-"))

    def metrics(self, name: str) -> list[dict[str, Any]]:
        """Lines of metrics, without what depends on the clock."""
        rows = read_jsonl(self.output(name) / "metrics.jsonl")
        return [{key: row[key] for key in row if key not in TIMES} for row in rows]

    def manifest(self, name: str) -> dict[str, Any]:
        """The run's manifest."""
        return read_json(self.output(name) / "manifest.json")

    def weights(self, name: str) -> dict[str, str]:
        """Hashes of the files with weights."""
        files = sha256_tree(self.output(name))
        return {file: digest for file, digest in files.items() if file.endswith(".safetensors")}

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers.values():
            worker.kill()

    def _config(self, folder: Path) -> dict[str, Any]:
        config = copy.deepcopy(CONFIG)
        config["datasets"]["long"]["source"]["path"] = str(folder / "long.jsonl")
        gpus = 0 if self._device == "cpu" else 1
        for kind in KINDS:
            config["defaults"][kind] = deep_merge(config["defaults"][kind], {"execution": {"gpus_per_node": gpus}})
        for one in self._members.values():
            config["experiments"][one.experiment] = one.settings
        return config

    def _send(self, place: str, kinds: tuple[str, ...], after: Job) -> None:
        for name, member in self._members.items():
            if member.place == place and member.kind in kinds:
                self._jobs[name] = [self._workers[place].send(job) for job in self._steps(name, member, after)]

    def _steps(self, name: str, member: Member, after: Job) -> list[Job]:
        models = {kind: self._workplace.output(kind, f"{kind}-cpu") / "model" for kind in ("sft", "reward")}
        changes = member.execution | ({"gpus_per_node": 0} if member.place == CPU else {})
        start = models if member.kind == "ppo" else None
        command = self._workplace.train(member.experiment, member.kind, name.replace(" ", "-"), changes, start)
        whole = Job.script(command, after)
        if not member.interrupted:
            return [whole]
        arguments = {"command": command, "step": INTERRUPTED_AFTER}
        return [Job("benchmarks.gpu.jobs:run_interrupted", arguments, after), whole]
