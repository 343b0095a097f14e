"""LoRA adapters by PEFT, chosen by module name as in DeepSpeed-Chat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf.errors import UserError


def add_lora(model: PreTrainedModel, optimization: dict[str, Any], place: str) -> Any:
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
    rank, pattern = optimization["lora_dim"], optimization["lora_module_name"]
    if rank == 0:
        return None
    linear = linear_modules(model)
    targets = [name for name in linear if pattern in name]
    if not targets:
        examples = ", ".join(linear[:3])
        raise UserError(
            f"{place}.lora_module_name: {pattern!r} matches no linear module; they are named like {examples}"
        )
    alpha = optimization["lora_alpha"] or rank
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets, fan_in_fan_out=_is_conv(model, targets[0])
    )
    adapted = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        frozen = name.endswith("base_layer.weight") or (optimization["only_optimize_lora"] and "score" not in name)
        parameter.requires_grad_("lora_" in name or not frozen)
    return adapted


def linear_modules(model: PreTrainedModel) -> list[str]:
    """Names of the modules that can get an adapter."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]


@contextmanager
def merged_weights(model: PreTrainedModel, adapted: Any) -> Iterator[dict[str, Tensor] | None]:
    """The weights of a plain model, the adapters added to them for the block.

    Args:
        model: the model that `add_lora` changed.
        adapted: what `add_lora` returned.

    Yields:
        Parameter names of the plain model -> weights; None without adapters, where the model is plain already.
    """
    if adapted is None:
        yield None
        return
    adapted.merge_adapter()
    try:
        weights = model.state_dict()
        yield {name.replace("base_layer.", ""): value for name, value in weights.items() if "lora_" not in name}
    finally:
        adapted.unmerge_adapter()


def _is_conv(model: PreTrainedModel, name: str) -> bool:
    return isinstance(model.get_submodule(name), Conv1D)
