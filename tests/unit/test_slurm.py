"""What is read from Slurm's commands, with stand-ins for them; tests/slurm has the real ones."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlhf.commands.status import status_table
from rlhf.config import Plan, Stage, check_cluster, require_no_jobs
from rlhf.config.cluster import Nodes, partition_nodes, require_nodes
from rlhf.config.section import Section
from rlhf.config.stages import PpoExecution
from rlhf.errors import UserError
from rlhf.reporting.slurm import Job, cpu_use, job_log, queue, seconds
from rlhf.reporting.stage_status import read_status


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a Slurm command on the path that prints a text, or complains with status 1."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    def put(command: str, text: str, status: int = 0) -> None:
        (tmp_path / "bin" / f"{command}.txt").write_text(text)
        script = f'#!/bin/sh\ncat "{tmp_path}/bin/{command}.txt" >&{2 if status else 1}; exit {status}\n'
        (tmp_path / "bin" / command).write_text(script)
        (tmp_path / "bin" / command).chmod(0o755)

    return put


# Planning


def stage(**execution: Any) -> Stage:
    return Stage("ppo", "opt-00000001", Section(), Section(), execution=PpoExecution(**execution))


def test_nodes_are_read_with_their_kinds_of_gpu(answers: Any) -> None:
    answers("sinfo", "2|512000|gpu:a100:4(S:0-1),gpu:v100:2\n1|1000|(null)\n3|9000|gpu:8\n")
    assert partition_nodes("gpu") == [
        Nodes(2, 512000, {"a100": 4, "v100": 2}),
        Nodes(1, 1000, {}),
        Nodes(3, 9000, {"": 8}),
    ]


def test_a_cluster_that_does_not_answer_is_not_known(answers: Any) -> None:
    answers("sinfo", "sinfo: error: no controller", status=1)
    assert partition_nodes("gpu") == []
    require_nodes(stage(gpus_per_node=99), "gpu", [])


NODES = [Nodes(2, 64000, {"a100": 4}), Nodes(4, 512000, {"v100": 8})]


@pytest.mark.parametrize(
    "execution",
    [
        {"gpus_per_node": 8, "nodes": 4},
        {"gpus_per_node": 4, "nodes": 6},
        {"gpus_per_node": 4, "gpu_type": "a100", "nodes": 2, "mem_mb": 64000},
        {},
    ],
)
def test_what_fits_is_planned(execution: dict[str, Any]) -> None:
    require_nodes(stage(**execution), "gpu", NODES)


@pytest.mark.parametrize(
    ("execution", "message"),
    [
        ({"gpus_per_node": 9}, r"1 node\(s\) with 9 GPU\(s\).* but partition gpu has 0; its largest has 8 GPU\(s\)"),
        ({"gpus_per_node": 8, "nodes": 5}, r"5 node\(s\) with 8 GPU\(s\).* has 4"),
        ({"gpus_per_node": 8, "gpu_type": "a100"}, r"8 GPU\(s\) of kind a100.* has 0"),
        ({"gpus_per_node": 4, "nodes": 5, "mem_mb": 65000}, r"and 65000 MB, but partition gpu has 4"),
    ],
)
def test_what_no_node_can_hold_is_refused(execution: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^ppo opt-00000001: needs .*{message}"):
        require_nodes(stage(**execution), "gpu", NODES)


def test_a_time_limit_within_the_warning_is_refused() -> None:
    """Slurm would send the warning as soon as the job starts."""
    require_nodes(stage(runtime=6), "gpu", [], "--signal=TERM@300")
    with pytest.raises(UserError, match=r"runtime is 5 min, but .* 300 s before"):
        require_nodes(stage(runtime=5), "gpu", [], "--open-mode=append --signal=TERM@300")


def test_only_stages_whose_jobs_go_to_slurm_are_checked(answers: Any) -> None:
    answers("sinfo", "1|64000|gpu:4\n")
    plan = Plan()
    plan.add(stage(gpus_per_node=8))
    check_cluster(plan, lambda kind: {})
    with pytest.raises(UserError, match="partition big has 0"):
        check_cluster(plan, lambda kind: {"slurm_partition": "big"})


def test_jobs_of_a_killed_run_in_the_same_folder_stop_a_new_one(answers: Any, tmp_path: Path) -> None:
    answers(
        "squeue", f"7|rule_train_sft_wildcards_a|{tmp_path}\n8|other|{tmp_path}\n9|rule_train_sft_wildcards_a|/else\n"
    )
    with pytest.raises(UserError, match=r"scancel 7$"):
        require_no_jobs(str(tmp_path))
    require_no_jobs(str(tmp_path / "elsewhere"))


def test_a_start_without_a_scheduler_is_one_clear_error(answers: Any, tmp_path: Path) -> None:
    answers("squeue", "squeue: error: Unable to contact slurm controller", status=1)
    with pytest.raises(UserError, match="squeue does not answer.*Unable to contact"):
        require_no_jobs(str(tmp_path))


# The status


def line(job: str, state: str, comment: str, place: Path, nodes: str = "n1", reason: str = "None") -> str:
    return f"{job}|{state}|{nodes}|3000M|{reason}|{comment}|{place}\n"


def test_the_queue_tells_of_this_projects_stages(answers: Any, tmp_path: Path) -> None:
    answers(
        "squeue",
        line("7", "RUNNING", "rule_train_sft_wildcards_opt-00000001", tmp_path)
        + line("8", "PENDING", "rule_sample_baseline_wildcards_b", tmp_path, "", "Priority")
        + line("9", "RUNNING", "rule_train_sft_wildcards_c", tmp_path / "else")
        + line("10", "RUNNING", "my own job", tmp_path),
    )
    jobs, problem = queue(tmp_path)
    assert jobs == {
        ("sft", "opt-00000001"): Job("7", "sft", "opt-00000001", "RUNNING", "n1", 3000, "None"),
        ("baseline", "b"): Job("8", "baseline", "b", "PENDING", "", 3000, "Priority"),
    }
    assert problem == ""


def test_without_slurm_there_is_no_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert queue(tmp_path) == ({}, "")
    assert cpu_use(["7"]) == {}


def test_a_silent_scheduler_is_said(answers: Any, tmp_path: Path) -> None:
    answers("squeue", "slurm_load_jobs error: Unable to contact slurm controller", status=1)
    jobs, problem = queue(tmp_path)
    assert jobs == {}
    assert "Unable to contact" in problem


def test_status_shows_jobs_nodes_reasons_and_memory_against_request(tmp_path: Path) -> None:
    running = tmp_path / "state/sft/a"
    running.mkdir(parents=True)
    progress = {"status": "running", "step": 3, "total_steps": 9, "updated": time.time(), "host": "n7"}
    (running / "progress.json").write_text(json.dumps(progress | {"peak_rss": 2_500_000_000}))
    jobs = {
        ("sft", "a"): Job("7", "sft", "a", "RUNNING", "n7", 4000, "None"),
        ("reward", "b"): Job("8", "reward", "b", "PENDING", "", 4000, "Resources"),
        ("ppo", "c"): Job("9", "ppo", "c", "RUNNING", "n[1-2]", 4000, "None"),
    }
    entries = read_status(tmp_path, jobs=jobs)
    assert [(entry.status, entry.job, entry.node) for entry in entries] == [
        ("running", "7", "n7"),
        ("queued", "8", ""),
        ("starting", "9", "n[1-2]"),
    ]
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(status_table(entries, tmp_path, "The queue is not known"))
    text = capture.get()
    for shown in ("2.5 / 4.0 GB", "n[1-2]", "reward b: Resources", "1 queued, 1 starting, 1 running", "is not known"):
        assert shown in text, text


def test_a_stage_that_failed_and_is_queued_again_waits(tmp_path: Path) -> None:
    (tmp_path / "state/sft/a").mkdir(parents=True)
    (tmp_path / "state/sft/a/progress.json").write_text(json.dumps({"status": "failed", "step": 3, "total_steps": 9}))
    (entry,) = read_status(tmp_path, jobs={("sft", "a"): Job("7", "sft", "a", "PENDING", "", 1, "BeginTime")})
    assert (entry.status, entry.note, entry.step) == ("queued", "BeginTime", None)


def test_a_failed_stage_names_the_log_of_its_slurm_job(tmp_path: Path) -> None:
    for place in ("state/sft/a", "logs/sft", ".snakemake/slurm_logs/rule_train_sft/a"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "state/sft/a/progress.json").write_text(json.dumps({"status": "failed"}))
    (tmp_path / "logs/sft/a.log").write_text("srun: error: Out Of Memory\n")
    log = ".snakemake/slurm_logs/rule_train_sft/a/7.log"
    (tmp_path / log).touch()
    (entry,) = read_status(tmp_path)
    assert entry.note == f"srun: error: Out Of Memory (see logs/sft/a.log, {log})"
    assert job_log(tmp_path, "ppo", "a") == ""


# Accounts


def test_slurms_times_are_read() -> None:
    assert [seconds(text) for text in ("00:01.500", "02:03", "1:02:03", "2-00:00:01")] == [1.5, 123, 3723, 172801]


def test_cpu_use_is_a_share_of_the_cpus_time(answers: Any) -> None:
    answers("sacct", "7|01:40.000|400\n8|00:00:00|0\n")
    assert cpu_use(["7", "8", "7"]) == {"7": 0.25}
    answers("sacct", "Slurm accounting storage is disabled", status=1)
    assert cpu_use(["7"]) == {}
    assert cpu_use([]) == {}
