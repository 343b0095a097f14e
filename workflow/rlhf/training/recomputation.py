"""Gradient checkpointing: switched on, and seen to work in the first training step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from rlhf.errors import UserError


class Recomputation:
    """Follows the first micro-batch: layers that keep no activations are computed again in the backward pass.

    Only modules inside a layer tell: transformers checkpoints the layer's `forward`, below its own hooks. Costs
    nothing but the hooks, which go after the first backward pass.

    Args:
        model: the model, or a module around it (`TokenScorer`); its checkpointing is switched on.

    Raises:
        UserError: the family knows no gradient checkpointing.
    """

    def __init__(self, model: nn.Module) -> None:
        checkpoint_activations(model if isinstance(model, PreTrainedModel) else model.model)
        self.layers = list(_layers(model))
        self.effective: bool | None = None  # None until the first backward pass
        self._needed: set[int] = set()  # layers whose output has a gradient
        self._recomputed: set[int] = set()
        self._in_backward = False
        self._handles: list[RemovableHandle] = []
        for number, layer in enumerate(self.layers):
            self._handles.append(layer.register_forward_hook(self._note_forward(number)))
            for module in layer.modules():
                if module is not layer and not list(module.children()):
                    self._handles.append(module.register_forward_pre_hook(self._note_call(number)))

    def begin_backward(self) -> None:
        """The forward pass is over: a layer that computes from here on does so for the second time."""
        self._in_backward = True

    def end_backward(self) -> None:
        """Compare the layers that were computed again with those that had to be.

        Raises:
            UserError: a layer kept its activations.
        """
        for handle in self._handles:
            handle.remove()
        kept = self._needed - self._recomputed
        self.effective = bool(self._needed) and not kept
        if not self.effective:
            raise UserError(
                f"gradient checkpointing has no effect: {len(kept) or 'all'} of {len(self.layers)} layers kept their "
                "activations in the first step; this model ignores it. Switch gradient_checkpointing off in "
                "`execution`, and make the micro-batches smaller where memory does not suffice"
            )

    def _note_forward(self, number: int) -> Any:
        def hook(_module: nn.Module, _arguments: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            # A layer below all adapters has no gradient: nothing of it is kept, with or without checkpointing.
            if not self._in_backward and isinstance(first, Tensor) and first.requires_grad:
                self._needed.add(number)

        return hook

    def _note_call(self, number: int) -> Any:
        def hook(_module: nn.Module, _arguments: Any) -> None:
            if self._in_backward and torch.is_grad_enabled():
                self._recomputed.add(number)

        return hook


def checkpoint_activations(model: Any) -> None:
    """Switch a Hugging Face model's gradient checkpointing on.

    Raises:
        UserError: the family knows none.
    """
    try:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise UserError(f"execution: gradient checkpointing is not possible: {error}") from None


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of a transformer: the members of its outermost lists of modules."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)
