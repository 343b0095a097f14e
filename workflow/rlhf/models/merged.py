"""Adapters that are merged into a delivered model, and computed beside its weights in half precision.

A merged weight is W = base + sum of scale x B A. Rounded to half precision, W loses every change below half a unit in
the last place of the base, which is most of what LoRA trains. So a model folder has its adapted weights in fp32, and
the matrices A and B in `merged_adapters/`. In fp32 a model is loaded as it stands there; in half precision its adapted
weights are taken apart again: the base is rounded, which gives back what it was, and A and B stay beside it, frozen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf.errors import UserError, first_line

FOLDER = "merged_adapters"  # of its own, because other loaders read every safetensors file beside config.json
FILE = f"{FOLDER}/adapters.safetensors"
PREFIX = "merged_"  # of the parameters that hold the matrices
SCALES = "scales"


@dataclass(frozen=True)
class LowRank:
    """A change of a linear layer's weight: scale x b a.

    Args:
        a: [rank, in].
        b: [out, rank].
        scale: factor.
    """

    a: Tensor
    b: Tensor
    scale: float

    def delta(self) -> Tensor:
        """The change itself, [out, in] float32."""
        return (self.b.detach().float() @ self.a.detach().float()) * self.scale


MergedAdapters = dict[str, list[LowRank]]  # name of a linear module -> changes of its weight, oldest first


class AdaptedLayer(nn.Module):
    """A linear layer with merged adapters beside its weight; they are parameters, but frozen.

    Computed as PEFT computes an adapter, in the same order, so that the results are equal to the last bit.
    """

    scales: tuple[float, ...]

    @property
    def changes(self) -> list[LowRank]:
        """The adapters, oldest first."""
        pairs = [[getattr(self, f"{PREFIX}{side}_{number}") for side in "ab"] for number in range(len(self.scales))]
        return [LowRank(a, b, scale) for (a, b), scale in zip(pairs, self.scales, strict=True)]

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        output: Tensor = super().forward(hidden)
        for change in self.changes:
            output = output + F.linear(F.linear(hidden, change.a), change.b) * change.scale
        return output


class AdaptedLinear(AdaptedLayer, nn.Linear):
    """`nn.Linear` with merged adapters."""


class AdaptedConv1D(AdaptedLayer, Conv1D):  # type: ignore[misc]  # its package has no types
    """The transposed linear layer of GPT-2 with merged adapters."""


def keep_beside(layer: nn.Module, changes: list[LowRank]) -> None:
    """Give a linear layer merged adapters, in its weight's dtype and on its device; changed in place.

    Its weight and bias stay the same parameters, because they may be partitioned already.
    """
    assert isinstance(layer, nn.Linear | Conv1D)
    weight = layer.weight
    layer.__class__ = AdaptedLinear if isinstance(layer, nn.Linear) else AdaptedConv1D
    layer.scales = tuple(change.scale for change in changes)
    for number, change in enumerate(changes):
        for side, matrix in (("a", change.a), ("b", change.b)):
            own = matrix.detach().to(device=weight.device, dtype=weight.dtype, copy=True)
            layer.register_parameter(f"{PREFIX}{side}_{number}", nn.Parameter(own, requires_grad=False))


def weight_change(changes: Iterable[LowRank], transposed: bool) -> Tensor:
    """What adapters add to a weight, in fp32: [out, in], or [in, out] where the layer keeps it so (GPT-2)."""
    total = sum(change.delta() for change in changes)
    assert isinstance(total, Tensor)
    return total.T if transposed else total


def keeps_transposed(layer: nn.Module) -> bool:
    """Whether a linear layer keeps its weight as [in, out]."""
    return isinstance(layer, Conv1D)


def half_precision_error(weights: dict[str, Tensor], adapters: MergedAdapters, dtype: torch.dtype) -> float | None:
    """How far a loader that rounds merged weights is off: norm of the rounding over norm of the change by adapters.

    Args:
        weights: names of the plain model -> merged weights in fp32.
        adapters: those merged into them.
        dtype: half precision.

    Returns:
        The quotient over all adapted weights together; None where no adapter changes anything.
    """
    rounding = change = 0.0
    for name, changes in adapters.items():
        weight = weights[f"{name}.weight"].float()
        rounding += float((weight.to(dtype).float() - weight).double().square().sum())
        change += _squared_norm(changes)
    return (rounding / change) ** 0.5 if change else None


def _squared_norm(changes: list[LowRank]) -> float:
    """|B A|^2 = trace(B'B AA'), without the product, which is as large as the weight."""
    a = torch.cat([change.a.detach().double().cpu() for change in changes])
    b = torch.cat([change.scale * change.b.detach().double().cpu() for change in changes], dim=1)
    return max(0.0, float(((b.T @ b) * (a @ a.T)).sum()))


def write_merged(folder: Path, adapters: MergedAdapters) -> None:
    """Write `merged_adapters/` into a model folder that is being made.

    Args:
        folder: of the model.
        adapters: whole, in host memory.
    """
    tensors: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    for name, changes in adapters.items():
        for number, change in enumerate(changes):
            scales[f"{name}.{number}"] = change.scale
            tensors |= {f"{name}.{number}.a": change.a.contiguous(), f"{name}.{number}.b": change.b.contiguous()}
    (folder / FOLDER).mkdir()
    # One key: safetensors keeps metadata in a hash map, so that several would be in another order in each file.
    save_file(tensors, folder / FILE, metadata={SCALES: json.dumps(scales, sort_keys=True)})


def read_merged(folder: Path) -> MergedAdapters:
    """The merged adapters of a model folder, from the pages of its file; empty where it has none.

    Raises:
        UserError: the file is damaged.
    """
    if not (folder / FILE).exists():
        return {}
    adapters: MergedAdapters = {}
    try:
        with safe_open(folder / FILE, framework="pt") as file:
            for key, scale in sorted(json.loads(file.metadata()[SCALES]).items(), key=_place):
                change = LowRank(file.get_tensor(f"{key}.a"), file.get_tensor(f"{key}.b"), scale)
                adapters.setdefault(_place((key, scale))[0], []).append(change)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / FILE}: damaged ({first_line(error)}); remove the folder and run snakemake again"
        ) from None
    return adapters


def _place(entry: tuple[str, float]) -> tuple[str, int]:
    """(module, number of the change) of a key."""
    module, _, number = entry[0].rpartition(".")
    return module, int(number)


def adapted_layer(model: PreTrainedModel, name: str, changes: list[LowRank], folder: Path) -> nn.Module:
    """The linear layer of a model that merged adapters belong to.

    Raises:
        UserError: there is none, or it has another shape.
    """
    layer: nn.Module | None = dict(model.named_modules()).get(name)
    if layer is None or not fits(layer, changes):
        raise UserError(
            f"{folder / FILE}: {name} is no linear layer of such a shape in this model; the folder is damaged"
        )
    return layer


def fits(layer: nn.Module, changes: list[LowRank]) -> bool:
    """Whether adapters have the shape of a linear layer's weight, which may be partitioned."""
    if not isinstance(layer, nn.Linear | Conv1D):
        return False
    shape = tuple(getattr(layer.weight, "ds_shape", layer.weight.shape))
    own = shape[::-1] if keeps_transposed(layer) else shape
    return all((change.b.shape[0], change.a.shape[1]) == own for change in changes)
