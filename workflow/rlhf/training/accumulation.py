"""Gradients of a step's micro-batches are added up in fp32, whatever the precision of the weights.

A sum in bf16 loses what is below half a unit in its last place: of 512 like gradients, the last ones count little or
nothing, and the norm of the step is off by a percent. Without this, how a step is cut would change its result.

DeepSpeed 0.19.8 adds up in fp32 where it is told to (`data_types.grad_accum_dtype`) and gradients are partitioned: ZeRO
2 and 3. With ZeRO 1 it keeps whole sums on every process and rounds them to the precision of the weights in the end.
"""

from __future__ import annotations

from typing import Any

from deepspeed.runtime.zero.utils import get_norm_dtype
from torch import nn

from rlhf.config.expand import deep_merge

IN_FP32 = {"data_types": {"grad_accum_dtype": "fp32"}}


def with_fp32_sums(config: dict[str, Any]) -> dict[str, Any]:
    """A DeepSpeed configuration for half precision and ZeRO 2 or 3, with sums of gradients in fp32.

    It is not told so where `add_up_on_host` does it: DeepSpeed would keep the sums on the device, at four bytes for
    each parameter of the process's share, which is what offloading is to save.
    """
    return config if sums_on_host(config) else deep_merge(config, IN_FP32)


def sums_on_host(config: dict[str, Any]) -> bool:
    """Whether gradients are added up in host memory, by `add_up_on_host`: ZeRO 2 with an offloaded optimizer.

    Args:
        config: of DeepSpeed, for half precision.
    """
    zero = config["zero_optimization"]
    offload = zero.get("offload_optimizer") or {}
    return bool(zero["stage"] == 2 and offload.get("device", "none") != "none")


def add_up_on_host(optimizer: Any) -> None:
    """Add gradients up in the fp32 gradients that an offloaded optimizer of ZeRO 2 keeps in host memory.

    DeepSpeed 0.19.8 itself adds them up in another host buffer, in the precision of the weights, and converts the sum.

    Args:
        optimizer: DeepSpeed's, of an engine for half precision.
    """

    def take(parameter: nn.Parameter, _: int) -> None:
        """In place of `copy_grads_in_partition`, which is called with each gradient that has just been reduced."""
        number = optimizer.get_param_id(parameter)
        group, start, place, size = optimizer.grad_position[number]
        total = optimizer.single_partition_of_fp32_groups[group].grad.view(-1).narrow(0, place, size)
        gradient = optimizer.get_param_gradient_attribute(parameter).view(-1).narrow(0, start, size).float()
        begun = optimizer._offload_accumulated_param_ids  # DeepSpeed empties it with each step, but not the sums
        if number in begun:
            gradient += total.to(gradient.device)
        begun.add(number)
        total.copy_(gradient)
        optimizer.clear_grad_attribute(parameter)
        if optimizer.is_gradient_accumulation_boundary():
            optimizer.norm_for_param_grads[number] = gradient.norm(dtype=get_norm_dtype())
            optimizer.update_offload_overflow_tracker(gradient)

    optimizer.copy_grads_in_partition = take
