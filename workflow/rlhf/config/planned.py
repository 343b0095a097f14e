"""What a training job asks for and how it runs: its memory plan, changed by what earlier attempts ran out of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STEPS_FILE = "memory_steps.json"
DEVICE_MEMORY = "out_of_device_memory"
GROWTH = 1.5  # of host memory, for each attempt that was killed without a word


def planned_execution(plan: dict[str, Any], state: Path) -> dict[str, Any]:
    """How a stage runs in its next attempt.

    Each attempt that ran out of device memory moves one step down the ladder of the plan. None of the steps changes the
    result, or what the stage's checkpoints depend on.

    Args:
        plan: content of memory_plan.json.
        state: state/<stage>/<id>/.

    Returns:
        The `execution` of the plan's decision after these steps, with `mem_mb` and the names of the steps as
        `memory_steps`.
    """
    steps = plan["after_out_of_memory"][: out_of_memory_failures(state)]
    execution = steps[-1]["execution"] if steps else plan["execution"]
    names = [step["name"] for step in [*plan["adaptations"], *steps]]
    return {**execution, "mem_mb": plan["resources"]["mem_mb"], "memory_steps": names}


def planned_memory(plan: dict[str, Any], state: Path, attempt: int) -> int:
    """Host memory to ask for, in MB: more after an attempt that was killed without a word, as the kernel does it.

    Args:
        plan: content of memory_plan.json.
        state: state/<stage>/<id>/.
        attempt: number of the attempt in this run of Snakemake, from 1.
    """
    killed = attempt > 1 and _read(state / "progress.json").get("status") == "running"
    return int(plan["resources"]["mem_mb"] * (GROWTH ** (attempt - 1) if killed else 1))


def out_of_memory_failures(state: Path) -> int:
    """How many attempts at a stage ran out of device memory: those counted, and perhaps the last one."""
    earlier: int = _read(state / STEPS_FILE).get("failures", 0)
    last = any(_read(file).get("cause") == DEVICE_MEMORY for file in state.glob("failures/rank-*.json"))
    return earlier + last


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return content
