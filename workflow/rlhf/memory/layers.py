"""Where in a model a program is: before, in or after which decoder layer, forward or backward."""

from __future__ import annotations

import bisect
from typing import Any

import torch
from torch import nn

from rlhf.errors import UserError

MIDDLE = "middle"


def decoder_layers(model: nn.Module, count: int) -> nn.ModuleList:
    """The list of decoder layers of a model.

    Raises:
        UserError: no list of modules has `count` entries.
    """
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UserError(f"{type(model).__name__}: found no list of {count} layers; its memory cannot be predicted")


class LayerClock:
    """Names the present place of a program by decoder layer, without touching its graph.

    Forward and recomputation are seen by hooks on the layers. In the backward pass, the autograd node that runs tells
    by its sequence number in which layer's forward it was made.

    All layers being equal, live bytes at one operation of layer i of L are linear in i and in L. The largest lie at the
    ends, so the first, the second, the last but one and the last layer get names of their own; the rest is `middle`.
    """

    def __init__(self) -> None:
        self.program = ""
        self._inside: str | None = None
        self._outside = "before"
        self._starts: list[int] = []  # sequence numbers at which a place begins, increasing
        self._names: list[str] = []

    def watch(self, model: nn.Module, layers: nn.ModuleList) -> None:
        """Follow the layers of one model."""
        for index, layer in enumerate(layers):
            name = _layer_name(index, len(layers))
            layer.register_forward_pre_hook(lambda *_, name=name: self._enter(name))
            layer.register_forward_hook(lambda *_, name=name: self._leave(name), always_call=True)

    def start(self, program: str) -> None:
        """Begin a part of the program: from here on, the names of places begin with its name."""
        self.program, self._inside, self._outside = program, None, "before"
        self._starts, self._names = [], []

    def __call__(self) -> str:
        """Name of the place that the program has reached: part, direction, layer."""
        if torch._C._current_graph_task_id() < 0:
            return f"{self.program}|forward|{self._inside or self._outside}"
        if self._inside is None:
            self._outside = self._of_node(torch._C._current_autograd_node())
        return f"{self.program}|backward|{self._inside or self._outside}"

    def _enter(self, name: str) -> None:
        self._inside = name
        if torch._C._current_graph_task_id() < 0:
            self._note(name)

    def _leave(self, name: str) -> None:
        self._inside = None
        if torch._C._current_graph_task_id() < 0:
            self._outside = f"after {name}" if name != "last" else "after"
            self._note(self._outside)

    def _note(self, name: str) -> None:
        self._starts.append(torch._C._autograd._get_sequence_nr())
        self._names.append(name)

    def _of_node(self, node: Any) -> str:
        number = node._sequence_nr() if node is not None else None
        if number is None or number >= 2**63:  # accumulation of a gradient belongs to what ran before
            return self._outside
        place = bisect.bisect_right(self._starts, number) - 1
        return self._names[place] if place >= 0 else "before"


def _layer_name(index: int, count: int) -> str:
    if index == count - 1:
        return "last"
    return {0: "first", 1: "second", count - 2: "penultimate"}.get(index, MIDDLE)
