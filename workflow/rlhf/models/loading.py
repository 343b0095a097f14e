"""Policies and reward models from plain Hugging Face folders; nothing missing is ever loaded in silence."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf.errors import UserError
from rlhf.runtime.logging import get_logger

logger = get_logger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a cached or trained model folder.

    Raises:
        UserError: the folder has none.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no tokenizer can be loaded ({str(error).splitlines()[0]})") from None


def load_policy(folder: Path, dtype: str, dropout: float | None = None) -> PreTrainedModel:
    """A causal language model with every weight from the folder.

    Args:
        folder: Hugging Face folder.
        dtype: `fp32`, `bf16` or `fp16`.
        dropout: overrides every dropout of the model; None keeps its own.

    Raises:
        UserError: weights are missing or left over.
    """
    config = _config(folder, dropout)
    model, loading = _from_folder(AutoModelForCausalLM, folder, config, dtype)
    _require_all_weights(folder, loading, missing=set(), unexpected=set())
    # A checkpoint's own sampling defaults (top-k, repetition penalty) would make the sampled distribution differ from
    # the softmax that training differentiates.
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    return model


def load_reward_backbone(folder: Path, dtype: str, seed: int, dropout: float | None = None) -> PreTrainedModel:
    """A reward model with a fresh score head on a pretrained language model.

    The head is drawn from N(0, 1/sqrt(d + 1)), d its input width (Huang et al. 2024, "The N+ Implementation Details
    of RLHF with PPO", after Stiennon et al. 2020).

    Args:
        folder: Hugging Face folder of a causal language model.
        dtype: `fp32`, `bf16` or `fp16`.
        seed: seed of the head.
        dropout: overrides every dropout of the model; None keeps its own.

    Raises:
        UserError: the family has no `score` head, or weights of the backbone are missing.
    """
    config = _config(folder, dropout)
    config.num_labels = 1
    model, loading = _classifier(folder, config, dtype)
    # The output layer stands beside the body, by a name of the family's own: lm_head, embed_out, with or without bias.
    output_layer = {name for name in loading["unexpected_keys"] if not name.startswith(f"{model.base_model_prefix}.")}
    logger.info("left out, because a reward model has another head: %s", ", ".join(sorted(output_layer)) or "nothing")
    _require_all_weights(folder, loading, missing={"score.weight"}, unexpected=output_layer)
    generator = torch.Generator().manual_seed(seed)
    width = model.score.in_features
    with torch.no_grad():
        head = torch.randn(1, width, generator=generator) / (width + 1) ** 0.5
        model.score.weight.copy_(head)
    return model


def load_reward(folder: Path, dtype: str, dropout: float | None = None) -> PreTrainedModel:
    """A trained reward model with every weight from the folder.

    Raises:
        UserError: weights are missing or left over, or the folder stores no score normalisation.
    """
    config = _config(folder, dropout)
    if not hasattr(config, "reward_mean") or not hasattr(config, "reward_std"):
        raise UserError(
            f"{folder}/config.json: reward_mean and reward_std are missing; is this a trained reward model?"
        )
    model, loading = _classifier(folder, config, dtype)
    _require_all_weights(folder, loading, missing=set(), unexpected=set())
    return model


def accepts(model: nn.Module, argument: str) -> bool:
    """Whether the model's forward takes an argument."""
    return argument in inspect.signature(model.forward).parameters


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions counted from the first valid token; 0 on padding. [batch, seq] int64 -> [batch, seq] int64."""
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)


def _config(folder: Path, dropout: float | None) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no model folder ({str(error).splitlines()[0]})") from None
    if dropout is not None:
        for name in dropout_keys(config):
            setattr(config, name, dropout)
    return config


def dropout_keys(config: PreTrainedConfig) -> list[str]:
    """Names of a configuration's dropout rates (`attention_dropout`, `resid_pdrop`, ...)."""
    entries: dict[str, Any] = config.to_dict()
    return [
        name
        for name, value in entries.items()
        if ("dropout" in name or name.endswith(("pdrop", "layerdrop")))
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    ]


def _classifier(folder: Path, config: PreTrainedConfig, dtype: str) -> tuple[PreTrainedModel, dict[str, Any]]:
    try:
        model, loading = _from_folder(AutoModelForSequenceClassification, folder, config, dtype)
    except ValueError as error:
        raise UserError(
            f"{folder}: {config.model_type} cannot be a reward model ({str(error).splitlines()[0]})"
        ) from None
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise UserError(
            f"{folder}: {config.model_type} has no linear `score` head; choose a decoder family such as OPT"
        )
    return model, loading


def _from_folder(
    auto_class: Any, folder: Path, config: PreTrainedConfig, dtype: str
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model and what transformers says about its weights; a file that cannot be read is a `UserError`."""
    try:
        return auto_class.from_pretrained(
            folder,
            config=config,
            dtype=DTYPES[dtype],
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported, and refused by the caller
        )
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder}: no readable weights ({str(error).splitlines()[0]}); remove the folder and run snakemake again"
        ) from None


def _require_all_weights(folder: Path, loading: dict[str, Any], missing: set[str], unexpected: set[str]) -> None:
    lacking = set(loading["missing_keys"]) - missing
    extra = set(loading["unexpected_keys"]) - unexpected
    mismatched = {str(item[0]) for item in loading["mismatched_keys"]}
    for problem, names in (("missing", lacking), ("unexpected", extra), ("of another shape", mismatched)):
        if names:
            some = ", ".join(sorted(names)[:5])
            raise UserError(f"{folder}: {len(names)} weight(s) {problem}, for example {some}; the folder is damaged")
