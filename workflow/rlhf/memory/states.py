"""What DeepSpeed keeps beside the tensors of a dry run: states, partitions and buffers of one engine, in bytes.

N processes share an engine. Gradients have the precision of the weights, and are added up in fp32; ZeRO and 16-bit
training keep fp32 master weights and two moments of each trained parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf.memory.blueprint import Counts

ELEMENT = {"fp32": 4, "bf16": 2, "fp16": 2}
MOMENTS, MASTER = 8, 4  # fp32
BUCKET = ALLREDUCE_BUCKET = 500_000_000  # DeepSpeed's defaults, in elements
MAX_LIVE, PREFETCH, SUB_GROUP = 1_000_000_000, 50_000_000, 1_000_000_000


@dataclass(frozen=True)
class Engine:
    """The settings of a DeepSpeed engine that memory depends on.

    Args:
        zero_stage: 0 to 3.
        dtype: precision of the weights.
        world_size: processes N.
        offload_optimizer: optimizer states are in host memory.
        offload_parameters: ZeRO-3 partitions of the weights are in host memory.
        reduce_bucket: elements of the gradient bucket.
        overlap_comm: a second bucket is filled while the first is reduced.
        max_live: ZeRO-3: gathered parameters that may stay.
        prefetch: ZeRO-3: parameters gathered in advance.
        sub_group: ZeRO-3: parameters updated at once.
        cuda: on a GPU; else all of it is host memory.
    """

    zero_stage: int
    dtype: str
    world_size: int
    offload_optimizer: bool = False
    offload_parameters: bool = False
    reduce_bucket: int = BUCKET
    overlap_comm: bool = False
    max_live: int = MAX_LIVE
    prefetch: int = PREFETCH
    sub_group: int = SUB_GROUP
    cuda: bool = True

    @classmethod
    def from_deepspeed(cls, config: dict[str, Any], dtype: str, world_size: int, cuda: bool) -> Engine:
        """The engine that a DeepSpeed configuration makes."""
        zero = config.get("zero_optimization", {})

        def on_host(section: str) -> bool:
            return bool(zero.get(section)) and zero[section].get("device", "none") != "none"

        return cls(
            zero_stage=zero.get("stage", 0),
            dtype=dtype,
            world_size=world_size,
            offload_optimizer=on_host("offload_optimizer"),
            offload_parameters=on_host("offload_param"),
            reduce_bucket=int(zero.get("reduce_bucket_size", BUCKET)),
            overlap_comm=bool(zero.get("overlap_comm", False)),
            max_live=int(zero.get("stage3_max_live_parameters", MAX_LIVE)),
            prefetch=int(zero.get("stage3_prefetch_bucket_size", PREFETCH)),
            sub_group=int(zero.get("sub_group_size", SUB_GROUP)),
            cuda=cuda,
        )

    @property
    def element(self) -> int:
        """Bytes of a weight."""
        return ELEMENT[self.dtype]

    @property
    def half(self) -> bool:
        """Whether weights have 16 bits, so that fp32 sums of gradients are tensors of their own."""
        return self.dtype != "fp32"

    @property
    def gradient_share(self) -> float:
        """Part of the finished gradients that stays on the device, where autograd put it, while the pass runs."""
        if self.zero_stage < 2 and not (self.zero_stage == 1 and self.offload_optimizer):
            return 1.0
        return 0.0 if self.offload_optimizer or self.half or self.zero_stage == 3 else 1 / self.world_size

    @property
    def keeps_master(self) -> bool:
        """Whether fp32 copies of the trained weights exist."""
        return self.zero_stage > 0 or self.half

    def share(self, parameters: int) -> int:
        """How many of these parameters one process holds, where they are partitioned."""
        return -(-parameters // self.world_size)


def resident_weights(engine: Engine, counts: Counts) -> int:
    """Weights that stay on the device."""
    if engine.zero_stage < 3:
        return counts.whole
    own = counts.small + (0 if engine.offload_parameters else engine.share(counts.all - counts.small))
    return engine.element * own


def gathered_weights(engine: Engine, counts: Counts) -> int:
    """Under ZeRO-3, weights that are gathered from all processes while layers compute with them."""
    if engine.zero_stage < 3 or engine.world_size == 1:  # one process computes on its partition
        return 0
    live = max(engine.max_live, 2 * counts.largest) + engine.prefetch
    return engine.element * min(counts.all - counts.small, live)


def optimizer_states(engine: Engine, counts: Counts) -> int:
    """Master weights and moments on the device, from the second step on."""
    if engine.offload_optimizer and engine.zero_stage:
        return 0
    each = MOMENTS + (MASTER if engine.keeps_master else 0)
    return each * (engine.share(counts.trained) if engine.zero_stage else counts.trained)


def summed_gradients(engine: Engine, counts: Counts) -> int:
    """A process's share of the sums of gradients, in fp32."""
    return MASTER * engine.share(counts.trained)


def resident_gradients(engine: Engine, counts: Counts) -> int:
    """ZeRO-3 keeps its partition of the gradients for the whole run; elsewhere they come and go."""
    if engine.zero_stage == 3 and not engine.offload_optimizer:
        return summed_gradients(engine, counts)
    return 0


def resident_buffers(engine: Engine, counts: Counts) -> int:
    """Buffers that stay for the whole run: ZeRO-3's bucket, and the staging of optimizer offload."""
    if not counts.trained:
        return 0
    if engine.zero_stage == 3:
        return engine.element * engine.reduce_bucket
    if engine.zero_stage and engine.offload_optimizer:
        return 2 * engine.element * counts.largest_trained
    return 0


def backward_buffers(engine: Engine, counts: Counts) -> int:
    """The gradient bucket of ZeRO-1 and 2, allocated for each backward pass at its configured size; what reduces it."""
    bucket = engine.element * engine.reduce_bucket * (2 if engine.overlap_comm else 1)
    return (bucket if engine.zero_stage in (1, 2) else 0) + (summing(engine, counts) if fills(engine, counts) else 0)


def fills(engine: Engine, counts: Counts) -> bool:
    """Whether a bucket is full in the first half of a backward pass, while most activations are still there."""
    return counts.trained > 2 * engine.reduce_bucket


def summing(engine: Engine, counts: Counts) -> int:
    """Temporary copies while a bucket is reduced and added to the sums of gradients.

    ZeRO-3 makes the bucket flat, and converts this process's share of it. ZeRO-2 does so in half precision alone: the
    bucket, and in fp32 one of its tensors; for sums in host memory one tensor and the sum that is fetched for it.
    """
    bucket = min(counts.trained, engine.reduce_bucket)
    if engine.zero_stage == 3:
        return engine.element * bucket + (MASTER * engine.share(bucket) if engine.half else 0)
    if engine.zero_stage < 2 or not engine.half:
        return 0
    if engine.offload_optimizer:
        return 2 * MASTER * counts.largest_trained
    return engine.element * bucket + MASTER * counts.largest_trained


def accumulated_gradients(engine: Engine, counts: Counts, accumulates: bool) -> int:
    """Sums of gradients that ZeRO-1 and 2 keep on the device beside those of the present micro-batch.

    In fp32 they exist from the second micro-batch on, in half precision from the first full bucket on.
    """
    if engine.zero_stage not in (1, 2) or engine.offload_optimizer:
        return 0
    exist = accumulates or (engine.half and fills(engine, counts))
    return summed_gradients(engine, counts) if exist else 0


def reduction(engine: Engine, counts: Counts) -> int:
    """All gradients and their reduction after the backward pass: a flat copy, or the partition beside the whole.

    ZeRO-2 in half precision: the sums, and what adds the last bucket to them; ZeRO-3: the latter.
    """
    whole = engine.element * counts.trained
    if engine.zero_stage == 0:
        return whole + engine.element * min(counts.trained, ALLREDUCE_BUCKET)
    if engine.zero_stage == 1 and not engine.offload_optimizer:
        return whole + engine.element * engine.share(counts.trained)
    sums = step_gradients(engine, counts) if engine.half else 0
    return sums + (0 if fills(engine, counts) else summing(engine, counts))


def step_gradients(engine: Engine, counts: Counts) -> int:
    """Gradients when the step begins; ZeRO-3's are resident anyway."""
    if engine.zero_stage == 0:
        return engine.element * counts.trained
    if engine.zero_stage == 3 or engine.offload_optimizer:
        return 0
    return summed_gradients(engine, counts)


def step_extra(engine: Engine, counts: Counts) -> int:
    """Temporary memory of the step: copies of gradients, and those that torch's AdamW makes while it computes.

    The latter are one copy of its parameters on CUDA, two of the largest tensor on the CPU; under ZeRO, an optimizer
    group is one tensor. The sums of ZeRO-2 in half precision are what AdamW reads; elsewhere it reads a copy.
    """
    if engine.offload_optimizer and engine.zero_stage:
        return 0
    if engine.zero_stage == 0:
        copies = 0 if engine.dtype == "fp32" else MASTER * counts.trained
        return copies + (MASTER * counts.trained if engine.cuda else 2 * MASTER * counts.largest_trained)
    updated = engine.share(max(counts.groups))
    if engine.zero_stage == 3:
        updated = min(updated, engine.sub_group)
    copied = 0 if engine.half and engine.zero_stage == 2 else 1
    return MASTER * updated * (copied + (1 if engine.cuda else 2))


def delivered_weights(engine: Engine, counts: Counts) -> int:
    """Weights as they are delivered: those with merged adapters in fp32, the others as they are trained."""
    return MASTER * counts.adapted + engine.element * (counts.all - counts.adapters - counts.adapted)


def load_extra(engine: Engine, counts: Counts) -> int:
    """Temporary copies while an engine is made, beside its weights, master weights and buffers."""
    if not counts.trained or (engine.offload_optimizer and engine.zero_stage):
        return 0
    if engine.zero_stage == 0:  # 16-bit training makes the moments by a step on zero gradients
        return 0 if engine.dtype == "fp32" else engine.element * counts.trained + step_extra(engine, counts)
    if engine.zero_stage == 3:  # less than the sums of gradients, which come after it
        return 0
    # A group's weights become one flat tensor, and the process's share of it is cloned before it becomes fp32.
    group = max(counts.groups)
    return engine.element * (group + (0 if engine.dtype == "fp32" else engine.share(group)))


def host_states(engine: Engine, counts: Counts, accumulates: bool) -> int:
    """Host memory of one process for what is offloaded from the device, from the second step on."""
    own = 0
    if engine.offload_optimizer and engine.zero_stage:
        staging = 2 * engine.element * counts.largest_trained
        partition = MASTER if engine.zero_stage == 3 else engine.element
        own += (MASTER + MOMENTS + MASTER + partition) * engine.share(counts.trained) + staging
        # In half precision micro-batches are added up in the gradients that the optimizer reads.
        apart = accumulates and engine.zero_stage < 3 and not engine.half
        own += engine.element * engine.share(counts.trained) if apart else 0
    if engine.offload_parameters and engine.zero_stage == 3:
        own += engine.element * engine.share(counts.all)
    return own


def host_step_extra(engine: Engine, counts: Counts) -> int:
    """Temporary copies of AdamW on the host while it steps: two of an optimizer group's share."""
    if not (engine.offload_optimizer and engine.zero_stage):
        return 0
    return 2 * MASTER * min(engine.share(max(counts.groups)), engine.sub_group)
