"""The Slurm profile: each setting that keeps the plugin from hanging or from running a stage twice."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string

from rlhf.config import Stage, cluster_resources
from rlhf.config.section import Section
from rlhf.config.stages import SftExecution
from tests.slurm.project import write_profile

ROOT = Path(__file__).resolve().parents[2]
PROFILE = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())
DEFAULT_MIN_JOB_AGE = 300


def test_a_lost_scheduler_is_waited_for() -> None:
    """When all attempts of one status check fail, the plugin forgets its jobs and waits for ever."""
    hours = PROFILE["slurm-status-attempts"] / PROFILE["max-status-checks-per-second"] / 3600
    assert hours >= 24


def test_the_status_comes_from_the_queue() -> None:
    """sacct calls a cancelled job `CANCELLED by 0`, which the plugin does not know; without accounting it always fails.

    The plugin itself turns to sacct where a job leaves the queue sooner than three first intervals.
    """
    assert PROFILE["slurm-status-command"] == "squeue"
    assert 3 * PROFILE["slurm-init-seconds-before-status-checks"] <= DEFAULT_MIN_JOB_AGE


def test_slurm_restarts_what_it_ended_and_snakemake_what_failed() -> None:
    assert PROFILE["slurm-requeue"] is True
    assert "slurm-no-requeue" not in PROFILE  # then a pre-empted job would never be reported as ended
    assert PROFILE["retries"] > 0
    assert PROFILE["rerun-incomplete"] is PROFILE["keep-going"] is True


def test_a_slow_file_system_is_waited_for() -> None:
    assert PROFILE["latency-wait"] >= 60


def test_jobs_are_named_as_the_plugin_accepts() -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,50}", PROFILE["slurm-jobname-prefix"])


def test_slurms_logs_are_where_old_ones_may_be_deleted() -> None:
    """The plugin deletes old *.log files below its folder; left alone, that is .snakemake/slurm_logs."""
    assert "slurm-logdir" not in PROFILE


def test_no_profile_is_laid_over_this_one() -> None:
    """Snakemake adds profiles/default to any profile, and its blocks replace those of this one."""
    assert [folder.name for folder in (ROOT / "profiles").iterdir()] == ["slurm"]


def test_a_site_names_its_partitions_once() -> None:
    text = (ROOT / "profiles/slurm/config.yaml").read_text()
    names = re.findall(r"^\s+slurm_partition: (\w+)", text, re.MULTILINE)
    assert names == ["cpu", "gpu"]
    assert {added["slurm_partition"] for added in PROFILE["set-resources"].values()} == {"gpu"}
    site = text.split("# --- What keeps a run alive")[0]
    assert all(f"# {key}: NAME" in site for key in ("slurm_account", "qos", "constraint"))
    assert "executor" not in yaml.safe_load(site)


def test_the_tests_change_timers_only(tmp_path: Path) -> None:
    tested = yaml.safe_load((write_profile(tmp_path) / "config.yaml").read_text())
    changed = {key for key in PROFILE.keys() | tested.keys() if PROFILE.get(key) != tested.get(key)}
    assert changed == {"slurm-init-seconds-before-status-checks", "latency-wait", "set-resources"}
    for rule, added in PROFILE["set-resources"].items():
        other = tested["set-resources"][rule]
        assert added | {"slurm_extra": ""} == other | {"slurm_extra": ""}
        assert re.sub(r"@\d+", "", added["slurm_extra"]) == re.sub(r"@\d+", "", other["slurm_extra"])


class Job(SimpleNamespace):
    """What the plugin reads of a job."""

    def __init__(self, **resources: Any) -> None:
        class Resources(dict):
            __getattr__ = dict.__getitem__

        threads = resources.pop("threads")
        known = {name: value for name, value in resources.items() if value is not None}
        super().__init__(threads=threads, resources=Resources(known))


def submitted(**execution: Any) -> str:
    """Options of sbatch for a stage, by the plugin's own functions."""
    settings = SftExecution(**execution)
    asked = cluster_resources(Stage("sft", "a-00000001", Section(), Section(), execution=settings))
    job = Job(mem_mb=settings.mem_mb, runtime=settings.runtime, nodes=settings.nodes, **asked)
    names = ("run_uuid", "slurm_logfile", "comment_str", "account", "partition", "workdir")
    return get_submit_command(job, dict.fromkeys(names, "")) + set_gres_string(job)


@pytest.mark.parametrize(
    ("execution", "options", "without"),
    [
        ({"threads": 4}, {"--nodes=1", "--ntasks=1", "--cpus-per-task=4"}, "--g"),
        ({"gpus_per_node": 2, "threads": 4}, {"--nodes=1", "--gpus=2", "--cpus-per-task=8"}, "--ntasks"),
        ({"gpus_per_node": 2, "gpu_type": "a100"}, {"--gpus=a100:2"}, "--gres"),
        ({"nodes": 2}, {"--nodes=2", "--ntasks=2", "--cpus-per-task=1"}, "--g"),
        ({"nodes": 2, "gpus_per_node": 1}, {"--nodes=2", "--ntasks=2", "--gres=gpu:1"}, "--gpus"),
        (
            {"nodes": 8, "gpus_per_node": 8, "gpu_type": "h100", "threads": 6},
            {"--nodes=8", "--ntasks-per-node=8", "--gres=gpu:h100:8", "--cpus-per-task=6"},
            "--ntasks-per-gpu",
        ),
    ],
)
def test_what_a_stage_asks_for_is_what_sbatch_is_told(
    execution: dict[str, Any], options: set[str], without: str
) -> None:
    command = submitted(**execution)
    assert options <= set(command.split()), command
    assert without not in command
