"""How a stage's processes are started, and what the workflow says when it ends."""

from __future__ import annotations

from rlhf.config.resolve import Plan, Stage

FIRST_PORT, PORTS = 20000, 20000


def launcher(stage: Stage) -> str:
    """The command in front of a training script.

    One process needs no launcher (which would take longer to start than the trainer), several on one node get
    DeepSpeed's, and several nodes get `srun` with one task per GPU. Without GPUs, `gpus_per_node` counts CPU processes.
    """
    nodes, local = stage.execution["nodes"], max(1, stage.execution["gpus_per_node"])
    if nodes > 1:
        return f"srun --nodes {nodes} --ntasks-per-node {local} --kill-on-bad-exit=1 python"
    if local == 1:
        return "python"
    # A port that follows from the stage's ID: two stages on one machine must not share the default one.
    port = FIRST_PORT + int(stage.id[-8:], 16) % PORTS
    return f"deepspeed --num_gpus {local} --master_port {port}"


def closing_message(plan: Plan) -> str:
    """Where the models, the tables and the report of a finished workflow are."""
    lines = ["", "Finished. Where things are:"]
    for name in dict.fromkeys(run.experiment for run in plan.runs):
        runs = [run for run in plan.runs if run.experiment == name]
        lines.append(f"  {name}: tables and figures  results/experiments/{name}/index.md")
        lines += [
            f"    policy, seed {run.seed}{_point(run.point)}  results/ppo/{run.stages['ppo']}/model" for run in runs
        ]
    lines.append("  report: snakemake --report results/report.html")
    return "\n".join(lines)


def failure_message() -> str:
    """What to do after a failure."""
    return (
        "\nA step failed; its log is named above (logs/<stage>/<id>.log). What had finished is kept: mend the cause "
        "and run the same command again. `rlhf-status` shows all stages."
    )


def _point(point: dict[str, object]) -> str:
    return "".join(f", {key} {value}" for key, value in point.items())
