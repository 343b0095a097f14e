"""What a job asks for, in the resources that Snakemake's executors understand, and how it runs.

A training job follows its memory plan, changed by what earlier attempts ran out of.
"""

from __future__ import annotations

from pathlib import Path

from rlhf.config.plan import Stage
from rlhf.files import JsonObject
from rlhf.records.attempts import out_of_memory_failures
from rlhf.records.plan import MemoryPlan
from rlhf.records.progress import read_progress

GROWTH = 1.5  # of host memory, for each attempt that was killed without a word


def cluster_resources(stage: Stage) -> dict[str, int | str | None]:
    """Threads, GPUs and, for several nodes, the shape of the job; a resource that is None is not set at all.

    Several nodes are the one place that knows Slurm: `mpi` lets the stage start its own tasks, `gres` counts GPUs per
    node (a total may be spread unevenly), and `tasks_per_gpu` 0 keeps the number of tasks from being read as per GPU.
    """
    run = stage.job
    nodes, gpus, kind = run.nodes, run.gpus_per_node, run.gpu_type
    local = max(1, gpus)
    if nodes == 1:
        return {
            "threads": run.threads * local,
            "gpu": gpus,
            "gpu_model": kind if gpus else None,
        }
    return {
        "threads": run.threads,
        "gres": ":".join(filter(None, ("gpu", kind, str(gpus)))) if gpus else None,
        "mpi": "srun",
        # The plugin takes one of the two, and only above 1.
        "tasks_per_node": local if local > 1 else None,
        "tasks": nodes if local == 1 else None,
        "tasks_per_gpu": 0,
    }


def planned_execution(plan: MemoryPlan, state: Path) -> JsonObject:
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


def planned_memory(plan: MemoryPlan, state: Path, attempt: int) -> int:
    """Host memory to ask for, in MB: more after an attempt that was killed without a word, as the kernel does it.

    Args:
        plan: content of memory_plan.json.
        state: state/<stage>/<id>/.
        attempt: number of the attempt in this run of Snakemake, from 1.
    """
    progress = read_progress(state) if attempt > 1 else None
    killed = progress is not None and progress.get("status") == "running"
    return int(plan["resources"]["mem_mb"] * (GROWTH ** (attempt - 1) if killed else 1))
