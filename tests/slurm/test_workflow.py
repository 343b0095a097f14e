"""The workflow itself under the real profile: a whole experiment, a stage on two nodes, and the largest recipe."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import OPTConfig

from rlhf.config import Fingerprints, Plan, resolve
from tests.project import tiny_config
from tests.slurm.project import end, slurm, start_snakemake, write_profile
from tests.snakemake import ENVIRONMENT, ROOT, write_config

SNAKEFILE = ROOT / "Snakefile"
JOBS = {
    "tokenize_dataset": ("cpu", 0),
    "train_sft": ("gpu", 1),
    "train_reward": ("gpu", 2),
    "train_ppo": ("gpu", 1),
    "evaluate_sft": ("gpu", 1),
    "evaluate_reward": ("gpu", 1),
    "sample_baseline": ("gpu", 1),
    "evaluate_ppo": ("gpu", 1),
}


def plan_of(config: dict[str, Any], folder: Path) -> Plan:
    return resolve(config, Fingerprints(folder / "fingerprints.json").of)


def run(folder: Path, *arguments: str | Path, seconds: float = 600) -> str:
    """Run Snakemake to its end, without an error; what it said."""
    process = start_snakemake(folder, SNAKEFILE, *map(str, arguments))
    try:
        status = process.wait(seconds)
    finally:
        end(process)
    output = (folder / "snakemake.out").read_text()
    assert status == 0, output[-6000:]
    return output


def eval_losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["phase"] == "eval"]


@pytest.mark.slurm("accounting")
def test_an_experiment_runs_as_jobs_with_what_each_stage_asks_for(tmp_path: Path) -> None:
    config = tiny_config()
    for phase, gpus in (("sft", 1), ("reward", 2), ("ppo", 1), ("evaluation", 1)):
        execution = config["defaults"][phase].setdefault("execution", {})
        execution |= {"gpus_per_node": gpus, "mem_mb": 3000, "runtime": 20, "environment": {"DS_ACCELERATOR": "cpu"}}
    run(tmp_path, "--profile", write_profile(tmp_path), "--configfile", write_config(tmp_path, config))
    lines = slurm("sacct", "-X", "-n", "-P", "-o", "State,Partition,ReqTRES,Comment,WorkDir").splitlines()
    jobs = [line.split("|") for line in lines if line.endswith(f"|{tmp_path}")]
    found = {}
    for state, partition, asked, comment, _ in jobs:
        rule = comment.removeprefix("rule_").split("_wildcards_")[0]
        wanted = dict(part.split("=") for part in asked.split(","))
        found[rule] = (partition, int(wanted.get("gres/gpu", 0)))
        assert state == "COMPLETED"
        assert wanted["mem"] == ("4000M" if rule == "tokenize_dataset" else "3000M")
    assert found == JOBS
    assert len(jobs) == len(JOBS)  # each of them once
    plan = plan_of(config, tmp_path)
    manifest = json.loads((tmp_path / "results/reward" / plan.runs[0].stages["reward"] / "manifest.json").read_text())
    assert manifest["world_size"] == 2
    table = (tmp_path / "results/experiments/tiny/efficiency.csv").read_text()
    assert all(stage in table for stage in ("sft", "reward", "ppo"))


@pytest.mark.slurm("accounting")
def test_a_stage_on_two_nodes_is_that_of_one_process(tmp_path: Path) -> None:
    """DeepSpeed over gloo, one rank in each node, by the launch path of a real job; the numbers are those of one."""
    one, two = tiny_config(), tiny_config()
    for config in (one, two):
        config["defaults"]["sft"] |= {"num_train_epochs": 1, "dropout": 0.0}
        config["defaults"]["sft"]["execution"] = {"per_device_train_batch_size": 4}
    environment = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_DEBUG": "INFO", "DS_ACCELERATOR": "cpu"}
    shape = {"nodes": 2, "gpus_per_node": 1, "mem_mb": 1500, "runtime": 20, "zero_stage": 2}
    two["defaults"]["sft"]["execution"] |= shape | {"environment": environment}
    plan = plan_of(one, tmp_path)
    identifier = plan.runs[0].stages["sft"]
    assert identifier == plan_of(two, tmp_path).runs[0].stages["sft"]
    target = f"results/sft/{identifier}/manifest.json"
    run(tmp_path, "--cores", "2", "--configfile", write_config(tmp_path, one), "--", target)
    alone = (tmp_path / f"results/sft/{identifier}").rename(tmp_path / "alone")
    write_config(tmp_path, two)
    given = ("--profile", write_profile(tmp_path), "--configfile", tmp_path / "config.yaml")
    run(tmp_path, *given, "--allowed-rules", "train_sft", "write_spec", "plan_memory", "--", target)
    both = tmp_path / f"results/sft/{identifier}"
    assert eval_losses(both) == pytest.approx(eval_losses(alone), rel=1e-4)
    memory = json.loads((both / "memory.json").read_text())
    assert len(memory["processes"]) == 2
    steps = slurm("sacct", "-n", "-P", "-o", "JobName,NNodes,NTasks,NodeList").splitlines()
    assert any(line.startswith("python|2|2|n[1-2]") for line in steps), steps
    log = (tmp_path / f"logs/sft/{identifier}.log").read_text()
    assert log.count("process(es), device cpu") == 1  # ranks other than 0 are quiet


# What the memory plan reads of a model.
OPT = {
    "facebook/opt-66b": OPTConfig(hidden_size=9216, num_hidden_layers=64, ffn_dim=36864, num_attention_heads=72,
                                  word_embed_proj_dim=9216),
    "facebook/opt-350m": OPTConfig(hidden_size=1024, num_hidden_layers=24, ffn_dim=4096, num_attention_heads=16,
                                   word_embed_proj_dim=512, do_layer_norm_before=False),
}  # fmt: skip
FAKE_SBATCH = """#!{python}
import json, subprocess, sys
answer = subprocess.run(["{sbatch}", "--test-only", *sys.argv[1:]], capture_output=True, text=True)
with open({log!r}, "a") as stream:
    stream.write(json.dumps([answer.returncode, answer.stderr, sys.argv[1:]]) + "\\n")
sys.exit("only tested")
"""


@pytest.mark.slurm("large")
@pytest.mark.parametrize("kind", ["sft", "reward", "ppo"])
def test_slurm_accepts_the_largest_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What is submitted for 66 billion parameters on 8 nodes of 8 GPUs, given to `sbatch --test-only`."""
    recipe = ROOT / "config/recipes/opt-66b.yaml"
    plan = plan_of(yaml.safe_load(recipe.read_text()), tmp_path)
    stages = plan.runs[0].stages
    facts = {"linear_modules": ["model.decoder.layers.0.fc1"], "max_positions": 2048}
    for stage in plan.stages.values():  # whatever comes before this stage stands there already
        if stage.kind in ("dataset", "model"):
            folder = tmp_path / f"resources/{stage.kind}s" / stage.id
            (folder / ("arrow" if stage.kind == "dataset" else "model")).mkdir(parents=True)
            (folder / "report.json").write_text("{}")
            if stage.kind == "model":
                OPT[stage.settings.source.hub].save_pretrained(folder / "model")
            (folder / "manifest.json").write_text(json.dumps(facts))
        elif stage.kind != kind:
            (tmp_path / "results" / stage.kind / stage.id / ("rows" if stage.kind == "split" else "model")).mkdir(
                parents=True
            )
    checked = tmp_path / f"results/check_rows/{kind}/{stages[kind]}/rows.json"
    checked.parent.mkdir(parents=True)
    checked.write_text("{}")
    sbatch = tmp_path / "bin/sbatch"
    sbatch.parent.mkdir()
    real = next(folder for folder in os.environ["PATH"].split(":") if (Path(folder) / "sbatch").exists())
    log = tmp_path / "sbatch.jsonl"
    sbatch.write_text(FAKE_SBATCH.format(python=sys.executable, sbatch=f"{real}/sbatch", log=str(log)))
    sbatch.chmod(0o755)
    monkeypatch.setitem(ENVIRONMENT, "PATH", f"{sbatch.parent}:{ENVIRONMENT['PATH']}")
    target = f"results/{kind}/{stages[kind]}/manifest.json"
    given = ("--profile", ROOT / "profiles/slurm", "--configfile", recipe, "--retries", "0")
    process = start_snakemake(
        tmp_path,
        SNAKEFILE,
        *map(str, given),
        "--allowed-rules",
        f"train_{kind}",
        "write_spec",
        "plan_memory",
        "--",
        target,
    )
    assert process.wait(240) == 1
    (answer,) = [json.loads(line) for line in log.read_text().splitlines()]
    status, said, words = answer
    assert status == 0, said
    assert "Job 1 to start" in said or "to start at" in said
    command = shlex.join(words)
    for option in ("--nodes=8", "--ntasks-per-node=8", "--gres=gpu:8", "--cpus-per-task=8", "-p gpu", "--requeue"):
        assert option in command, command
    assert "--gpus=" not in command
    assert "--signal=TERM@300" in command
