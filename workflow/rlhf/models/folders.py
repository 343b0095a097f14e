"""What a model's folder or repository holds, seen before a library reads it: what it is, where it is something else."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from rlhf.errors import UserError
from rlhf.files import peek
from rlhf.models.weights import KINDS, WeightFiles, weight_files

ADAPTER = "adapter_config.json"
POINTER = b"version https://git-lfs.github.com/spec/"
# How a zip file, which `torch.save` writes, and a bare pickle begin.
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def require_model_files(names: Collection[str], key: str, model: str) -> None:
    """Refuse a folder or repository in which transformers would find another model, or none, by its files' names.

    Args:
        names: of the files there.
        key: configuration key that names it, for messages.
        model: what it is called there.

    Raises:
        UserError: it has an adapter's configuration, weights of another kind or none, or no tokenizer.
    """
    name = f"{key}: {model!r}"
    weights = any(one in names for kind in KINDS for one in kind)
    if ADAPTER in names:
        if not weights:
            raise UserError(
                f"{name} is an adapter; merge it into its model (`merge_and_unload` of peft), and save that"
            )
        raise UserError(
            f"{name} has {ADAPTER} beside whole weights, and transformers would load the adapter on another model; if "
            f"the adapter is merged into these weights, remove {ADAPTER}; else merge it (`merge_and_unload` of peft)"
        )
    if not weights:
        raise UserError(f"{key}: no usable model in {model!r}: {_instead(names)}")
    if CONFIG_NAME not in names:
        raise UserError(
            f"{key}: no usable model in {model!r}: it has no {CONFIG_NAME}; give a folder written by save_pretrained"
        )
    if not any(file in names for file in VOCABULARY_FILES):
        # transformers would make up an empty tokenizer of the model's family
        raise UserError(
            f"{name} has no tokenizer ({', '.join(VOCABULARY_FILES)}); give a folder written by save_pretrained, of "
            "the model and of its tokenizer"
        )


def require_model_folder(folder: Path, key: str, model: str) -> WeightFiles:
    """The weight files of a folder, after what can be said against it without reading them has been looked for.

    Args:
        folder: it exists.
        key: configuration key that names it, for messages.
        model: what it is called there.

    Raises:
        UserError: as `require_model_files`; or it has pointers of git-lfs, lacks weight files, or is quantised.
    """
    names = {file.name for file in folder.iterdir() if file.is_file() or file.is_symlink()}
    for file in sorted(folder / name for name in names):
        if _begins(file, (POINTER,)):
            raise UserError(
                f"{key}: {model!r}: {file.name} is a pointer of git-lfs, not the file itself; run `git lfs pull` in "
                "the folder, or download the files"
            )
    require_model_files(names, key, model)
    found = weight_files(names, lambda name: folder / name, f"{key}: {model!r}")
    assert found is not None  # there are weights
    unusable = _unusable(folder, found)
    if unusable is not None:
        raise UserError(f"{key}: no usable model in {model!r}: {unusable}")
    return found


def _unusable(folder: Path, weights: WeightFiles) -> str | None:
    """Why a folder's weights cannot be used, or None."""
    for file in weights.files:
        if not weights.pickled and _begins(folder / file, PICKLES):
            return (
                f"{file} is no safetensors file but a pickle; download it again, or name it as one: pytorch_model.bin"
            )
    missing = [file for file in weights.files if not (folder / file).exists()]
    if missing:
        return (
            f"{weights.index or 'the model'} names {missing[0]}, which is not there ({len(missing)} of "
            f"{len(weights.files)} files are missing); copy or download the rest"
        )
    quantised: Any = (peek(folder / CONFIG_NAME) or {}).get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "quantised") if isinstance(quantised, dict) else "quantised"
        return (
            f"it is quantised ({method}), and such weights cannot be trained; give the model that it was made from, or "
            "an unquantised copy (`dequantize()` of transformers, where it has that for the method)"
        )
    return None


def _instead(names: Collection[str]) -> str:
    """What a folder without weights that are read has in their place."""
    if quantised := _ending(names, ".gguf"):
        return (
            f"{quantised[0]} is of llama.cpp (GGUF); load it with transformers (`from_pretrained(..., gguf_file="
            f"{quantised[0]!r})`, which needs the package gguf), and save model and tokenizer by save_pretrained"
        )
    if own := sorted(name for name in names if re.fullmatch(r"consolidated\..*(pth|safetensors)", name)):
        return (
            f"{own[0]} is in its authors' own format; take the repository with the weights of transformers (often "
            "named -hf), or convert it (`convert_llama_weights_to_hf.py`, `convert_mistral_weights_to_hf.py` of "
            "transformers)"
        )
    for single, index, ending in KINDS:
        if shards := sorted(name for name in names if re.fullmatch(rf".+-\d+-of-\d+\.{ending}", name)):
            return f"{shards[0]} lacks the index of its parts, {index}, or {single} in their place; download it too"
    if pickled := _ending(names, ".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        return (
            f"{pickled[0]} is all it has for weights, and it is not known by this name what it holds; a state_dict "
            "saved by torch is read as pytorch_model.bin"
        )
    if other := _ending(names, ".h5", ".msgpack", ".ot"):
        return (
            f"{other[0]} is of another framework; load it with transformers 4 (`from_tf=True`, `from_flax=True`), and "
            "save model and tokenizer by save_pretrained"
        )
    return f"it has no weights ({SAFE_WEIGHTS_NAME}, or {SAFE_WEIGHTS_INDEX_NAME} and its files)"


def _ending(names: Collection[str], *endings: str) -> list[str]:
    return sorted(name for name in names if name.endswith(endings))


def _begins(file: Path, marks: Iterable[bytes]) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        head = stream.read(64)
    return head.startswith(tuple(marks))


# Parts that a classifier or a reward model has on its body, by the names of transformers, TRL and others.
HEADS = ("score", "classifier", "classification_head", "v_head", "value_head", "reward_head", "qa_outputs", "summary")


def of_another_head(names: Iterable[str], architectures: Iterable[str]) -> str | None:
    """What a model is whose head would be dropped if it were read as a language model.

    Args:
        names: of weights that a language model has no place for.
        architectures: of its configuration.

    Returns:
        None where nothing says that it has another head.
    """
    heads = sorted(name for name in names if any(part in HEADS for part in name.split(".")))
    other = sorted(name for name in architectures if re.search(r"For(Sequence|Token)Classification|RewardModel", name))
    if not (heads or other):
        return None
    return f"it is a reward model or a classifier ({', '.join([*other, *heads][:5])})"
