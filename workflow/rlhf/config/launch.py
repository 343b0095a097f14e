"""How a stage's processes are started."""

from __future__ import annotations

from rlhf.config.plan import Stage

FIRST_PORT, PORTS = 20000, 12000  # below the range that Linux gives to outgoing connections


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
