"""How a stage's processes are started, decided where they run: only there is it known whether Slurm started the job.

Under Slurm the training program must be the direct child of a slurmstepd. That one gets the SIGTERM of scancel, of the
time limit and of pre-emption; processes further down (cgroup process tracking) are killed without a warning.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.config.stages import Execution
from rlhf.runtime.device_locks import HELD, Claim, claim_devices
from rlhf.runtime.devices import ACCELERATOR, ON_CPU, VISIBLE, computes_on_cpu, visible_devices
from rlhf.runtime.logging import get_logger

logger = get_logger(__name__)

FIRST_PORT, PORTS = 20000, 12000  # below the range that Linux gives to outgoing connections
# Of the surrounding job step only its identity is passed on: srun takes other variables for options.
JOB_IDENTITY = {"SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CLUSTER_NAME", "SLURM_CONF", "SLURM_SUBMIT_DIR"}
STEP_PREFIXES = ("SLURM_", "SRUN_", "SBATCH_")
# What a launcher tells its processes. If this one has them, they are those of a group that Snakemake was started in.
GROUP = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", HELD}


@dataclass(frozen=True)
class Launch:
    """What to execute: the words of the command, and its whole environment."""

    command: list[str]
    environment: dict[str, str]


def take_devices(execution: Execution, output: Path, environment: Mapping[str, str]) -> Claim | None:
    """The GPUs of a stage, taken from other stages on this machine until the stage ends; waits until there are enough.

    In a Slurm job Slurm has assigned them, and a stage on the CPU needs none.

    Args:
        execution: the stage's `execution` settings.
        output: where the stage writes; tells others who has the devices.
        environment: of this process.

    Raises:
        UserError: the machine does not have so many, or CUDA_VISIBLE_DEVICES does not leave them.
    """
    around = _surroundings(execution, environment)
    if computes_on_cpu(execution.gpus_per_node, around):
        if execution.gpus_per_node:
            logger.warning("%s=cpu: CPU processes in place of %d GPU(s)", ACCELERATOR, execution.gpus_per_node)
        return None
    if _in_job(environment):
        logger.info("Slurm has assigned the GPUs: %s=%s", VISIBLE, environment.get(VISIBLE, ""))
        return None
    return claim_devices(execution.gpus_per_node, visible_devices(around), around, str(output))


def launch(
    execution: Execution,
    words: Sequence[str],
    output: Path,
    environment: Mapping[str, str],
    claim: Claim | None = None,
) -> Launch:
    """The command and environment that start a stage.

    One process needs no launcher (which would take longer to start than the trainer), several get DeepSpeed's; in a
    Slurm job `srun` starts one task per process. With DS_ACCELERATOR=cpu, `gpus_per_node` counts CPU processes.

    Args:
        execution: the stage's `execution` settings.
        words: script and arguments.
        output: where the stage writes; distinguishes stages that share a machine.
        environment: of this process.
        claim: the GPUs, where this machine's are taken: see `take_devices`.
    """
    local = max(1, execution.gpus_per_node)
    in_job = _in_job(environment)
    threads = execution.threads if in_job else _local_threads(execution, environment, local)
    around = _surroundings(execution, {**environment, "OMP_NUM_THREADS": str(threads)})
    changed = around | _device_variables(execution, around, claim)
    script = [*execution.wrapper, sys.executable, *words]
    if in_job:
        step = {name: text for name, text in changed.items() if _passed_on(name)}
        return Launch([*_srun(execution, local), *script], step)
    if execution.nodes * local == 1:
        return Launch(script, changed)
    # Told their number, it takes the machine's first GPUs and ignores CUDA_VISIBLE_DEVICES; else it takes those.
    number = ["--num_gpus", str(local)] if claim is None else []
    start = ["deepspeed", *number, "--master_port", port(output)]
    return Launch([*execution.wrapper, *start, *words], changed)


def port(output: Path) -> str:
    """A port that follows from where a stage writes: two stages on one machine must not share DeepSpeed's default."""
    return str(FIRST_PORT + zlib.crc32(str(output.absolute()).encode()) % PORTS)


def _in_job(environment: Mapping[str, str]) -> bool:
    return "SLURM_JOB_ID" in environment


def _surroundings(execution: Execution, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment that a user gives to a stage, by the shell and by the configuration."""
    given = {name: str(value) for name, value in execution.environment.items()}
    return {name: text for name, text in environment.items() if name not in GROUP} | given


def _device_variables(execution: Execution, around: Mapping[str, str], claim: Claim | None) -> dict[str, str]:
    """What makes CUDA show, and DeepSpeed choose, the devices that the configuration says."""
    if computes_on_cpu(execution.gpus_per_node, around):
        return ON_CPU
    return {ACCELERATOR: "cuda"} | (claim.variables if claim is not None else {})


def _local_threads(execution: Execution, environment: Mapping[str, str], local: int) -> int:
    """Threads of each process: Snakemake has lowered the stage's number to the machine's cores in OMP_NUM_THREADS."""
    return max(1, int(environment.get("OMP_NUM_THREADS", execution.threads * local)) // local)


def _srun(execution: Execution, local: int) -> list[str]:
    nodes = execution.nodes
    shape = [
        f"--nodes={nodes}",
        f"--ntasks={nodes * local}",
        f"--ntasks-per-node={local}",
        f"--cpus-per-task={execution.threads}",
    ]
    gpus = [f"--gres=gpu:{execution.gpus_per_node}"] if execution.gpus_per_node else []
    # overlap: the step in which Snakemake waits holds the job's CPUs, memory and GPUs.
    return ["srun", "--overlap", *shape, *gpus, "--kill-on-bad-exit=1"]


def _passed_on(name: str) -> bool:
    return name in JOB_IDENTITY or not name.startswith(STEP_PREFIXES)
