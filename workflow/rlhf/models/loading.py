"""Policies and reward models from plain Hugging Face folders; nothing missing is ever loaded in silence.

In half precision, weights into which adapters were merged are taken apart again, as `rlhf.models.merged` explains.
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
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
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config
from transformers.modeling_utils import load_state_dict
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from rlhf.causes import FOREIGN, cause
from rlhf.errors import UserError, first_line
from rlhf.files import read_json
from rlhf.models.merged import MergedAdapters, adapted_layer, keep_beside, keeps_transposed, read_merged, weight_change
from rlhf.runtime.logging import get_logger

logger = get_logger(__name__)

# Of folders that stages write: what is damaged is made again.
_MADE = "`rlhf-verify --discard` finds damaged stages, and the next snakemake makes them again"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a cached or trained model folder.

    Raises:
        UserError: the folder has none.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except FOREIGN as error:
        raise UserError(f"{folder}: no tokenizer can be loaded: {cause(error)}") from None


def load_policy(
    folder: Path, dtype: str, dropout: float | None = None, zero3: dict[str, Any] | None = None
) -> PreTrainedModel:
    """A causal language model with every weight from the folder.

    Args:
        folder: Hugging Face folder.
        dtype: `fp32`, `bf16` or `fp16`.
        dropout: overrides every dropout of the model; None keeps its own.
        zero3: DeepSpeed configuration with ZeRO-3: each process keeps its partition of each weight, and no process the
            whole model; called by all processes. None: whole.

    Raises:
        UserError: weights are missing or left over.
    """
    config = load_config(folder, dropout)
    model, loading = _from_folder(AutoModelForCausalLM, folder, config, dtype, only_layout=zero3 is not None)
    _require_all_weights(folder, loading, missing=set(), unexpected=set())
    model = _completed(model, folder, config, zero3, kept_apart(folder, dtype))
    # A checkpoint's own sampling defaults (top-k, repetition penalty) would make the sampled distribution differ from
    # the softmax that training differentiates.
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    return model


def load_reward_backbone(
    folder: Path, dtype: str, seed: int, dropout: float | None = None, zero3: dict[str, Any] | None = None
) -> PreTrainedModel:
    """A reward model with a fresh score head on a pretrained language model.

    The head is drawn from N(0, 1/sqrt(d + 1)), d its input width (Huang et al. 2024, "The N+ Implementation Details
    of RLHF with PPO", after Stiennon et al. 2020).

    Args:
        folder: Hugging Face folder of a causal language model.
        dtype: `fp32`, `bf16` or `fp16`.
        seed: seed of the head.
        dropout: overrides every dropout of the model; None keeps its own.
        zero3: as in `load_policy`.

    Raises:
        UserError: the family has no `score` head, or weights of the backbone are missing.
    """
    config = load_config(folder, dropout)
    config.num_labels = 1
    model, loading = _classifier(folder, config, dtype, only_layout=zero3 is not None)
    # The output layer stands beside the body, by a name of the family's own: lm_head, embed_out, with or without bias.
    output_layer = {name for name in loading["unexpected_keys"] if not name.startswith(f"{model.base_model_prefix}.")}
    logger.info("left out, because a reward model has another head: %s", ", ".join(sorted(output_layer)) or "nothing")
    _require_all_weights(folder, loading, missing={"score.weight"}, unexpected=output_layer)
    generator = torch.Generator().manual_seed(seed)
    width = model.score.in_features
    head = torch.randn(1, width, generator=generator) / (width + 1) ** 0.5
    adapters = {
        name: changes for name, changes in kept_apart(folder, dtype).items() if f"{name}.weight" not in output_layer
    }
    return _completed(model, folder, config, zero3, adapters, {"score.weight": head})


def load_reward(
    folder: Path, dtype: str, dropout: float | None = None, zero3: dict[str, Any] | None = None
) -> PreTrainedModel:
    """A trained reward model with every weight from the folder.

    Args:
        folder: Hugging Face folder of a trained reward model.
        dtype: `fp32`, `bf16` or `fp16`.
        dropout: overrides every dropout of the model; None keeps its own.
        zero3: as in `load_policy`.

    Raises:
        UserError: weights are missing or left over, or the folder stores no score normalisation.
    """
    config = load_config(folder, dropout)
    if not hasattr(config, "reward_mean") or not hasattr(config, "reward_std"):
        raise UserError(
            f"{folder}/config.json: reward_mean and reward_std are missing; is this a trained reward model?"
        )
    model, loading = _classifier(folder, config, dtype, only_layout=zero3 is not None)
    _require_all_weights(folder, loading, missing=set(), unexpected=set())
    return _completed(model, folder, config, zero3, kept_apart(folder, dtype))


def kept_apart(folder: Path, dtype: str) -> MergedAdapters:
    """The adapters that a model loaded from a folder computes beside its weights: in half precision, the merged ones.

    Raises:
        UserError: their file is damaged.
    """
    return {} if dtype == "fp32" else read_merged(folder)


def accepts(model: nn.Module, argument: str) -> bool:
    """Whether the model's forward takes an argument."""
    return argument in inspect.signature(model.forward).parameters


def load_config(folder: Path, dropout: float | None = None) -> PreTrainedConfig:
    """The configuration of a model folder.

    Args:
        folder: Hugging Face folder.
        dropout: overrides every dropout of the model; None keeps its own.

    Raises:
        UserError: the folder has none.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except FOREIGN as error:
        raise UserError(f"{folder}: no model folder: {cause(error)}") from None
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


def _classifier(
    folder: Path, config: PreTrainedConfig, dtype: str, only_layout: bool
) -> tuple[PreTrainedModel, dict[str, Any]]:
    try:
        model, loading = _from_folder(AutoModelForSequenceClassification, folder, config, dtype, only_layout)
    except ValueError as error:
        raise UserError(f"{folder}: {config.model_type} cannot be a reward model ({first_line(error)})") from None
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise UserError(
            f"{folder}: {config.model_type} has no linear `score` head; choose a decoder family such as OPT"
        )
    return model, loading


def _from_folder(
    auto_class: Any, folder: Path, config: PreTrainedConfig, dtype: str, only_layout: bool
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model and what transformers says about its weights; a file that cannot be read is a `UserError`.

    With `only_layout` the weights have names, shapes and types, but no storage, and of the files only the headers are
    read.
    """
    source: Any = folder
    options: dict[str, Any] = {
        "config": config,
        "dtype": DTYPES[dtype],
        "use_safetensors": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # they are reported, and refused by the caller
    }
    try:
        if only_layout:
            with torch.device("meta"):
                auto_class, source = type(auto_class.from_config(config, dtype=DTYPES[dtype])), None
            options |= {"state_dict": _stored(folder, "meta"), "device_map": {"": "meta"}}
        # A missing head is drawn, and replaced: not from the stage's generator, or partitions would change the run.
        with torch.random.fork_rng(devices=[]):
            loaded: tuple[Any, dict[str, Any]] = auto_class.from_pretrained(source, local_files_only=True, **options)
            return loaded
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: no readable weights: {cause(error)}. {_MADE}") from None


def _completed(
    model: PreTrainedModel,
    folder: Path,
    config: PreTrainedConfig,
    zero3: dict[str, Any] | None,
    adapters: MergedAdapters,
    fresh: dict[str, Tensor] | None = None,
) -> PreTrainedModel:
    """A model with its merged adapters kept apart, and partitioned where that is asked for.

    Args:
        model: with the folder's weights; for ZeRO-3, a layout without storage.
        folder: of the model.
        config: of the model.
        zero3: as in `load_policy`.
        adapters: to keep apart.
        fresh: name -> weight that the folder lacks.
    """
    bases = _bases(model, folder, adapters)
    if zero3 is not None:
        first = torch.distributed.get_rank() == 0
        model = _partitioned(model, folder, config, zero3, (dict(bases) if first else {}) | (fresh or {}))
    else:
        with torch.no_grad():
            for name, value in itertools.chain(bases, (fresh or {}).items()):
                model.get_parameter(name).copy_(value)
    for name, changes in adapters.items():
        keep_beside(model.get_submodule(name), changes)
    return model


def _bases(model: PreTrainedModel, folder: Path, adapters: MergedAdapters) -> Iterator[tuple[str, Tensor]]:
    """Name and value of each weight as it was before adapters were merged into it, in its layer's precision.

    The difference in fp32 is off by 2^-24 of the merged weight: rounding gives the half-precision base back.

    Raises:
        UserError: the folder's adapters or merged weights are not what a stage wrote.
    """
    stored = _stored(folder, "cpu") if adapters else {}
    for name, changes in adapters.items():
        layer: Any = adapted_layer(model, name, changes, folder)
        merged = stored.get(f"{name}.weight")
        if merged is None or merged.dtype != torch.float32:
            raise UserError(
                f"{folder}: {name}.weight is not there in fp32, as weights with merged adapters are; the folder was "
                "converted. Use it as the stage wrote it; or remove its merged_adapters/, which rounds the weights"
            )
        yield f"{name}.weight", (merged - weight_change(changes, keeps_transposed(layer))).to(layer.weight.dtype)


def _partitioned(
    layout: PreTrainedModel, folder: Path, config: PreTrainedConfig, zero3: dict[str, Any], other: dict[str, Tensor]
) -> PreTrainedModel:
    """The model of a layout with its weights partitioned over all processes from the start.

    Transformers reports neither left over weights nor other shapes here, and draws missing ones on the first process
    alone; so the layout has been compared with the folder, and `other` has what the folder lacks or has otherwise.
    """
    # The first process spreads the values (from the file's pages); the others need names and shapes.
    weights = _stored(folder, "cpu" if torch.distributed.get_rank() == 0 else "meta")
    with _partitioning(zero3):
        model = type(layout).from_pretrained(
            None, config=config, dtype=layout.dtype, state_dict=weights | other, local_files_only=True
        )
    model.name_or_path = model.config.name_or_path = str(folder)
    return model


@contextmanager
def _partitioning(zero3: dict[str, Any]) -> Iterator[None]:
    """Transformers partitions what it loads in the block: it looks for a live object, kept by weak reference."""
    alive = HfDeepSpeedConfig(copy.deepcopy(zero3))
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del alive


def _stored(folder: Path, place: str) -> dict[str, Tensor]:
    """The weights in a folder's files: `cpu`: mapped into memory; `meta`: names, shapes and types alone."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    files = set(read_json(index)["weight_map"].values()) if index.exists() else {SAFE_WEIGHTS_NAME}
    return {name: tensor for file in sorted(files) for name, tensor in load_state_dict(folder / file, place).items()}


def _require_all_weights(folder: Path, loading: dict[str, Any], missing: set[str], unexpected: set[str]) -> None:
    lacking = set(loading["missing_keys"]) - missing
    extra = set(loading["unexpected_keys"]) - unexpected
    mismatched = {str(item[0]) for item in loading["mismatched_keys"]}
    for problem, names in (("missing", lacking), ("unexpected", extra), ("of another shape", mismatched)):
        if names:
            some = ", ".join(sorted(names)[:5])
            raise UserError(f"{folder}: {len(names)} weight(s) {problem}, for example {some}; the folder is damaged")
