"""What Slurm knows of the project's jobs: the queue, and how much of their CPU time ended jobs used.

Without Slurm all functions find nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rlhf.phases import RULES

QUERY_SECONDS = 30
COMMENT = re.compile(r"rule_(?P<rule>\w+?)_wildcards_(?P<id>.+)")
LOGS = ".snakemake/slurm_logs"
KINDS = {rule: kind for kind, rule in RULES.items()}


@dataclass(frozen=True)
class Job:
    """A job of the queue: its stage, and Slurm's words for how it is doing. `reason` is why it waits."""

    id: str
    stage: str
    identifier: str
    state: str
    nodes: str
    mem_mb: int | None
    reason: str


def queue(root: Path) -> tuple[dict[tuple[str, str], Job], str]:
    """The jobs that wait or run for a project, and what went wrong with asking.

    Args:
        root: project folder, from which Snakemake was started.

    Returns:
        (stage kind, ID) -> job, empty without Slurm; and a message, empty where there is nothing to say.
    """
    if shutil.which("squeue") is None:
        return {}, ""
    try:
        answer = _ask("squeue", "--noheader", "--me", "--format=%i|%T|%N|%m|%r|%k|%Z")
    except subprocess.SubprocessError as error:
        said = getattr(error, "stderr", None) or str(error)
        return {}, f"The queue is not known, squeue does not answer: {said.strip().splitlines()[-1]}"
    here = os.path.realpath(root)
    found: dict[tuple[str, str], Job] = {}
    for line in answer.splitlines():
        identifier, state, nodes, memory, reason, comment, place = line.split("|")
        named = COMMENT.fullmatch(comment)
        if named and os.path.realpath(place) == here:
            stage = stage_of(named["rule"])
            found[stage, named["id"]] = Job(identifier, stage, named["id"], state, nodes, _megabytes(memory), reason)
    return found, ""


def stage_of(rule: str) -> str:
    """Stage kind that a rule makes; rules that make none are called by themselves."""
    return KINDS.get(rule, rule)


def job_log(root: Path, stage: str, identifier: str) -> str:
    """Slurm's own log of the stage's last job, relative to the project; empty where there is none."""
    logs = root / LOGS
    rules = [folder.name.removeprefix("rule_") for folder in logs.glob("rule_*")]
    files = [file for rule in rules if stage_of(rule) == stage for file in logs.glob(f"rule_{rule}/{identifier}/*.log")]
    return max(files, key=lambda file: file.stat().st_mtime).relative_to(root).as_posix() if files else ""


def cpu_use(jobs: Iterable[str]) -> dict[str, float]:
    """Share of their CPUs' time that ended jobs used, by job ID; empty without accounting."""
    wanted = sorted(set(jobs))
    if not wanted or shutil.which("sacct") is None:
        return {}
    try:
        answer = _ask("sacct", "-X", "-n", "-P", "-j", ",".join(wanted), "-o", "JobIDRaw,TotalCPU,CPUTimeRAW")
    except subprocess.SubprocessError:  # accounting is off, which is common
        return {}
    rows = [line.split("|") for line in answer.splitlines()]
    return {job: seconds(used) / int(available) for job, used, available in rows if int(available)}


def seconds(text: str) -> float:
    """Seconds of a Slurm time: [days-][hours:]minutes:seconds[.fraction]."""
    days, _, clock = text.rpartition("-")
    total = 0.0
    for part in clock.split(":"):
        total = total * 60 + float(part)
    return total + 86400 * int(days or 0)


def _megabytes(text: str) -> int | None:
    """Memory as squeue prints it (`3000M`, `1.50G`); None where the job asked for none."""
    found = re.fullmatch(r"([\d.]+)([KMGT])", text)
    return round(float(found[1]) * 1024 ** ("KMGT".index(found[2]) - 1)) if found else None


def _ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=QUERY_SECONDS).stdout
