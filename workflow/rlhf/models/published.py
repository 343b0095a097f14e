"""A published model by the headers of its weight files: its class without storage, and what becomes of each tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from rlhf.errors import UserError
from rlhf.models.folders import of_another_head
from rlhf.models.weights import WeightFiles, read_weights
from rlhf.runtime.logging import get_logger

logger = get_logger(__name__)


@dataclass
class PublishedModel:
    """A model whose weights are still in their files.

    Attributes:
        folder: with the files.
        weights: those that count.
        model: the model without storage; what is changed of it is not in the files.
        places: name of a tensor in the files -> file.
        tensors: name of a tensor in the files -> it without storage.
        names: name of a tensor in the files -> name in the model.
        dropped: names in the files of what the model computes itself or has twice.
    """

    folder: Path
    weights: WeightFiles
    model: PreTrainedModel
    places: dict[str, str]
    tensors: dict[str, Tensor]
    names: dict[str, str]
    dropped: set[str] = field(default_factory=set)

    @property
    def precision(self) -> dict[str, int]:
        """Type -> numbers of the model that are stored in it, the most frequent first."""
        count: Counter[str] = Counter()
        own = self.model.state_dict()
        for key, tensor in self.tensors.items():
            if key not in self.dropped and self.names[key] in own:
                count[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
        return dict(count.most_common())

    @property
    def grown(self) -> dict[str, int]:
        """Name of a tensor in the files -> rows that the model has more: its vocabulary has grown."""
        own, grown = self.model.state_dict(), {}
        for key, tensor in self.tensors.items():
            there = own.get(self.names[key])
            if key not in self.dropped and there is not None and there.shape != tensor.shape:
                grown[key] = there.shape[0] - tensor.shape[0]
        return grown


def read_published(folder: Path, weights: WeightFiles, trust_remote_code: bool, key: str, model: str) -> PublishedModel:
    """Read the headers of a model's weight files, and refuse what would be another model when it is loaded.

    Args:
        folder: with the model's files.
        weights: those that count.
        trust_remote_code: whether code in the folder may be run.
        key: configuration key that names the model, for messages.
        model: what it is called there.

    Raises:
        UserError: a file cannot be read, weights are missing or of another shape, or would be dropped.
    """
    name, unusable = f"{key}: {model!r}", f"{key}: no usable model in {model!r}"
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    places, tensors = {}, {}
    for file in weights.files:
        for key, tensor in read_weights(folder / file, "meta", unusable).items():
            places[key], tensors[key] = file, tensor
    layout = _without_storage(config, trust_remote_code)
    names = _names_in_model(layout, tensors)
    dropped = _second_copies(layout, folder, places, names, name)
    if dropped is None:  # they are no copies
        config.get_text_config().tie_word_embeddings = config.tie_word_embeddings = False
        layout, dropped = _without_storage(config, trust_remote_code), set()
    kept = {key: tensor for key, tensor in tensors.items() if key not in dropped}
    published = PublishedModel(folder, weights, layout, places, tensors, names, dropped)
    dtype = next((getattr(torch, one) for one in published.precision), torch.float32)
    loaded, loading = type(layout).from_pretrained(
        None,
        config=config,
        state_dict=kept,
        device_map={"": "meta"},
        dtype=dtype if dtype.is_floating_point else torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused below
        local_files_only=True,
    )
    _require_all_parts(loaded, loading, name)
    loaded.config.architectures = [type(loaded).__name__]
    # Its sampling defaults are not ours, and transformers refuses to save inconsistent ones.
    loaded.generation_config = GenerationConfig()
    published.model = loaded
    published.dropped |= {key for key in kept if names[key] in loading["unexpected_keys"]}
    return published


def _without_storage(config: Any, trust_remote_code: bool) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return model


def _names_in_model(model: PreTrainedModel, keys: Mapping[str, Tensor]) -> dict[str, str]:
    """Name of each tensor in the files -> its name in the model, by the rules with which transformers loads them."""
    mapping, own = get_model_conversion_mapping(model), model.state_dict()
    renamings = [rule for rule in mapping if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in mapping if isinstance(rule, WeightConverter)]
    names = {}
    for key in keys:
        name, _ = rename_source_key(key, renamings, converters, model.base_model_prefix, own)
        if name not in own and key in own:
            name = key
        names[key] = name
    return names


def _second_copies(
    model: PreTrainedModel, folder: Path, places: dict[str, str], names: dict[str, str], model_name: str
) -> set[str] | None:
    """Names in the files of tied weights that are there under both names; None where they differ, and so are not tied.

    A pickle has both, and a loader that does not look at the values would count the output layer twice.
    """
    keys = {name: key for key, name in names.items()}
    copies = set()
    for target, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if target not in keys or source not in keys:
            continue
        one, other = (
            read_weights(folder / places[keys[name]], "cpu", model_name)[keys[name]] for name in (target, source)
        )
        if not torch.equal(one, other):
            logger.warning(
                "%s: %s and %s are different, though its configuration ties them; both are kept",
                model_name,
                keys[target],
                keys[source],
            )
            return None
        copies.add(keys[target])
    return copies


def _require_all_parts(model: PreTrainedModel, loading: dict[str, Any], name: str) -> None:
    """Refuse a model that is read with other parts than it was published with.

    Raises:
        UserError: weights are missing, of another shape, or would be dropped.
    """
    lacking = {*loading["missing_keys"], *(str(item[0]) for item in loading["mismatched_keys"])}
    dropped = {key for key in loading["unexpected_keys"] if _last_two(key) not in _computed(model)}
    architectures = model.config.architectures or []
    other = of_another_head(dropped, architectures) if lacking or dropped else None
    if other:
        raise UserError(
            f"{name} would lose its head: {other}; training starts from a language model: give the one that it was "
            "made from"
        )
    if lacking:
        raise UserError(f"{name} lacks weights of a causal language model: {', '.join(sorted(lacking)[:5])}")
    if dropped:
        raise UserError(
            f"{name} has weights that {type(model).__name__} has no place for, and that would be dropped: "
            f"{', '.join(sorted(dropped)[:5])}; if they are not needed, load it with transformers and save it again"
        )


def _computed(model: PreTrainedModel) -> set[str]:
    """Ends of the names of tensors that the model computes by itself, and that old files hold: masks, frequencies."""
    return {_last_two(name) for name, _ in model.named_buffers()}


def _last_two(name: str) -> str:
    return ".".join(name.split(".")[-2:])
