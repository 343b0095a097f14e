"""The model cache: a plain Hugging Face folder from a hub, a local folder or an architecture."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME

from rlhf import hub
from rlhf.causes import FOREIGN, cause
from rlhf.config.requirements import Requirement, require
from rlhf.config.sources import ModelSettings, ModelSource
from rlhf.errors import UserError, first_line
from rlhf.files import sha256_file, sha256_tree, write_json
from rlhf.models.folders import require_model_folder
from rlhf.models.loading import load_tokenizer
from rlhf.models.lora import linear_modules
from rlhf.models.merged import MergedAdapters, fits, read_merged, write_merged
from rlhf.models.origin import CODE, Origin, find_origin, is_text
from rlhf.models.published import PublishedModel, read_published
from rlhf.models.storing import store_weights
from rlhf.models.tokenizers import changed_rules, load_as_published, settle_special_tokens, train_tokenizer
from rlhf.records.manifest import MANIFEST, ModelManifest, ModelOrigin
from rlhf.runtime.folders import atomic_directory
from rlhf.runtime.logging import get_logger
from rlhf.runtime.seeds import seed_everything
from rlhf.runtime.transfer import bytes_logged

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
        _cache_from_scratch(settings, output, place, requirements, texts or ())
    else:
        _cache_from_source(settings, settings.source, output, place, requirements)


def _cache_from_scratch(
    settings: ModelSettings, output: Path, place: str, requirements: Iterable[Requirement], texts: Iterable[str]
) -> None:
    model, tokenizer = _from_scratch(settings, texts, place)
    facts = _settled(model, tokenizer, settings, place, requirements)
    with atomic_directory(output) as folder:
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        _require_same_when_loaded(folder / "model", place)
        write_json(folder / MANIFEST, {**facts, "outputs": sha256_tree(folder)})


def _cache_from_source(
    settings: ModelSettings, source: ModelSource, output: Path, place: str, requirements: Iterable[Requirement]
) -> None:
    key, name = f"{place}.source.{'hub' if source.hub else 'path'}", source.hub or str(source.path)
    origin = find_origin(source, key, settings.trust_remote_code)
    published, tokenizer = _read(origin, name, key, settings.trust_remote_code)
    facts = _settled(published.model, tokenizer, settings, place, requirements)
    adapters = _merged_adapters(published)
    with atomic_directory(output) as folder:
        model = folder / "model"
        model.mkdir()
        with bytes_logged(folder, f"{place}: written", _size(published)):
            same = store_weights(published, model, f"{key}: {name!r}")
        if adapters:
            write_merged(model, adapters)
        _save_the_rest(published, tokenizer, model, settings.trust_remote_code)
        _require_same_when_loaded(model, place)
        outputs = sha256_tree(folder)
        files = {
            file: outputs[f"model/{same[file]}"] if file in same else sha256_file(origin.folder / file)
            for file in _read_files(published)
        }
        record = _record(origin, published, files)
        write_json(folder / MANIFEST, {**facts, "source": record, "precision": published.precision, "outputs": outputs})
    _say_precision(published, place)


def _settled(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: ModelSettings,
    place: str,
    requirements: Iterable[Requirement],
) -> ModelManifest:
    """Give model and tokenizer their special tokens, check what is asked of them, and say what they are."""
    settle_special_tokens(tokenizer, model, settings.eos_token, settings.pad_token, place)
    _warn_of_ids_without_token(model, tokenizer, place)
    facts = _facts(model, tokenizer)
    require(facts, requirements, place)
    parameters, tokens = f"{facts['parameters']:,}", facts["vocabulary"]
    logger.info("%s: %s with %s parameters, %s tokens", place, facts["model_type"], parameters, tokens)
    return facts


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


def _read(
    origin: Origin, name: str, key: str, trust_remote_code: bool
) -> tuple[PublishedModel, PreTrainedTokenizerBase]:
    """A source's model by its headers, and its tokenizer."""
    weights = require_model_folder(origin.folder, key, name)
    options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    try:
        tokenizer = load_as_published(origin.folder, options, key, name)
    except FOREIGN as error:
        raise UserError(f"{key}: no usable tokenizer in {name!r}: {cause(error)}") from None
    tokenizer.name_or_path = name  # it is saved, and a cache's folder says something of a person or machine
    try:
        published = read_published(origin.folder, weights, trust_remote_code, key, name)
    except FOREIGN as error:
        raise UserError(f"{key}: no usable model in {name!r}: {cause(error)}") from None
    if weights.pickled:
        logger.info("%s: %r is pickled; torch's restricted loader reads it, and it is kept as safetensors", key, name)
    return published, tokenizer


def _save_the_rest(
    published: PublishedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, trust_remote_code: bool
) -> None:
    """What a model folder has beside weights."""
    model = published.model
    model.config.dtype = next(iter(published.precision))
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in published.folder.glob(CODE) if trust_remote_code else ():
        shutil.copyfile(file, folder / file.name)


def _size(published: PublishedModel) -> int:
    return sum((published.folder / file).stat().st_size for file in published.weights.files)


def _read_files(published: PublishedModel) -> list[str]:
    """The files that were read: of weights, those that count; and what lies beside them."""
    texts = {file.name for file in published.folder.iterdir() if is_text(file.name)}
    texts -= {WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_INDEX_NAME} - {published.weights.index}
    return sorted(texts | {*published.weights.files})


def _record(origin: Origin, published: PublishedModel, files: dict[str, str]) -> ModelOrigin:
    return {
        "hub": origin.hub,
        "revision": origin.revision,
        "commit": origin.commit,
        "license": hub.licence(origin.folder / "README.md"),
        "weights": "pickled" if published.weights.pickled else "safetensors",
        "files": files,
    }


def _say_precision(published: PublishedModel, place: str) -> None:
    stored = " and ".join(published.precision)
    logger.info("%s: weights are kept as they are stored, in %s", place, stored)


def _merged_adapters(published: PublishedModel) -> MergedAdapters:
    """The adapters that an earlier run merged into a source, for training that goes on in half precision.

    Those of weights that are other than that run left them, because the vocabulary grew or the folder was converted,
    would give another model and are left out.
    """
    adapters = read_merged(published.folder)
    layers = dict(published.model.named_modules())
    types = {published.names[key]: tensor.dtype for key, tensor in published.tensors.items()}
    kept = {
        name: changes
        for name, changes in adapters.items()
        if name in layers and fits(layers[name], changes) and types.get(f"{name}.weight") == torch.float32
    }
    if len(kept) < len(adapters):
        logger.warning(
            "%d of %d merged adapters belong to other weights; left out", len(adapters) - len(kept), len(adapters)
        )
    return kept
