"""Run a program on a model of fake tensors, and say what it would hold where.

Few layers suffice: all being equal, the peak of each place (`rlhf.memory.layers`) is linear in their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from rlhf.errors import UserError
from rlhf.memory.blueprint import SHORT, Blueprint, materialise, weights
from rlhf.memory.layers import MIDDLE, LayerClock, decoder_layers
from rlhf.memory.tracker import GRADIENTS, KINDS, WEIGHTS, Peak, Tracker

Places = dict[str, Peak]


@dataclass
class DryRun:
    """What a dry run hands to the program that it traces.

    Args:
        model: the module, its weights counted.
        tracker: to say what further storages are.
        clock: to name the parts of the program.
    """

    model: nn.Module
    tracker: Tracker
    clock: LayerClock

    def clear_gradients(self) -> None:
        """Drop all gradients, as an optimizer step does."""
        for parameter in self.model.parameters():
            parameter.grad = None


Program = Callable[[DryRun], None]


def dry_run(blueprint: Blueprint, program: Program, cuda: bool = True, gradient_share: float = 1.0) -> Places:
    """Trace a program on a model without weights, which takes seconds; returns its peaks by place.

    Args:
        blueprint: the model.
        program: calls the stage's own loss; names its parts by `run.clock.start`.
        cuda: dropout and attention keep what they keep on CUDA.
        gradient_share: part of the finished gradients that stays, where an engine partitions them.

    Raises:
        UserError: the model's shapes depend on the data.
    """

    def traced(layers: int) -> Places:
        model = blueprint.build(layers)
        with FakeTensorMode(allow_non_fake_inputs=True), _cuda_kernels(cuda), _values_needed(blueprint):
            return trace(materialise(model), blueprint, layers, program, gradient_share)

    if blueprint.layers <= SHORT[1] or not blueprint.uniform():
        return traced(blueprint.layers)
    shorter, longer = (traced(layers) for layers in SHORT)
    return extrapolate(shorter, longer, blueprint.layers)


def trace(model: nn.Module, blueprint: Blueprint, layers: int, program: Program, gradient_share: float = 1.0) -> Places:
    """Peaks of a program by place, on a model of real or fake tensors."""
    clock = LayerClock()
    clock.watch(model, decoder_layers(model, layers))
    tracker = Tracker(blueprint.config.vocab_size, clock)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_gradient_hook(tracker))
    clock.start("load")
    with tracker:
        tracker.count(weights(model), WEIGHTS)
        program(DryRun(model, tracker, clock))
    return tracker.peaks(gradient_share)


def extrapolate(shorter: Places, longer: Places, layers: int) -> Places:
    """Peaks at any number of layers from those at two consecutive numbers."""
    steps = layers - SHORT[0]
    found = {}
    for place, peak in shorter.items():
        other = longer[place]
        found[place] = Peak({kind: peak.kinds[kind] + steps * (other.kinds[kind] - peak.kinds[kind]) for kind in KINDS})
    missing = [place for place in longer.keys() - shorter.keys() if MIDDLE not in place]
    assert not missing, missing
    return found


def _gradient_hook(tracker: Tracker) -> Callable[[Tensor], None]:
    def hook(parameter: Tensor) -> None:
        if parameter.grad is not None:
            tracker.count([parameter.grad], GRADIENTS)

    return hook


@contextmanager
def _values_needed(blueprint: Blueprint) -> Iterator[None]:
    """A model whose shapes depend on values cannot be traced without values."""
    try:
        yield
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        family = blueprint.config.model_type
        raise UserError(f"{family}: its memory depends on the data ({error}); it cannot be predicted") from None


@contextmanager
def _cuda_kernels(enabled: bool) -> Iterator[None]:
    """On the CPU, dropout keeps a mask as wide as its input, and attention with dropout is not fused."""
    if not enabled:
        yield
        return
    attention = F.scaled_dot_product_attention

    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return torch.native_dropout(input, p, True)[0] if training and p else input

    def fused(*args: Any, **kwargs: Any) -> Tensor:
        return attention(*args, **(kwargs | {"dropout_p": 0.0}))  # the fused kernel keeps a seed, no mask

    with mock.patch.object(F, "dropout", dropout), mock.patch.object(F, "scaled_dot_product_attention", fused):
        yield
