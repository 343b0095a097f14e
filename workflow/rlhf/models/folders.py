"""What a local model folder holds, seen before a library reads it: files of another kind are named as what they are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from rlhf.errors import UserError

ADAPTER = "adapter_config.json"
POINTER = b"version https://git-lfs.github.com/spec/"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# How a zip file, which `torch.save` writes, and a bare pickle begin.
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def published_file(name: str, part: str, options: dict[str, Any]) -> Path | None:
    """A file of a model's source, or None where it has none.

    Args:
        name: hub name or folder.
        part: name of the file.
        options: of `from_pretrained`: `local_files_only` and, for a hub, `revision`.
    """
    where = {key: options[key] for key in ("local_files_only", "revision") if key in options}
    found = cached_file(name, part, **where, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def require_model_folder(folder: Path, key: str) -> None:
    """Refuse a local folder in which transformers would find another model, or none.

    Args:
        folder: it exists.
        key: configuration key that names it, for messages.

    Raises:
        UserError: it has pointers of git-lfs, an adapter's configuration, weights of another kind or no whole ones, or
            no tokenizer.
    """
    name = f"{key}: {str(folder)!r}"
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        if _begins(file, (POINTER,)):
            raise UserError(
                f"{name}: {file.name} is a pointer of git-lfs, not the file itself; run `git lfs pull` in the folder, "
                "or download the files"
            )
    _require_no_adapter(folder, name)
    unusable = _unusable(folder, name)
    if unusable is not None:
        raise UserError(f"{key}: no usable model in {str(folder)!r}: {unusable}")
    if not any((folder / file).exists() for file in VOCABULARY_FILES):
        # transformers would make up an empty tokenizer of the model's family
        raise UserError(
            f"{name} has no tokenizer ({', '.join(VOCABULARY_FILES)}); give a folder written by save_pretrained, of "
            "the model and of its tokenizer"
        )


def _require_no_adapter(folder: Path, name: str) -> None:
    if not (folder / ADAPTER).exists():
        return
    if _weights(folder, name):
        raise UserError(
            f"{name} has {ADAPTER} beside whole weights, and transformers would load the adapter on another model; if "
            f"the adapter is merged into these weights, remove {ADAPTER}; else merge it (`merge_and_unload` of peft)"
        )
    raise adapter_error(name)


def adapter_error(name: str) -> UserError:
    """The refusal of an adapter without its model.

    Args:
        name: of the source, with its configuration key.
    """
    return UserError(f"{name} is an adapter; merge it into its model (`merge_and_unload` of peft), and save that")


def _unusable(folder: Path, name: str) -> str | None:
    """Why a folder's model cannot be read, or None."""
    weights = _weights(folder, name)
    if not weights:
        return _instead(folder)
    for file in weights:
        if _begins(folder / file, PICKLES):
            return f"{file} is no safetensors file but a pickle; {_PICKLED_REMEDY}"
    missing = [file for file in weights if not (folder / file).exists()]
    if missing:
        return (
            f"{SAFE_WEIGHTS_INDEX_NAME} names {missing[0]}, which is not there ({len(missing)} of {len(weights)} files "
            "are missing); copy or download the rest"
        )
    if not (folder / CONFIG_NAME).exists():
        return f"it has no {CONFIG_NAME}; give a folder written by save_pretrained"
    return None


_PICKLED_REMEDY = (
    "pickled weights (.bin) are never read: where you trust them, load them with transformers and save them again, "
    "with weights as safetensors"
)


def _instead(folder: Path) -> str:
    """What a folder without weights as safetensors has in their place."""
    quantised = sorted(file.name for file in folder.glob("*.gguf"))
    if quantised:
        return (
            f"{quantised[0]} is of llama.cpp (GGUF); load it with transformers (`from_pretrained(..., gguf_file="
            f"{quantised[0]!r})`, which needs the package gguf), and save model and tokenizer by save_pretrained"
        )
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED)
    if pickled:
        return f"{pickled[0]} is all it has for weights; {_PICKLED_REMEDY}"
    return f"it has no weights ({SAFE_WEIGHTS_NAME}, or {SAFE_WEIGHTS_INDEX_NAME} and its files)"


def _weights(folder: Path, name: str) -> list[str]:
    """Names of the weight files that transformers would read; those of an index need not be there."""
    if (folder / SAFE_WEIGHTS_NAME).exists():
        return [SAFE_WEIGHTS_NAME]
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    return indexed(index, name) if index.exists() else []


def indexed(index: Path, name: str) -> list[str]:
    """The weight files that an index names, in their order.

    Args:
        index: model.safetensors.index.json.
        name: of the model, with its configuration key, for messages.

    Raises:
        UserError: the index cannot be read, or names a pickle or a file elsewhere.
    """
    try:
        files = sorted({str(file) for file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{name}: {index.name} is damaged ({type(error).__name__}: {error}); copy it again") from None
    for file in files:
        if not re.fullmatch(r"[^/\\]+\.safetensors", file):
            raise UserError(f"{name}: the index names {file!r}, which is no safetensors file beside it")
    return files


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
