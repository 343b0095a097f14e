"""Before anything is submitted: stages that no node could run, jobs that an earlier run left, commands that wait."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass

from rlhf.config.plan import Plan, Stage
from rlhf.config.stages import JobExecution
from rlhf.errors import UserError

QUERY_SECONDS = 60
GPUS = re.compile(r"gpu(?::(?P<kind>[A-Za-z]\w*))?:(?P<count>\d+)")
WARNING = re.compile(r"--signal=\S*@(\d+)")


@dataclass(frozen=True)
class Nodes:
    """Equal nodes of a partition: how many, their memory in MB, and GPUs by kind ("" where it has no name)."""

    count: int
    mem_mb: int
    gpus: dict[str, int]

    def hold(self, execution: JobExecution) -> bool:
        """Whether a stage's share of a node fits."""
        have = sum(number for name, number in self.gpus.items() if execution.gpu_type in (None, name))
        return have >= execution.gpus_per_node and self.mem_mb >= (execution.mem_mb or 0)


def partition_nodes(partition: str) -> list[Nodes]:
    """The nodes of a partition; none where that is not known, because this machine can't ask a Slurm."""
    command = ["sinfo", "--noheader", "--exact", f"--partition={partition}", "--format=%D|%m|%G"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=QUERY_SECONDS).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [_nodes(line) for line in answer.splitlines()]


def _nodes(line: str) -> Nodes:
    count, memory, resources = line.split("|")
    gpus: dict[str, int] = {}
    for found in GPUS.finditer(resources):
        gpus[found["kind"] or ""] = gpus.get(found["kind"] or "", 0) + int(found["count"])
    return Nodes(int(count), int(memory), gpus)


def check_cluster(plan: Plan, submission: Callable[[str], dict[str, str]]) -> None:
    """Refuse stages that the cluster could not run.

    Args:
        plan: all stages.
        submission: stage kind -> what the profile adds to its job (slurm_partition, slurm_extra); without
            `slurm_partition`, jobs do not go to Slurm, and nothing is asked.

    Raises:
        UserError: naming the stage and the keys to change.
    """
    known: dict[str, list[Nodes]] = {}
    for stage in plan.stages.values():
        added = submission(stage.kind)
        if stage.execution and "slurm_partition" in added:
            partition = added["slurm_partition"]
            if partition not in known:
                known[partition] = partition_nodes(partition)
            require_nodes(stage, partition, known[partition], added.get("slurm_extra", ""))


def require_nodes(stage: Stage, partition: str, nodes: list[Nodes], extra: str = "") -> None:
    """Refuse a stage that would wait for ever, or be warned of its time limit as soon as it starts.

    Args:
        stage: the stage.
        partition: where its job goes.
        nodes: what the partition has; nothing is checked against an empty list, which stands for "not known".
        extra: further options of sbatch, among them the warning before the time limit.

    Raises:
        UserError: naming the keys to change.
    """
    run, place = stage.job, f"{stage.kind} {stage.id}"
    warning = WARNING.search(extra)
    if warning and run.runtime * 60 <= int(warning[1]):
        raise UserError(
            f"{place}: execution.runtime is {run.runtime} min, but the profile asks for a warning {warning[1]} s "
            "before its end; raise it, or lower --signal in the profile"
        )
    fitting = sum(group.count for group in nodes if group.hold(run))
    if nodes and fitting < run.nodes:
        largest = max(nodes, key=lambda group: (sum(group.gpus.values()), group.mem_mb))
        kind = f" of kind {run.gpu_type}" if run.gpu_type else ""
        memory = f" and {run.mem_mb} MB" if run.mem_mb else ""
        raise UserError(
            f"{place}: needs {run.nodes} node(s) with {run.gpus_per_node} GPU(s){kind}{memory}, "
            f"but partition {partition} has {fitting}; its largest has {sum(largest.gpus.values())} GPU(s) and "
            f"{largest.mem_mb} MB. Change nodes, gpus_per_node or mem_mb of its `execution`, or the partition"
        )


def jobs_left(folder: str) -> list[str]:
    """Slurm jobs of this user that Snakemake submitted from a folder and that have not ended, by ID.

    Raises:
        UserError: Slurm does not answer.
    """
    command = ["squeue", "--noheader", "--me", "--format=%i|%k|%Z"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=QUERY_SECONDS).stdout
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise UserError(f"squeue does not answer; jobs could not be submitted either: {said.strip()}") from None
    rows = [line.split("|") for line in answer.splitlines()]
    here = os.path.realpath(folder)
    return [job for job, comment, place in rows if comment.startswith("rule_") and os.path.realpath(place) == here]


def require_no_jobs(folder: str) -> None:
    """Refuse to start while jobs of an earlier, killed run are alive: they would be submitted a second time.

    Raises:
        UserError: naming the jobs.
    """
    jobs = jobs_left(folder)
    if jobs:
        raise UserError(
            f"jobs of an earlier run still work in {folder}, and would be submitted again beside themselves. Cancel "
            "them (a stage in training saves, and the next run goes on from there), then start again:\n"
            f"  scancel {' '.join(jobs)}"
        )


def stand_before_slurm(folder: str, environment: MutableMapping[str, str]) -> None:
    """Let Snakemake find the commands of a folder before Slurm's own (rlhf.runtime.patience).

    Args:
        folder: of the commands.
        environment: of this process, the Snakemake that submits; changed.
    """
    environment["PATH"] = folder + os.pathsep + environment["PATH"]
    environment["RLHF_PYTHON"], environment["RLHF_SNAKEMAKE"] = sys.executable, str(os.getpid())
