"""Processes: one or many, started by any launcher or none, on CPU or accelerator."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch

from rlhf.runtime.devices import ACCELERATOR, ON_CPU, VISIBLE

# DeepSpeed settles its accelerator while it is imported.
if os.environ.get(ACCELERATOR) == "cpu":
    os.environ |= ON_CPU  # its launcher shows devices to count processes by; nothing must use them
    CPU_ASKED = True
else:
    CPU_ASKED = False
    if not torch.cuda.is_available():
        os.environ[ACCELERATOR] = "cpu"

import deepspeed
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from rlhf.data.batching import MicroBatch
from rlhf.errors import PeerFailed, UserError
from rlhf.memory import allocator
from rlhf.runtime.device_locks import held_device
from rlhf.runtime.failure import explain
from rlhf.runtime.logging import get_logger

logger = get_logger(__name__)

RowT = TypeVar("RowT")
Compute = Callable[[np.ndarray], Sequence[RowT]]  # rows of a micro-batch -> what is found of them
Remember = Callable[[Compute[RowT]], Compute[RowT]]  # makes of a computation one that may know what it would find

LONGEST_PAUSE = 0.5  # seconds between two looks at who has arrived


@contextmanager
def processes(timeout_minutes: float = 30.0) -> Iterator[None]:
    """Join the process group for the block; a process without a launcher makes a group of one.

    The launcher (`deepspeed`, `torchrun`) sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; under
    `srun` they follow from Slurm's variables.

    Args:
        timeout_minutes: how long a process waits for the others before it fails, so that a lost one ends the stage.

    Raises:
        UserError: there are fewer GPUs than processes, or this one's has been given to another stage.
    """
    _variables_from_slurm()
    if "RANK" not in os.environ:
        os.environ |= {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
        }
    if on_cpu():
        _skip_shared_memory_op()
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    else:
        _take_own_device(int(os.environ["LOCAL_RANK"]))
    with held_device(os.environ):
        deepspeed.init_distributed(verbose=False, timeout=timedelta(minutes=timeout_minutes))
        logger.info("%d process(es), device %s, %d thread(s)", world_size(), device_name(), torch.get_num_threads())
        try:
            yield
        finally:
            dist.destroy_process_group()


def rank() -> int:
    """Number of this process."""
    return dist.get_rank()


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size()


def on_cpu() -> bool:
    """Whether training runs without an accelerator."""
    return bool(get_accelerator().device_name() == "cpu")


def device() -> torch.device:
    """The device of this process."""
    return torch.device(get_accelerator().current_device_name())


def device_name() -> str:
    """The device of this process in words: `cpu`, or the GPU's kind and UUID."""
    if on_cpu():
        return "cpu"
    return allocator.device_name(torch.cuda)


def require_device(gpus: int) -> None:
    """Make sure that this process computes where the configuration says; the launcher sees to it.

    Args:
        gpus: `gpus_per_node` of the stage's `execution`.

    Raises:
        UserError: it does not.
    """
    if gpus and on_cpu() and not CPU_ASKED:
        raise UserError(
            f"execution.gpus_per_node: {gpus}, but this process sees no CUDA device "
            f"({VISIBLE}={os.environ.get(VISIBLE)!r}, host {socket.gethostname()}). Mend the driver or the variable, "
            f"or set gpus_per_node to 0; {ACCELERATOR}=cpu in the environment puts a process on the CPU in place of "
            "each GPU, for a trial"
        )
    if not gpus and not on_cpu():
        raise UserError(
            f"execution.gpus_per_node: 0, but this process would compute on {device_name()}. Start it by "
            f"workflow/scripts/launch.py, as Snakemake does, or with {ACCELERATOR}=cpu in the environment"
        )


def require_dtype(dtype: str) -> None:
    """Refuse a precision that DeepSpeed does not train in on this device.

    Raises:
        UserError: naming what works.
    """
    accelerator = get_accelerator()
    supported = {"fp16": accelerator.is_fp16_supported, "bf16": accelerator.is_bf16_supported, "fp32": lambda: True}
    if not supported[dtype]():
        works = ", ".join(name for name, works in supported.items() if works())
        raise UserError(f"dtype: {dtype} does not work on this device ({accelerator.device_name()}); choose {works}")


def all_gather(value: Any) -> list[Any]:
    """The value of every process, in rank order; for small Python objects and CPU arrays."""
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def agreed(*flags: bool) -> list[bool]:
    """Whether any process says so, of each flag: what all of them must do, or leave, together."""
    if world_size() == 1:
        return list(flags)
    return [any(column) for column in zip(*all_gather(flags), strict=True)]


def anew(compute: Compute[RowT]) -> Compute[RowT]:
    """Remembers nothing."""
    return compute


def gather_rows(
    shares: Sequence[MicroBatch],
    compute: Compute[RowT],
    between: Callable[[], None] = lambda: None,
) -> list[RowT]:
    """What is computed of each row, in the order of the rows, on every process; called by all of them.

    Args:
        shares: this process's micro-batches; those of all processes together have each row once, numbered from 0.
        compute: rows of a micro-batch -> what is found of each of them: small Python objects and CPU arrays.
        between: called before each micro-batch.
    """
    own: dict[int, RowT] = {}
    for micro in shares:
        between()
        found = dict(zip(micro.rows.tolist(), compute(micro.rows), strict=True))
        own |= found if micro.weight else {}  # a filler computes only to keep step
    everything = {row: one for part in all_gather(own) for row, one in part.items()}
    return [everything[row] for row in range(len(everything))]


def all_sum(*values: float) -> list[float]:
    """Sums over all processes."""
    total = torch.tensor(values, dtype=torch.float64, device=device())  # token counts pass 2^24
    dist.all_reduce(total)
    return total.tolist()


def barrier() -> None:
    """Wait for all processes."""
    dist.barrier()


def wait_for_all() -> None:
    """Wait for all processes without a time limit, where one of them may be at work on a disk for hours.

    A collective would end the stage after its timeout. The processes count themselves in the store of their group
    instead: one that comes last makes the count a multiple of their number. A process that dies meanwhile is the
    launcher's to notice; the death of the first one takes the store with it, and is an error here.
    """
    store = dist.distributed_c10d._get_default_store()
    everyone = world_size()
    complete = -(-store.add("arrived", 1) // everyone) * everyone
    pause = 0.001
    while store.add("arrived", 0) < complete:
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
    barrier()  # the first process must not leave, with the store, before the others have looked


@contextmanager
def together() -> Iterator[None]:
    """Processes leave the block together, however long one of them takes, or all of them fail because one has.

    For what a process does alone, such as writing files: the block must hold no collective, in which the others would
    wait for one that has failed.

    Raises:
        Exception: what this process failed of.
        PeerFailed: another process has failed.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # raised below, when the others know
        failure = error
    wait_for_all()
    said = all_gather(None if failure is None else explain(failure).message)
    if failure is not None:
        raise failure
    for number, message in enumerate(said):
        if message is not None:
            raise PeerFailed(f"process {number} has failed: {message}")


def _take_own_device(number: int) -> None:
    count = get_accelerator().device_count()
    if number >= count:
        raise UserError(
            f"process {number} of host {socket.gethostname()} needs a GPU, but {count} can be seen there "
            f"({VISIBLE}={os.environ.get(VISIBLE)!r}); lower execution.gpus_per_node, or ask for more"
        )
    get_accelerator().set_device(number)


def _variables_from_slurm() -> None:
    slurm = os.environ
    if "RANK" in slurm or "SLURM_PROCID" not in slurm or int(slurm.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return
    slurm |= {
        "RANK": slurm["SLURM_PROCID"],
        "WORLD_SIZE": slurm["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "MASTER_ADDR": _first_host(slurm["SLURM_STEP_NODELIST"]),
        # One port per job, so that jobs on a shared node do not meet.
        "MASTER_PORT": str(20000 + int(slurm["SLURM_JOB_ID"]) % 12000),
    }


def _first_host(nodes: str) -> str:
    """The node of rank 0. Slurm's SLURM_LAUNCH_NODE_IPADDR is where srun was typed, which may be a login node."""
    if "," not in nodes and "[" not in nodes:
        return "127.0.0.1"  # one node, whose name need not resolve
    command = ["scontrol", "show", "hostnames", nodes]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()[0]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _skip_shared_memory_op() -> None:
    """Keep DeepSpeed from compiling its shared-memory collective (deepspeed 0.19.8).

    Every CPU start would compile it for half a minute, and a killed compilation leaves a lock that hangs all later
    runs. It serves tensor-parallel inference only; training collectives use gloo.
    """
    table = dict(deepspeed.ops.__compatible_ops__)
    table["deepspeed_shm_comm"] = False
    deepspeed.ops.__compatible_ops__ = table
