"""Models without weights: built from their configuration, for a dry run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig

from rlhf.config.stages import Optimization
from rlhf.errors import UserError, first_line
from rlhf.memory.layers import decoder_layers
from rlhf.models.loading import DTYPES, dropout_keys
from rlhf.models.lora import adapted_layers, add_lora, is_adapter, linear_modules, plain_layer
from rlhf.models.merged import LowRank, keep_beside, keeps_transposed
from rlhf.models.scores import TokenScorer

SHORT = (4, 5)  # numbers of layers that show first, second, penultimate and last, and what one more adds
SMALL_PARAMETER = 100_000  # DeepSpeed's default of param_persistence_threshold


_UNIFORM: dict[tuple[str, str], bool] = {}  # of configuration and head


@dataclass(frozen=True)
class EarlierAdapters:
    """Adapters of an earlier stage, which a model in half precision computes beside its weights.

    Args:
        rank: of the matrices.
        pattern: part of the names of the linear modules that have them.
        modules: their names, where they are known; None: `pattern` tells.
    """

    rank: int
    pattern: str = ""
    modules: frozenset[str] | None = None

    def of(self, names: list[str]) -> list[str]:
        """Those of the linear modules `names` that have such an adapter."""
        return [name for name in names if (self.pattern in name if self.modules is None else name in self.modules)]


@dataclass(frozen=True)
class Blueprint:
    """A model as a stage would build it.

    Args:
        config: of the model folder.
        head: `lm` (policy, reference) or `score` (reward and value model).
        dtype: `fp32`, `bf16` or `fp16`.
        optimization: `Optimization` settings; None: the model is frozen.
        checkpointing: recompute activations in the backward pass.
        place: configuration path of the settings, for messages.
        earlier: adapters of the stages before, oldest first; without effect in fp32.
    """

    config: PreTrainedConfig
    head: str
    dtype: str
    optimization: Optimization | None
    checkpointing: bool = False
    place: str = ""
    earlier: tuple[EarlierAdapters, ...] = ()

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return int(self.config.num_hidden_layers)

    def uniform(self) -> bool:
        """Whether all layers have the same shapes and attention, so that a model of few layers tells of one of many."""
        key = (self.config.to_json_string(use_diff=False), self.head)
        if key not in _UNIFORM:
            kinds = set(getattr(self.config, "layer_types", None) or ["same"])
            layers = decoder_layers(Blueprint(self.config, self.head, "bf16", None).build(), self.layers)
            shapes = {tuple(parameter.shape for parameter in layer.parameters()) for layer in layers}
            _UNIFORM[key] = len(kinds) == len(shapes) == 1
        return _UNIFORM[key]

    def build(self, layers: int | None = None, device: str = "meta") -> nn.Module:
        """The module that the stage's loss calls.

        Args:
            layers: number of decoder layers; None: all.
            device: `meta`: without storage; `cpu`: with random weights.

        Raises:
            UserError: the family has no such head, or the LoRA pattern matches nothing.
        """
        auto_class = AutoModelForCausalLM if self.head == "lm" else AutoModelForSequenceClassification
        with torch.device(device):
            try:
                model = auto_class.from_config(self._shortened(layers), dtype=DTYPES[self.dtype])
            except ValueError as error:
                raise UserError(f"{self.config.model_type}: {first_line(error)}") from None
            self._keep_beside(model)
            if self.optimization is None:
                model.requires_grad_(False)
            else:
                add_lora(model, self.optimization, self.place)
        if self.dtype != "fp32":  # as the engine does: adapters included, buffers not
            for parameter in model.parameters():
                parameter.data = parameter.data.to(DTYPES[self.dtype])
        if self.checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        module = model if self.head == "lm" else TokenScorer(model)
        return module.train(self.optimization is not None)

    def _keep_beside(self, model: nn.Module) -> None:
        """Give the model the adapters of earlier stages, as loading does."""
        if self.dtype == "fp32":
            return
        changes: dict[str, list[LowRank]] = {}
        linear = linear_modules(model)
        for adapters in self.earlier:
            for name in adapters.of(linear):
                layer: Any = model.get_submodule(name)
                rows, columns = layer.weight.T.shape if keeps_transposed(layer) else layer.weight.shape
                pair = torch.empty(adapters.rank, columns), torch.empty(rows, adapters.rank)
                changes.setdefault(name, []).append(LowRank(*pair, 1.0))
        for name, own in changes.items():
            keep_beside(model.get_submodule(name), own)

    def _shortened(self, layers: int | None) -> PreTrainedConfig:
        config = copy.deepcopy(self.config)
        dropout = 0.0 if self.optimization is None else self.optimization.dropout
        if dropout is not None:
            for name in dropout_keys(config):
                setattr(config, name, dropout)
        if self.head == "score":
            config.num_labels = 1
        if layers is not None:
            config.num_hidden_layers = layers
            if getattr(config, "layer_types", None):
                config.layer_types = config.layer_types[:layers]
        return config


def materialise(model: nn.Module) -> nn.Module:
    """Give all parameters and buffers of a model storage, fake under a fake tensor mode; tied ones share it."""
    made: dict[int, Tensor] = {}

    def empty(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        return made[id(tensor)]

    parameters: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in parameters:
                    parameters[id(parameter)] = nn.Parameter(empty(parameter), parameter.requires_grad)
                module._parameters[name] = parameters[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = empty(buffer)
    return model


def weights(model: nn.Module) -> Iterator[Tensor]:
    """Everything that a model keeps: parameters and buffers."""
    yield from model.parameters()
    yield from model.buffers()


@dataclass(frozen=True)
class Counts:
    """How many parameters a model has, by what its memory depends on.

    Args:
        all: parameters, tied ones once.
        trained: those that require gradients.
        largest: of the largest tensor.
        largest_trained: of the largest trained tensor.
        small: in tensors below the threshold under which ZeRO-3 keeps parameters whole.
        whole: bytes of all weights and buffers.
        page_locked: bytes of the same in page-locked host memory, where torch rounds each up to a power of two.
        groups: trained parameters of each optimizer group.
        adapted: those of weights with adapters, which are delivered in fp32.
        largest_adapted: of the largest such weight.
        adapters: those of the adapters, own and earlier ones.
    """

    all: int
    trained: int
    largest: int
    largest_trained: int
    small: int
    whole: int
    page_locked: int
    groups: tuple[int, ...]
    adapted: int = 0
    largest_adapted: int = 0
    adapters: int = 0


Grouping = Callable[[nn.Module], list[list[nn.Parameter]]]


def count_parameters(model: nn.Module, grouping: Grouping) -> Counts:
    """Count the parameters of a built model, which needs no storage for that.

    Args:
        model: the module.
        grouping: the optimizer groups of its trained parameters.
    """
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trained = [size for size, trains in sizes if trains]
    adapted = [plain_layer(layer).weight.numel() for layer in adapted_layers(model).values()]
    kept = {id(tensor): tensor.numel() * tensor.element_size() for tensor in weights(model)}
    return Counts(
        all=sum(size for size, _ in sizes),
        trained=sum(trained),
        largest=max(size for size, _ in sizes),
        largest_trained=max(trained, default=0),
        small=sum(size for size, _ in sizes if size < SMALL_PARAMETER),
        whole=sum(kept.values()),
        page_locked=sum(1 << max(0, size - 1).bit_length() for size in kept.values()),
        groups=tuple(sum(parameter.numel() for parameter in group) for group in grouping(model)) or (0,),
        adapted=sum(adapted),
        largest_adapted=max(adapted, default=0),
        adapters=sum(parameter.numel() for name, parameter in model.named_parameters() if is_adapter(name)),
    )


def count(blueprint: Blueprint, grouping: Grouping) -> Counts:
    """Count a model's parameters from two short ones: its layers are equal, so each count is linear in their number."""
    if blueprint.layers <= SHORT[1] or not blueprint.uniform():
        return count_parameters(blueprint.build(), grouping)
    shorter, longer = (count_parameters(blueprint.build(layers), grouping) for layers in SHORT)
    steps = blueprint.layers - SHORT[0]

    def at(first: int, second: int) -> int:
        return first + steps * (second - first)

    pairs = zip(shorter.groups, longer.groups, strict=True)
    return Counts(
        all=at(shorter.all, longer.all),
        trained=at(shorter.trained, longer.trained),
        largest=shorter.largest,
        largest_trained=shorter.largest_trained,
        small=at(shorter.small, longer.small),
        whole=at(shorter.whole, longer.whole),
        page_locked=at(shorter.page_locked, longer.page_locked),
        groups=tuple(at(first, second) for first, second in pairs),
        adapted=at(shorter.adapted, longer.adapted),
        largest_adapted=shorter.largest_adapted,
        adapters=at(shorter.adapters, longer.adapters),
    )
