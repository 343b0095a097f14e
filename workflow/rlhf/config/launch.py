"""What a stage asks of a cluster, in the resources that Snakemake's executors understand."""

from __future__ import annotations

from rlhf.config.plan import Stage


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
