"""Weights of a model in training: a second copy (an average, or the best so far), and whole ones of partitions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import torch
from peft.helpers import disable_input_dtype_casting
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from rlhf.models.lora import adapted_layers, changes_of, is_adapter, merged_weight, plain_layer
from rlhf.models.merged import LowRank, MergedAdapters, read_merged
from rlhf.training.distributed import rank


class WeightCopy:
    """What this process holds of the trained parameters, kept apart in host memory or on the model's device.

    Under ZeRO-3 each process copies its own partition; else all copies are the same, and the first process writes its.

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
        """Write the copy, or this process's partition of it."""
        if self._writer() == rank():
            tensors = {f"{number:06d}": kept.cpu() for number, kept in enumerate(self.copy)}
            save_file(tensors, self._file(folder))

    def load(self, folder: Path) -> None:
        """Take what `save` wrote."""
        saved = load_file(self._file(folder))
        for kept, name in zip(self.copy, sorted(saved), strict=True):
            kept.copy_(saved[name])

    def _file(self, folder: Path) -> Path:
        return folder / f"rank-{self._writer()}.safetensors"

    def _writer(self) -> int:
        """The process that writes what this one holds."""
        return rank() if any(hasattr(parameter, "ds_tensor") for parameter in self.parameters) else 0


class WeightAverage(WeightCopy):
    """average <- decay average + (1 - decay) weights, after each optimizer step, from the first weights on.

    Kept in float32, for the trained parameters only.

    Args:
        model: the policy, after its engine was made.
        decay: 0.992 in InstructGPT (Ouyang et al. 2022) and DeepSpeed-Chat.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, torch.float32)
        self._decay = decay

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights."""
        for average, parameter in zip(self.copy, self.parameters, strict=True):
            average.lerp_(local(parameter).float(), 1 - self._decay)


def local(parameter: nn.Parameter) -> Tensor:
    """What this process holds of a parameter: all of it, or its ZeRO-3 partition."""
    partition: Tensor | None = getattr(parameter, "ds_tensor", None)
    return (parameter if partition is None else partition).detach()


def is_partitioned(model: nn.Module) -> bool:
    """Whether ZeRO-3 cut the model's parameters into partitions, so that all processes must compute in step."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def is_matrix(parameter: nn.Parameter) -> bool:
    """Whether a parameter has two dimensions or more; what is left of a partitioned one does not show it."""
    return len(getattr(parameter, "ds_shape", parameter.shape)) > 1


@contextmanager
def gathered(parameters: Iterable[Tensor]) -> Iterator[None]:
    """The block sees these parameters whole, also where ZeRO-3 cut them into partitions; called by all processes."""
    partitioned = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    with deepspeed.zero.GatheredParameters(partitioned, enabled=bool(partitioned)):
        yield


@contextmanager
def whole_while_used(model: nn.Module) -> Iterator[None]:
    """A partitioned model computes in the block without an engine: each module has whole weights while it is called.

    All processes must compute the same.
    """
    handles: list[RemovableHandle] = []
    used: dict[nn.Module, ExitStack] = {}

    def gather(module: nn.Module, _arguments: Any) -> None:
        used[module] = ExitStack()
        used[module].enter_context(gathered(module.parameters(recurse=False)))

    def release(module: nn.Module, _arguments: Any, _output: Any) -> None:
        used.pop(module).close()

    for module in model.modules():
        if any(hasattr(parameter, "ds_id") for parameter in module.parameters(recurse=False)):
            handles.append(module.register_forward_pre_hook(gather))
            handles.append(module.register_forward_hook(release, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def computing_in_fp32(model: nn.Module, device: torch.device) -> Iterator[None]:
    """In the block each module computes with copies of its weights, in fp32 and on a device, while it is called.

    So only one module's weights are there at a time. The weights themselves stay as and where they are.
    """
    handles: list[RemovableHandle] = []
    own: dict[nn.Module, tuple[dict[str, Any], dict[str, Any]]] = {}

    def replace(module: nn.Module, _arguments: Any) -> None:
        own[module] = dict(module._parameters), dict(module._buffers)
        for name, parameter in own[module][0].items():
            if parameter is not None:
                module._parameters[name] = parameter.detach().to(device, torch.float32)
        for name, buffer in own[module][1].items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)

    def restore(module: nn.Module, _arguments: Any, _output: Any) -> None:
        parameters, buffers = own.pop(module)
        module._parameters.update(parameters)
        module._buffers.update(buffers)

    for module in model.modules():
        if module._parameters or module._buffers:
            handles.append(module.register_forward_pre_hook(replace))  # after DeepSpeed's, which gathers partitions
            handles.append(module.register_forward_hook(restore, prepend=True, always_call=True))  # and before them
    try:
        with disable_input_dtype_casting(model):
            yield
    finally:
        for handle in handles:
            handle.remove()


def plain_weights(model: PreTrainedModel, keep: bool) -> dict[str, Tensor]:
    """The weights of a plain model, adapters added to them, gathered one by one; called by all processes.

    Args:
        model: Hugging Face model, as `add_lora` left it; it stays as it is.
        keep: whether this process is the one that needs them.

    Returns:
        Parameter and buffer names of the plain model -> weights, tied ones the same tensor: in host memory where they
        were gathered or added to, else the model's own. Those with adapters are in fp32, the others as they were
        trained. Empty unless `keep`.
    """
    weights: dict[str, Tensor] = {}
    copies: dict[int, Tensor] = {}
    layers = {id(plain_layer(layer).weight): layer for layer in adapted_layers(model).values()}
    for name, weight in model.state_dict(keep_vars=True).items():
        if is_adapter(name):
            continue
        layer = layers.get(id(weight))
        if id(weight) not in copies:
            with gathered([weight] if layer is None else layer.parameters()):
                copies[id(weight)] = _on_host(weight, layer) if keep else weight
        if keep:
            weights[name.replace("base_layer.", "")] = copies[id(weight)]
    return weights


def merged_adapters(model: PreTrainedModel, keep: bool) -> MergedAdapters:
    """The adapters that a model computes beside its weights, gathered; called by all processes.

    Args:
        model: Hugging Face model, as `add_lora` left it.
        keep: whether this process is the one that needs them.

    Returns:
        Linear modules of the plain model -> adapters, oldest first, in host memory. Empty unless `keep`.
    """
    adapters: MergedAdapters = {}
    for name, layer in adapted_layers(model).items():
        with gathered(layer.parameters()):
            if keep:
                adapters[name] = [_copied(change) for change in changes_of(layer)]
    return adapters


def with_inherited(model: PreTrainedModel, adapters: MergedAdapters) -> MergedAdapters:
    """All adapters in a model's delivered weights: those beside them, and in fp32 those that were merged before.

    A model in fp32 is loaded with the adapters of earlier stages merged. They are in the folder that it came from; an
    output layer's are left out where the model has another.

    Args:
        model: as it was loaded and trained.
        adapters: what `merged_adapters` gave.

    Raises:
        UserError: the folder's adapters are damaged.
    """
    if model.dtype != torch.float32:
        return adapters
    present = dict(model.named_modules())
    inherited = {name: own for name, own in read_merged(Path(model.name_or_path)).items() if name in present}
    return {name: [*inherited.get(name, []), *adapters.get(name, [])] for name in inherited | adapters}


def _copied(change: LowRank) -> LowRank:
    a, b = (matrix.detach().to("cpu", copy=True).contiguous() for matrix in (change.a, change.b))
    return LowRank(a, b, change.scale)


def adapter_weights(model: PreTrainedModel, keep: bool) -> dict[str, Tensor]:
    """The trained weights of a model with adapters, gathered one by one; called by all processes.

    Args:
        model: Hugging Face model, as `add_lora` left it.
        keep: whether this process is the one that needs them.

    Returns:
        The names that PEFT gives them in a file -> weights in host memory, as they stand beside the weights of the
        delivered model that training started from: a trained weight has the adapters of earlier stages added to it,
        in fp32. Empty unless `keep`.
    """
    weights = {}
    layers = {id(plain_layer(layer).weight): layer for layer in adapted_layers(model).values()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer = layers.get(id(parameter))
            with gathered([parameter] if layer is None else layer.parameters()):
                if keep:
                    plain = name.replace(".default.", ".")
                    whole = parameter.detach() if layer is None else merged_weight(layer)
                    weights[f"base_model.model.{plain}"] = whole.to("cpu", copy=True).contiguous()
    return weights


def _on_host(weight: Tensor, layer: nn.Module | None) -> Tensor:
    """A whole weight that outlives its gathering; with the adapters of its layer, where it has any."""
    if layer is not None:
        return merged_weight(layer).to("cpu").contiguous()
    return weight.detach().to("cpu", copy=True) if hasattr(weight, "ds_id") else weight.detach()
