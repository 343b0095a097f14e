"""LoRA adapters by PEFT, chosen by module name as in DeepSpeed-Chat."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf.config.stages import Optimization
from rlhf.errors import UserError
from rlhf.models.merged import PREFIX, AdaptedLayer, LowRank, keeps_transposed, weight_change


def add_lora(model: PreTrainedModel, optimization: Optimization, place: str) -> Any:
    """Put adapters on the linear modules whose name contains `lora_module_name`; the model is changed in place.

    The adapted weights are frozen. Everything else stays trainable, unless `only_optimize_lora`: then only the
    adapters train, and a score head, which would otherwise stay random.

    Args:
        model: language model or reward model.
        optimization: `Optimization` settings.
        place: configuration path of these settings, for messages.

    Returns:
        The PEFT wrapper, which can merge the adapters; None where `lora_dim` is 0.

    Raises:
        UserError: the pattern matches no linear module, or one whose weight is the embedding's too.
    """
    rank, pattern = optimization.lora_dim, optimization.lora_module_name
    if rank == 0:
        return None
    linear = linear_modules(model)
    targets = [name for name in linear if pattern in name]
    if not targets:
        examples = ", ".join(linear[:3])
        raise UserError(
            f"{place}.lora_module_name: {pattern!r} matches no linear module; they are named like {examples}"
        )
    _require_own_weights(model, targets, f"{place}.lora_module_name: {pattern!r}")
    alpha = optimization.lora_alpha or rank
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets, fan_in_fan_out=_is_conv(model, targets[0])
    )
    # In fp32 beside half precision, adapters could not join weights that ZeRO-3 has partitioned; DeepSpeed casts all.
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        frozen = name.endswith("base_layer.weight") or (optimization.only_optimize_lora and "score" not in name)
        parameter.requires_grad_("lora_" in name or not (frozen or is_merged(name)))
    return adapted


def linear_modules(model: PreTrainedModel) -> list[str]:
    """Names of the modules that can get an adapter."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with adapters of this stage or of earlier ones, by the names they have in the plain model."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) or (isinstance(module, AdaptedLayer) and not name.endswith(".base_layer"))
    }


def plain_layer(layer: Any) -> Any:
    """An adapted layer without the adapter of this stage."""
    return layer.get_base_layer() if isinstance(layer, LoraLayer) else layer


def changes_of(layer: Any) -> list[LowRank]:
    """The adapters of an adapted layer, those of earlier stages first; their matrices are the layer's own."""
    plain = plain_layer(layer)
    changes = plain.changes if isinstance(plain, AdaptedLayer) else []
    if not isinstance(layer, LoraLayer):
        return changes
    (adapter,) = layer.active_adapters
    own = LowRank(layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.scaling[adapter])
    return [*changes, own]


def merged_weight(layer: Any) -> Tensor:
    """The weight of an adapted layer with its adapters added, in fp32; the layer is left as it is."""
    plain = plain_layer(layer)
    weight: Tensor = plain.weight.detach().float()
    return weight + weight_change(changes_of(layer), keeps_transposed(plain))


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter, of this stage or an earlier one, and not to the plain model."""
    return "lora_" in name or is_merged(name)


def is_merged(name: str) -> bool:
    """Whether a parameter belongs to an adapter of an earlier stage."""
    return name.rpartition(".")[2].startswith(PREFIX)


def _require_own_weights(model: PreTrainedModel, targets: list[str], key: str) -> None:
    """Refuse to adapt an output layer that is the embedding: merged, the adapter would change the embedding too."""
    embedding = model.get_input_embeddings().weight
    shared = [name for name in targets if model.get_submodule(name).weight is embedding]
    if shared:
        raise UserError(
            f"{key} matches {shared[0]}, whose weight is the input embedding's too, so that an adapter of it cannot be "
            "merged; name layers only, such as the attention's"
        )


def _is_conv(model: PreTrainedModel, name: str) -> bool:
    return isinstance(model.get_submodule(name), Conv1D)
