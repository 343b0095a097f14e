"""The model cache: a plain Hugging Face folder from a hub, a local folder or an architecture."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.file_download import REGEX_COMMIT_HASH
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME

from rlhf.causes import FOREIGN, cause
from rlhf.config.requirements import Requirement, require
from rlhf.config.sources import ModelSettings, ModelSource
from rlhf.errors import UserError, first_line
from rlhf.files import sha256_tree, write_json
from rlhf.models.folders import (
    ADAPTER,
    adapter_error,
    indexed,
    of_another_head,
    published_file,
    require_model_folder,
)
from rlhf.models.loading import load_tokenizer
from rlhf.models.lora import linear_modules
from rlhf.models.merged import FILE, MergedAdapters, fits, read_merged, write_merged
from rlhf.models.tokenizers import changed_rules, load_as_published, settle_special_tokens, train_tokenizer
from rlhf.records.manifest import MANIFEST, ModelManifest
from rlhf.runtime.folders import atomic_directory
from rlhf.runtime.logging import get_logger
from rlhf.runtime.seeds import seed_everything

logger = get_logger(__name__)


def cache_model(
    settings: ModelSettings,
    output: Path,
    place: str,
    requirements: Iterable[Requirement] = (),
    texts: Iterable[str] | None = None,
) -> None:
    """Write `model/` (weights as safetensors, tokenizer, configuration) and `manifest.json` into `output`.

    Args:
        settings: where the model comes from.
        output: resources/models/<id>/; appears whole or not at all.
        place: configuration path of the model, for messages.
        requirements: what experiments ask of the model.
        texts: for `source: scratch`, the texts its tokenizer is trained on.

    Raises:
        UserError: the source cannot be read, has no tokenizer, lacks weights, the architecture is unknown, or a
            requirement is not met.
    """
    if settings.source == "scratch":
        model, tokenizer = _from_scratch(settings, texts or (), place)
    else:
        model, tokenizer = _from_source(settings.source, settings.trust_remote_code, place)
    settle_special_tokens(tokenizer, model, settings.eos_token, settings.pad_token, place)
    _warn_of_ids_without_token(model, tokenizer, place)
    facts = _facts(model, tokenizer)
    require(facts, requirements, place)
    adapters = {} if settings.source == "scratch" else _merged_adapters(model, settings.source)
    with atomic_directory(output) as folder:
        model.save_pretrained(folder / "model")
        if adapters:
            write_merged(folder / "model", adapters)
        tokenizer.save_pretrained(folder / "model")
        _require_same_when_loaded(folder / "model", place)
        write_json(folder / MANIFEST, {**facts, **_commit(settings.source), "outputs": sha256_tree(folder)})
    parameters, tokens = f"{facts['parameters']:,}", facts["vocabulary"]
    logger.info("%s: %s with %s parameters, %s tokens", place, facts["model_type"], parameters, tokens)


def _require_same_when_loaded(model: Path, place: str) -> None:
    """All later stages load the tokenizer by the class that its folder names.

    Raises:
        UserError: this class changes what the file does.
    """
    changed = changed_rules(load_tokenizer(model), model / "tokenizer.json")
    if changed:
        raise UserError(f"{place}: a tokenizer loaded again changes {', '.join(changed)} of its tokenizer.json")


def _warn_of_ids_without_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, place: str) -> None:
    """Published vocabularies are padded for speed; PPO samples what the model makes likely, also such ids."""
    rows, tokens = model.get_input_embeddings().num_embeddings, len(set(tokenizer.get_vocab().values()))
    if rows > tokens:
        logger.warning(
            "%s: %d of its %d ids have no token; where the model was not trained to avoid them, answers hold some, "
            "which no text shows",
            place,
            rows - tokens,
            rows,
        )


def _facts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> ModelManifest:
    """What others need to know of a model without loading it."""
    return {
        "schema_version": 1,
        "model_type": model.config.model_type,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(tokenizer),
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "max_positions": getattr(model.config, "max_position_embeddings", None),
        "linear_modules": linear_modules(model),
    }


def _commit(source: ModelSource | str) -> dict[str, str]:
    """The commit of a hub that a model's files are of, as the name of their folder in the cache of the hub's client."""
    if isinstance(source, str) or source.hub is None:
        return {}
    file = published_file(source.hub, CONFIG_NAME, _where(source))
    known = (
        file is not None and file.parent.parent.name == "snapshots" and REGEX_COMMIT_HASH.fullmatch(file.parent.name)
    )
    return {"commit": file.parent.name} if file is not None and known else {}


def _from_scratch(
    settings: ModelSettings, texts: Iterable[str], place: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    architecture = dict(settings.architecture)
    _require_known_keys(architecture, f"{place}.architecture")
    assert settings.tokenizer is not None  # ModelSettings of a model from scratch has one
    tokenizer = train_tokenizer(texts, settings.tokenizer)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    try:
        config = AutoConfig.for_model(**(architecture | ids | {"vocab_size": len(tokenizer)}))
        seed_everything(settings.seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except FOREIGN as error:
        raise UserError(f"{place}.architecture: transformers cannot build it: {first_line(error)}") from None
    return model, tokenizer


def _require_known_keys(architecture: dict[str, Any], place: str) -> None:
    """Transformers keeps a misspelt key and builds the model without it."""
    model_type = architecture["model_type"]
    if model_type not in CONFIG_MAPPING:
        raise UserError(f"{place}.model_type: {model_type!r} is unknown{_nearest(model_type, CONFIG_MAPPING)}")
    configuration = CONFIG_MAPPING[model_type]
    known = {*configuration().to_dict(), *configuration.attribute_map, "model_type"}
    for key in architecture:
        if key not in known:
            raise UserError(f"{place}: {model_type} has no key {key!r}{_nearest(key, known)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _from_source(
    source: ModelSource, trust_remote_code: bool, place: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    name = source.hub or str(source.path)
    key = f"{place}.source.{'hub' if source.hub else 'path'}"
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, **_where(source)}
    if source.hub and Path(name).exists():  # transformers would take that, and no hash of it is in the ID
        raise UserError(f"{key}: there is a local file or folder {name!r}; give it as {place}.source.path, or move it")
    if source.path and Path(name).is_dir():
        require_model_folder(Path(name), key)
    try:
        tokenizer = load_as_published(name, options, key)
    except FOREIGN as error:
        raise UserError(f"{key}: no usable tokenizer in {name!r}: {cause(error)}") from None
    try:
        _require_whole_safetensors(name, key, options)
        model, loading = AutoModelForCausalLM.from_pretrained(
            name,
            dtype="auto",
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below
            **options,
        )
    except FOREIGN as error:
        raise UserError(f"{key}: no usable model in {name!r}: {cause(error)}") from None
    _require_all_parts(model, loading, f"{key}: {name!r}")
    # Its sampling defaults are not ours, and transformers refuses to save inconsistent ones.
    model.generation_config = GenerationConfig()
    return model, tokenizer


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


def _require_whole_safetensors(name: str, key: str, options: dict[str, Any]) -> None:
    """Refuse what makes transformers read other files than weights as safetensors of this model.

    Raises:
        UserError: it is an adapter, which loads another model, or an index names a pickle or a file elsewhere.
    """
    if published_file(name, ADAPTER, options) is not None:
        raise adapter_error(f"{key}: {name!r}")
    index = published_file(name, SAFE_WEIGHTS_INDEX_NAME, options)
    if index is not None:
        indexed(index, f"{key}: {name!r}")


def _where(source: ModelSource) -> dict[str, Any]:
    """How transformers finds a source's files."""
    return {"local_files_only": source.hub is None} | ({"revision": source.revision} if source.hub else {})


def _merged_adapters(model: PreTrainedModel, source: ModelSource) -> MergedAdapters:
    """The adapters that an earlier run merged into a source, for training that goes on in half precision.

    Those of weights that are other than that run left them, because the vocabulary grew or the folder was converted,
    would give another model and are left out.
    """
    file = published_file(source.hub or str(source.path), FILE, _where(source))
    adapters = read_merged(file.parents[1]) if file is not None else {}
    layers = dict(model.named_modules())
    kept = {
        name: changes
        for name, changes in adapters.items()
        if name in layers and fits(layers[name], changes) and layers[name].weight.dtype == torch.float32
    }
    if len(kept) < len(adapters):
        logger.warning(
            "%d of %d merged adapters belong to other weights; left out", len(adapters) - len(kept), len(adapters)
        )
    return kept
