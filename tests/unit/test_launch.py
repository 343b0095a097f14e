"""How stages are started, what the workflow says at its end, what it asks of models, and how files are identified."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf.config import (
    Fingerprints,
    Plan,
    Requirement,
    Run,
    Stage,
    closing_message,
    cluster_resources,
    failure_message,
    plans_message,
    require,
    resolve,
)
from rlhf.config.section import Section
from rlhf.config.stages import SftExecution
from rlhf.errors import UserError
from rlhf.runtime.device_locks import Claim
from rlhf.runtime.devices import Device
from rlhf.runtime.launch import Launch, launch, take_devices

LAUNCHER = Path(__file__).resolve().parents[2] / "workflow/scripts/launch.py"

# What a stage asks of a cluster


def stage(**execution: Any) -> Stage:
    return Stage("sft", "tiny-0000000a", Section(), Section(), execution=SftExecution(**execution))


def asked(**execution: Any) -> dict[str, Any]:
    """What is set; a resource that is None is not."""
    return {key: value for key, value in cluster_resources(stage(**execution)).items() if value is not None}


def test_one_node_is_asked_for_gpus_and_for_the_threads_of_all_its_processes() -> None:
    assert asked(threads=4) == {"threads": 4, "gpu": 0}
    assert asked(threads=4, gpus_per_node=2, gpu_type="a100") == {"threads": 8, "gpu": 2, "gpu_model": "a100"}
    assert asked(gpu_type="a100") == {"threads": 1, "gpu": 0}


def test_several_nodes_are_asked_for_by_shape() -> None:
    shape = {"mpi": "srun", "tasks_per_gpu": 0}
    assert asked(nodes=4, gpus_per_node=8, threads=6) == shape | {"threads": 6, "gres": "gpu:8", "tasks_per_node": 8}
    # One GPU (or CPU process) in each node: the plugin refuses one task per node, so their sum is given.
    assert asked(nodes=4, gpus_per_node=1, gpu_type="a100") == shape | {"threads": 1, "gres": "gpu:a100:1", "tasks": 4}
    assert asked(nodes=4) == shape | {"threads": 1, "tasks": 4}


# The launcher

SCRIPT = ["train_sft.py", "--spec", "a b.yaml"]
IN_JOB = {"PATH": "/bin", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_GPUS": "2", "SRUN_DEBUG": "3"}


def started(surroundings: dict[str, str], output: str = "results/sft/a", **execution: Any) -> Launch:
    return launch(stage(**execution).execution, SCRIPT, Path(output), surroundings)


@pytest.mark.parametrize("gpus", [0, 1])
def test_one_process_needs_no_launcher(gpus: int) -> None:
    assert started({}, gpus_per_node=gpus).command == [sys.executable, *SCRIPT]


ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


@pytest.mark.parametrize("surroundings", [{"PATH": "/bin"}, IN_JOB], ids=["local", "slurm"])
def test_without_gpus_no_device_is_seen_whatever_the_user_and_the_environment_say(surroundings: dict[str, str]) -> None:
    given = {"CUDA_VISIBLE_DEVICES": "0,1", "DS_ACCELERATOR": "cuda"}
    for found in (started(surroundings | given), started(surroundings, environment=given)):
        assert found.environment.items() >= ON_CPU.items()
    assert take_devices(stage(environment=given).execution, Path("results/sft/a"), surroundings | given) is None


def test_processes_see_the_devices_that_were_taken_in_place_of_the_users() -> None:
    one = Claim((Device("MIG-1", "MIG-1", gpu="0"),), "token")
    around = {"CUDA_VISIBLE_DEVICES": "MIG-0,MIG-1", "DS_ACCELERATOR": "cuda"}
    found = launch(stage(gpus_per_node=1).execution, SCRIPT, Path("results/sft/a"), around, claim=one)
    told = {"CUDA_VISIBLE_DEVICES": "MIG-1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "DS_ACCELERATOR": "cuda"}
    assert found.command == [sys.executable, *SCRIPT]
    assert found.environment == told | {"RLHF_DEVICES": "token,MIG-1", "OMP_NUM_THREADS": "1"}


def test_in_a_slurm_job_devices_are_those_of_slurm() -> None:
    found = started(IN_JOB | {"CUDA_VISIBLE_DEVICES": "3", "RLHF_DEVICES": "x,y"}, gpus_per_node=1)
    assert (found.environment["CUDA_VISIBLE_DEVICES"], found.environment["DS_ACCELERATOR"]) == ("3", "cuda")
    assert "RLHF_DEVICES" not in found.environment
    assert take_devices(stage(gpus_per_node=99).execution, Path("results/sft/a"), IN_JOB) is None


def test_deepspeeds_launcher_takes_the_devices_of_the_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its real main function, on a machine with four: what it starts is told the ranks' devices."""
    from deepspeed.launcher import runner  # imports torch

    taken = Claim(tuple(Device(name, f"GPU-{name}", gpu=name) for name in ("1", "3")), "token")
    found = launch(stage(gpus_per_node=2).execution, SCRIPT, Path("results/sft/a"), {"PATH": "/bin"}, claim=taken)
    begun: list[tuple[list[str], dict[str, str]]] = []

    class Started:
        returncode = 0

        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            begun.append((command, env))

        def wait(self) -> None:
            pass

    four = SimpleNamespace(device_count=lambda: 4, visible_devices_envs=lambda: ["CUDA_VISIBLE_DEVICES"])
    monkeypatch.setattr(runner, "get_accelerator", lambda: four)
    monkeypatch.setattr(runner.subprocess, "Popen", Started)
    for name, text in found.environment.items():
        monkeypatch.setenv(name, text)
    assert found.command[0] == "deepspeed"
    runner.main(found.command[1:])
    ((command, environment),) = begun
    (world,) = (word.partition("=")[2] for word in command if word.startswith("--world_info="))
    assert json.loads(base64.urlsafe_b64decode(world)) == {"localhost": [1, 3]}
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert environment["RLHF_DEVICES"] == "token,GPU-1,GPU-3"


def test_several_processes_are_started_by_deepspeed_on_a_port_of_their_own() -> None:
    cpu = {"DS_ACCELERATOR": "cpu"}
    commands = [started(cpu, output=f"results/{kind}/a", gpus_per_node=2).command for kind in ("sft", "reward", "ppo")]
    ports = {command[4] for command in commands}
    assert [[*command[:4], *command[5:]] for command in commands] == [
        ["deepspeed", "--num_gpus", "2", "--master_port", *SCRIPT]
    ] * 3
    assert len(ports) == 3
    assert all(1024 < int(port) < 32768 for port in ports)
    assert started(cpu, output="results/sft/a", gpus_per_node=2).command == commands[0]


def test_in_a_slurm_job_srun_starts_one_task_for_each_process() -> None:
    one = started(IN_JOB, threads=3).command
    assert one[:6] == ["srun", "--overlap", "--nodes=1", "--ntasks=1", "--ntasks-per-node=1", "--cpus-per-task=3"]
    assert one[6:] == ["--kill-on-bad-exit=1", sys.executable, *SCRIPT]
    many = started(IN_JOB, nodes=4, gpus_per_node=8).command
    assert {"--nodes=4", "--ntasks=32", "--ntasks-per-node=8", "--gres=gpu:8"} <= set(many)


def test_a_step_gets_the_jobs_identity_and_none_of_the_options_of_the_step_around_it() -> None:
    environment = started(IN_JOB, environment={"NCCL_SOCKET_IFNAME": "ib0", "NCCL_IB_TIMEOUT": 22}).environment
    given = {"NCCL_SOCKET_IFNAME": "ib0", "NCCL_IB_TIMEOUT": "22"}
    assert environment == {"PATH": "/bin", "SLURM_JOB_ID": "7", "OMP_NUM_THREADS": "1"} | ON_CPU | given


@pytest.mark.parametrize("surroundings", [{}, IN_JOB])
@pytest.mark.parametrize("gpus", [1, 2])
def test_a_stage_is_no_member_of_the_process_group_that_snakemake_was_started_in(
    surroundings: dict[str, str], gpus: int
) -> None:
    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "57279"}
    assert started(surroundings | group, gpus_per_node=gpus) == started(surroundings, gpus_per_node=gpus)
    given = {"MASTER_PORT": 29500}
    assert started(surroundings | group, environment=given).environment["MASTER_PORT"] == "29500"


def test_a_wrapper_stands_in_front_of_the_program_and_inside_the_job_step() -> None:
    wrapper = ["apptainer", "exec", "image.sif"]
    assert started({}, wrapper=wrapper).command == [*wrapper, sys.executable, *SCRIPT]
    assert started({}, wrapper=wrapper, gpus_per_node=2).command[:4] == [*wrapper, "deepspeed"]
    command = started(IN_JOB, wrapper=wrapper).command
    assert command[command.index("--kill-on-bad-exit=1") + 1 :] == [*wrapper, sys.executable, *SCRIPT]


def test_threads_are_shared_by_the_processes_of_a_machine() -> None:
    """Snakemake says in OMP_NUM_THREADS how many cores there are for all of them."""
    threads = {cores: started({"OMP_NUM_THREADS": cores}, threads=4, gpus_per_node=2) for cores in ("8", "2", "1")}
    assert {cores: found.environment["OMP_NUM_THREADS"] for cores, found in threads.items()} == {
        "8": "4",
        "2": "1",
        "1": "1",
    }
    assert started({}, threads=4, gpus_per_node=2).environment["OMP_NUM_THREADS"] == "4"
    assert started(IN_JOB | {"OMP_NUM_THREADS": "8"}, threads=4).environment["OMP_NUM_THREADS"] == "4"


def test_the_launcher_becomes_the_script(tmp_path: Path) -> None:
    """The same process, so that signals reach it, and its own exit status."""
    script = tmp_path / "train.py"
    script.write_text("import json, os, sys\nprint(os.getpid(), json.dumps(sys.argv[1:]))\nsys.exit(75)\n")
    arguments = ["--execution", stage().job.model_dump_json(), "--output", "results/sft/a", "--text", "it's $HOME"]
    environment = {name: text for name, text in os.environ.items() if not name.startswith("SLURM_")}
    process = subprocess.Popen(
        [sys.executable, LAUNCHER, script, *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )
    output, _ = process.communicate(timeout=60)
    assert output.split(" ", 1) == [str(process.pid), json.dumps(arguments) + "\n"]
    assert process.returncode == 75


def make_plan(**defaults: Any) -> Plan:
    config = {
        "datasets": {"pairs": {"source": {"path": "pairs.jsonl"}}},
        "models": {"big": {"source": {"hub": "org/big"}}, "small": {"source": {"hub": "org/small"}}},
        "defaults": {"data_path": ["pairs"], "policy": "big", "reward_model": "small", **defaults},
        "experiments": {"demo": {}},
    }
    return resolve(config, lambda path, key: "content")


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


def test_plans_that_were_asked_for_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = Plan()
    files = []
    for kind, upper, device, verdict in (
        ("sft", 3 * 2**30, {"name": "a100-40g", "capacity": 40 * 2**30}, "fits"),
        ("reward", None, None, "not judged"),
    ):
        plan.add(Stage(kind, f"{kind}-00000001", Section(), Section()))
        files.append(Path(f"results/{kind}/{kind}-00000001/memory_plan.json"))
        files[-1].parent.mkdir(parents=True)
        content = {"upper_device": upper, "host": {"node": 2**29}, "verdict": verdict, "device": device}
        files[-1].write_text(json.dumps(content))
    plan.add(Stage("ppo", "ppo-00000001", Section(), Section()))  # refused: it has no plan
    assert plans_message(plan).splitlines()[2:] == [
        f"  sft sft-00000001: up to 3.00 GiB of a GPU, 0.50 GiB of host memory per node; fits (a100-40g)  {files[0]}",
        f"  reward reward-00000001: 0.50 GiB of host memory per node; not judged  {files[1]}",
    ]


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
