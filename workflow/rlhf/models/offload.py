"""A model that rests in host memory and is on the device only while it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class OffloadedModel:
    """Keeps the weights of a frozen model on the host, in page-locked memory, from which a device reads fastest.

    They never change, so nothing is copied back: the copy on the device is dropped. Where the device is the host,
    nothing is copied at all.

    Args:
        model: in host memory; its parameters and buffers stay the same objects, so that tied ones stay tied.
        device: where it computes.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._device = device
        self._tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
        if device.type == "cuda":
            for tensor in self._tensors:  # one by one, so that no second copy of the model comes to be
                tensor.data = tensor.data.pin_memory()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The model is on the device in the block."""
        at_rest = [tensor.data for tensor in self._tensors]
        try:
            for tensor, kept in zip(self._tensors, at_rest, strict=True):
                tensor.data = kept.to(self._device, non_blocking=True)
            yield
        finally:
            for tensor, kept in zip(self._tensors, at_rest, strict=True):
                tensor.data = kept
