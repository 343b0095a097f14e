"""An exponential moving average of the policy's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """average <- decay average + (1 - decay) weights, after each optimizer step, from the first weights on.

    Kept in float32, for the trained parameters only. Under ZeRO-3 each process averages its own partition.

    Args:
        model: the policy, after its engine was made.
        decay: 0.992 in InstructGPT (Ouyang et al. 2022) and DeepSpeed-Chat.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._average = [_local(parameter).float().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights."""
        for average, parameter in zip(self._average, self._parameters, strict=True):
            average.lerp_(_local(parameter).float(), 1 - self._decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights in the block, and its own again after it."""
        own = [_local(parameter).clone() for parameter in self._parameters]
        self._write(self._average)
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            _local(parameter).copy_(value)
        # ZeRO-3 keeps small parameters whole beside their partitions; those copies must follow.
        whole: list[Any] = [parameter for parameter in self._parameters if getattr(parameter, "ds_persist", False)]
        if whole:
            whole[0].partition(whole)
            whole[0].all_gather(whole)


def _local(parameter: nn.Parameter) -> Tensor:
    """What this process holds of a parameter: all of it, or its ZeRO-3 partition."""
    partition: Tensor | None = getattr(parameter, "ds_tensor", None)
    return (parameter if partition is None else partition).detach()
