"""Host memory of a node: what processes read, offload and gather, in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.memory.devices import GIB
from rlhf.memory.parts import Part, Resident
from rlhf.memory.states import delivered_weights, host_states, host_step_extra

LIBRARIES = {True: 4 * GIB, False: GIB // 2}  # of a process with and without CUDA
SNAKEMAKE_MB = 300  # of its two processes inside a job
RESERVE = 1.15  # of what is asked of the scheduler over what is expected


@dataclass(frozen=True)
class HostMemory:
    """Host memory in bytes of one process in each phase, and of all processes of a node.

    Args:
        load: of a process while models are read and engines are made; the first one reads those of ZeRO-3 besides.
        steady: of a process while it trains.
        save: of the process that writes the model.
        node: of all processes of a node at their largest.
    """

    load: int
    steady: int
    save: int
    node: int

    @property
    def mem_mb(self) -> int:
        """What to ask of the scheduler for each node, in MB."""
        return int(-(-self.node * RESERVE // 1_000_000)) + SNAKEMAKE_MB


def host_memory(
    models: list[Resident],
    parts: list[Part],
    processes: int,
    accumulates: bool,
    cuda: bool,
    delivers: bool = True,
) -> HostMemory:
    """Host memory of a stage.

    Args:
        models: all of them; each process reads every one whole, but those under ZeRO-3 only the first.
        parts: on the CPU, their tensors are host memory too.
        processes: of a node.
        accumulates: a step has several micro-batches.
        cuda: tensors are on a GPU unless they are offloaded.
        delivers: one of the models is written in the end.
    """
    base = LIBRARIES[cuda]
    whole = sum(model.counts.whole for model in models if model.engine.zero_stage < 3)
    read_once = max((model.counts.whole for model in models if model.engine.zero_stage == 3), default=0)
    offloaded = sum(host_states(model.engine, model.counts, accumulates) for model in models)
    at_rest = [model.counts.page_locked if cuda else model.counts.whole for model in models if not model.on_device]
    offloaded += sum(at_rest)
    step = max(host_step_extra(model.engine, model.counts) for model in models)
    tensors = {"load": 0, "save": 0, "": 0}
    if not cuda:
        for part in parts:
            key = part.phase if part.phase in tensors else ""
            tensors[key] = max(tensors[key], part.total)
        whole = 0  # counted among the tensors
    load = base + whole + offloaded + tensors["load"]
    steady = base + offloaded + step + tensors[""]
    # A model that is delivered waits on the host until it is written; then what was written is loaded there.
    delivered = max(max(delivered_weights(model.engine, model.counts), model.counts.whole) for model in models)
    save = base + offloaded + tensors["save"] + (delivered if cuda and delivers else 0)
    node = max(processes * load + read_once, processes * steady, (processes - 1) * steady + save)
    return HostMemory(load, steady, save, node)
