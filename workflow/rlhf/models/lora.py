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
        UserError: the pattern matches no linear module.
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
    alpha = optimization.lora_alpha or rank
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets, fan_in_fan_out=_is_conv(model, targets[0])
    )
    # In fp32 beside half precision, adapters could not join weights that ZeRO-3 has partitioned; DeepSpeed casts all.
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        frozen = name.endswith("base_layer.weight") or (optimization.only_optimize_lora and "score" not in name)
        parameter.requires_grad_("lora_" in name or not frozen)
    return adapted


def linear_modules(model: PreTrainedModel) -> list[str]:
    """Names of the modules that can get an adapter."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]


def merged_weight(layer: LoraLayer) -> Tensor:
    """The weight of an adapted layer with its adapter added, in the weight's dtype; the layer is left as it is."""
    weight = layer.get_base_layer().weight.detach()
    (adapter,) = layer.active_adapters
    return (weight + layer.get_delta_weight(adapter).detach()).to(weight.dtype)


def _is_conv(model: PreTrainedModel, name: str) -> bool:
    return isinstance(model.get_submodule(name), Conv1D)
