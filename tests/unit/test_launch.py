"""How stages are started, what the workflow says at its end, what it asks of models, and how files are identified."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from rlhf.config import (
    Fingerprints,
    Plan,
    Requirement,
    Run,
    Stage,
    closing_message,
    failure_message,
    launcher,
    require,
    resolve,
)
from rlhf.errors import UserError

# The launcher


def stage(identifier: str, **execution: int) -> Stage:
    return Stage("sft", identifier, {}, {}, execution={"nodes": 1, "gpus_per_node": 0} | execution)


@pytest.mark.parametrize("gpus", [0, 1])
def test_one_process_needs_no_launcher(gpus: int) -> None:
    assert launcher(stage("tiny-0000000a", gpus_per_node=gpus)) == "python"


def test_one_node_is_started_by_deepspeed_on_a_port_of_its_own() -> None:
    assert launcher(stage("tiny-0000000a", gpus_per_node=8)) == "deepspeed --num_gpus 8 --master_port 20010"
    assert launcher(stage("tiny-ffffffff", gpus_per_node=2)) == "deepspeed --num_gpus 2 --master_port 31295"


def test_several_nodes_are_started_by_srun_with_one_task_per_gpu() -> None:
    eight = launcher(stage("tiny-0000000a", nodes=4, gpus_per_node=8))
    assert eight == "srun --nodes 4 --ntasks-per-node 8 --kill-on-bad-exit=1 python"
    # One GPU (or CPU process) in each node is still one task in each node.
    for gpus in (0, 1):
        assert "--nodes 4 --ntasks-per-node 1 " in launcher(stage("tiny-0000000a", nodes=4, gpus_per_node=gpus))


def make_plan(**defaults: Any) -> Plan:
    config = {
        "datasets": {"pairs": {"source": {"path": "pairs.jsonl"}}},
        "models": {"big": {"source": {"hub": "org/big"}}, "small": {"source": {"hub": "org/small"}}},
        "defaults": {"data_path": ["pairs"], "policy": "big", "reward_model": "small", **defaults},
        "experiments": {"demo": {}},
    }
    return resolve(config, lambda path, key: "content")


def test_stages_that_may_run_beside_each_other_get_different_ports() -> None:
    two = {"execution": {"gpus_per_node": 2}}
    plan = make_plan(sft=two, reward=two, ppo=two)
    commands = {kind: launcher(plan.of_kind(kind)[0]) for kind in ("sft", "reward", "ppo")}
    ports = {kind: int(re.fullmatch(r"deepspeed .* --master_port (\d+)", text)[1]) for kind, text in commands.items()}
    assert len(set(ports.values())) == 3
    assert all(1024 < port < 65536 for port in ports.values())
    assert commands["sft"] == launcher(make_plan(sft=two).of_kind("sft")[0])  # the same in every job that parses


# The last words


def run(experiment: str, seed: int, identifier: str, **point: float) -> Run:
    return Run(experiment, point, seed, {"ppo": identifier}, samples=1)


RUNS = [
    run("first", 1, "a-00000001", **{"ppo.kl_coefficient": 0.1}),
    run("first", 2, "a-00000002", **{"ppo.kl_coefficient": 0.2}),
    run("second", 1, "b-00000003"),
]


def test_the_end_names_every_policy_of_a_finished_experiment_and_nothing_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results/experiments/first").mkdir(parents=True)
    (tmp_path / "results/experiments/first/index.md").touch()
    for identifier in ("a-00000001", "a-00000002"):
        (tmp_path / "results/ppo" / identifier / "model").mkdir(parents=True)
    lines = closing_message(Plan(runs=RUNS)).splitlines()
    named = [path for line in lines for path in re.findall(r"results/(?:experiments|ppo)/\S+", line)]
    assert named == ["results/experiments/first/index.md"] + [f"results/ppo/a-0000000{i}/model" for i in (1, 2)]
    assert all((tmp_path / path).exists() for path in named)
    assert any("seed 2, ppo.kl_coefficient 0.2" in line for line in lines)
    assert "snakemake --report" in lines[-3]
    assert lines[-1].startswith("Not made yet: second.")


def test_what_was_not_made_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert closing_message(Plan(runs=RUNS)).strip().startswith("Not made yet: first, second.")


# As Snakemake 9 writes it into its own log.
FAILED_JOB = """
[Mon Jan  5 10:00:00 2026]
localrule {rule}:
    output: results/{rule}
    log: logs/{rule}.log
[Mon Jan  5 10:00:01 2026]
Error in rule {rule}:
    message: None
    jobid: 2
    output: results/{rule}
    log: logs/{rule}.log (check log file(s) for error details)
    shell:
        python train.py > logs/{rule}.log 2>&1
        (command exited with non-zero exit code)
"""


def said(folder: Path, monkeypatch: pytest.MonkeyPatch, logs: dict[str, str], *failed: str) -> str:
    """The message of a run with these logs, in which these rules failed and one other was only started."""
    monkeypatch.chdir(folder)
    (folder / "logs").mkdir()
    for name, text in logs.items():
        (folder / "logs" / f"{name}.log").write_text(text)
    own = folder / "snakemake.log"
    own.write_text("    log: logs/started.log\n" + "".join(FAILED_JOB.format(rule=rule) for rule in failed))
    return failure_message([str(own)])


def test_a_users_mistake_is_shown_without_what_surrounds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "INFO start\nerror: an older attempt\nerror: models.x.source.path: 'y' has no tokenizer\nsrun: exit 2\n\n"
    message = said(tmp_path, monkeypatch, {"cache": text, "started": "error: not this"}, "cache")
    assert "logs/cache.log:\n  error: models.x.source.path: 'y' has no tokenizer\n" in message
    assert not re.search("INFO|older|srun|not this", message)
    assert "run the same command again" in message


def test_a_mistake_is_shown_with_all_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "INFO start\nerror: two are wrong:\n  the first\n  the second\nsrun: exit 2\n  not this\n"
    message = said(tmp_path, monkeypatch, {"check": text}, "check")
    assert "logs/check.log:\n  error: two are wrong:\n    the first\n    the second\n" in message
    assert "not this" not in message


def test_a_failure_on_a_cluster_names_two_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step's own log and the scheduler's stand in one line."""
    message = said(tmp_path, monkeypatch, {"train": "error: no memory\n"}, "train.log, logs/nowhere")
    assert "logs/train.log:\n  error: no memory" in message


def test_any_other_failure_shows_its_last_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"line {number}\n\n" for number in range(20)) + "RuntimeError: no memory\n"
    message = said(tmp_path, monkeypatch, {"train": text}, "train")
    assert [line.strip() for line in message.splitlines() if line.startswith("  ")] == [
        *(f"line {number}" for number in range(16, 20)),
        "RuntimeError: no memory",
    ]


def test_each_failed_rule_is_shown_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = {"sft": "error: a\n", "reward": "error: b\n"}
    message = said(tmp_path, monkeypatch, logs, "sft", "reward", "sft", "without_log")
    assert re.findall(r"^(logs/\S+):$", message, re.MULTILINE) == ["logs/sft.log", "logs/reward.log"]


def test_the_process_that_failed_first_is_the_one_that_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those that lost it, even where they noticed before it could write."""
    folder = tmp_path / "state/train/failures"
    folder.mkdir(parents=True)
    for rank, cause, time in ((0, "lost_process", 1.0), (1, "disk_full", 3.0), (2, "not_finite", 2.0)):
        failure = {"cause": cause, "message": f"{cause}!", "rank": rank, "time": time, "host": "n1"}
        (folder / f"rank-{rank}.json").write_text(json.dumps(failure))
    message = said(tmp_path, monkeypatch, {"train": "error: lost_process!\n"}, "train")
    assert "logs/train.log:\n  error: not_finite! (process 2 on n1)\n" in message


def test_a_process_killed_without_a_word_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state/train").mkdir(parents=True)
    progress = {"status": "running", "step": 7, "total_steps": 9, "peak_rss": 300 * 2**20}
    (tmp_path / "state/train/progress.json").write_text(json.dumps(progress))
    message = said(tmp_path, monkeypatch, {"train": "INFO step 7\n"}, "train")
    assert "killed without a word after step 7 of 9; it had used up to 300 MiB" in message
    assert "raise `mem_mb`" in message


def test_an_interrupted_stage_is_no_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "INFO x\ninterrupted: SIGTERM: stopped after step 3, saved step 3\n"
    assert "  interrupted: SIGTERM: stopped" in said(tmp_path, monkeypatch, {"train": text}, "train")


def test_a_log_of_unreadable_bytes_is_shown_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/train.log").write_bytes(b"\xff\xfe\nerror: x\n")
    (tmp_path / "snakemake.log").write_text(FAILED_JOB.format(rule="train"))
    monkeypatch.chdir(tmp_path)
    assert "  error: x" in failure_message([str(tmp_path / "snakemake.log")])


# Requirements

FACTS = {"linear_modules": ["model.decoder.layers.0.fc1", "model.decoder.layers.0.fc2", "lm_head"], "max_positions": 64}


@pytest.mark.parametrize(
    "needed",
    [
        Requirement("k", lora_module_name="decoder.layers."),
        Requirement("k", lora_module_name="fc2"),
        Requirement("k", positions=64),
    ],
)
def test_a_requirement_that_is_met_passes(needed: Requirement) -> None:
    require(FACTS, [needed], "models.x")


def test_a_pattern_without_a_module_is_refused_with_names_that_exist() -> None:
    needed = [Requirement("e.sft.lora_module_name", lora_module_name="transformer.h.")]
    with pytest.raises(UserError) as error:
        require(FACTS, needed, "models.x")
    assert str(error.value).startswith("e.sft.lora_module_name: 'transformer.h.' matches no linear module of models.x")
    assert "model.decoder.layers.0.fc1" in str(error.value)


def test_sequences_longer_than_the_positions_are_refused() -> None:
    needed = [Requirement("e.sft.max_seq_len", positions=64), Requirement("e.reward.max_seq_len", positions=65)]
    with pytest.raises(UserError, match=r"^e\.reward\.max_seq_len: 65 tokens, but models\.x has 64 positions"):
        require(FACTS, needed, "models.x")
    require(FACTS | {"max_positions": None}, needed, "models.x")  # no limit, as with relative positions


def test_each_model_is_asked_for_what_its_stages_need() -> None:
    plan = make_plan(
        sft={"max_seq_len": 100, "lora_dim": 4, "lora_module_name": "h."},
        reward={"max_seq_len": 90},
        ppo={"max_prompt_seq_len": 30, "max_answer_seq_len": 20, "critic": {"lora_dim": 2, "lora_module_name": "v."}},
    )
    stages = plan.runs[0].stages
    asked = {
        role: {(each.key.removeprefix("experiments.demo."), each.lora_module_name, each.positions) for each in found}
        for role, found in ((role, plan.requirements[stages[role]]) for role in ("policy", "reward_model"))
    }
    both = ("ppo.max_prompt_seq_len + max_answer_seq_len", None, 50)
    assert asked == {
        "policy": {("sft.lora_module_name", "h.", None), ("sft.max_seq_len", None, 100), both},
        "reward_model": {("ppo.critic.lora_module_name", "v.", None), ("reward.max_seq_len", None, 90), both},
    }


# Fingerprints


def fingerprint(path: Path) -> str:
    return Fingerprints(path.parent / "unused.json").of(str(path), "key")


def test_files_and_folders_with_the_same_content_elsewhere_have_the_same_hash(tmp_path: Path) -> None:
    for place in ("here", "there/deeper"):
        (tmp_path / place / "sub").mkdir(parents=True)
        (tmp_path / place / "sub/a").write_text("1")
        (tmp_path / place / "b").write_text("2")
    (tmp_path / "renamed").write_text("2")
    assert fingerprint(tmp_path / "here") == fingerprint(tmp_path / "there/deeper")
    assert fingerprint(tmp_path / "here/b") == fingerprint(tmp_path / "renamed")
    before = fingerprint(tmp_path / "here")
    (tmp_path / "here/sub/a").rename(tmp_path / "here/a")
    assert fingerprint(tmp_path / "here") != before


def test_a_remembered_file_is_not_read_again_and_an_edited_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, memory = tmp_path / "pairs.jsonl", tmp_path / "cache/memory.json"
    file.write_text("one")
    first = Fingerprints(memory)
    before = first.of(str(file), "key")
    first.save()
    assert hashlib.sha256(b"one").hexdigest() in json.loads(memory.read_text()).values()
    assert [path.name for path in memory.parent.iterdir()] == ["memory.json"]
    reads = []
    real = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda stream, name: reads.append(1) or real(stream, name))
    assert Fingerprints(memory).of(str(file), "key") == before
    assert not reads
    file.write_text("two")  # of the same size
    os.utime(file, (1, 1))
    assert Fingerprints(memory).of(str(file), "key") != before
    assert reads


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_path_without_content_is_named_with_its_key_and_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty/sub").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        Fingerprints(tmp_path / "memory.json").of(str(tmp_path / name), "models.x.source.path")
    assert str(error.value).startswith(f"models.x.source.path: '{tmp_path / name}' is missing or an empty folder")
    assert str(error.value).endswith(os.getcwd())
