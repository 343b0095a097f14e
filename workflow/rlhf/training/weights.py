"""Weights of a model in training: a second copy (an average, or the best so far), and the whole of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf.training.distributed import rank


class WeightCopy:
    """What this process holds of the trained parameters, kept apart in host memory or on the model's device.

    Under ZeRO-3 each process copies its own partition.

    Args:
        model: the model, after its engine was made.
        dtype: of the copy; None keeps the model's.
        device: of the copy; None keeps the model's.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None, device: str | None = None) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.copy = [
            local(parameter).to(dtype=dtype, device=device, copy=True).contiguous() for parameter in self.parameters
        ]

    @torch.no_grad()
    def take(self) -> None:
        """Make the copy equal to the present weights."""
        for kept, parameter in zip(self.copy, self.parameters, strict=True):
            kept.copy_(local(parameter))

    def put(self) -> None:
        """Make the model's weights equal to the copy."""
        self._write(self.copy)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the copied weights in the block, and its own again after it."""
        own = [local(parameter).clone() for parameter in self.parameters]
        self.put()
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            local(parameter).copy_(value)
        # ZeRO-3 keeps small parameters whole beside their partitions; those copies must follow.
        whole: list[Any] = [parameter for parameter in self.parameters if getattr(parameter, "ds_persist", False)]
        if whole:
            whole[0].partition(whole)
            whole[0].all_gather(whole)

    def save(self, folder: Path) -> None:
        """Write this rank's part."""
        tensors = {f"{number:06d}": kept.cpu() for number, kept in enumerate(self.copy)}
        save_file(tensors, folder / f"rank-{rank()}.safetensors")

    def load(self, folder: Path) -> None:
        """Take what `save` wrote."""
        saved = load_file(folder / f"rank-{rank()}.safetensors")
        for kept, name in zip(self.copy, sorted(saved), strict=True):
            kept.copy_(saved[name])


def local(parameter: nn.Parameter) -> Tensor:
    """What this process holds of a parameter: all of it, or its ZeRO-3 partition."""
    partition: Tensor | None = getattr(parameter, "ds_tensor", None)
    return (parameter if partition is None else partition).detach()


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """The block sees whole parameters, also where ZeRO-3 cut them into partitions; called by all processes."""
    partitioned = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]
    with deepspeed.zero.GatheredParameters(partitioned, enabled=bool(partitioned)):
        yield
