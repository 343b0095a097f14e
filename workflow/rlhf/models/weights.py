"""Weight files as people publish them: which ones count, and their tensors, one file in memory at a time.

Safetensors come first. Where there are none, pickles are read by torch's restricted loader, which makes tensors and
runs no code; what holds anything else is refused.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers.modeling_utils import load_state_dict
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from rlhf.causes import FOREIGN, cause
from rlhf.errors import UserError

# (one file, index of several, ending), what comes first before the other.
KINDS = ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, "safetensors"), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME, "bin"))


@dataclass(frozen=True)
class WeightFiles:
    """The files of a model's weights.

    Attributes:
        files: their names, in the order of an index.
        index: name of the file that lists them; None where there is one file alone.
        pickled: whether they are pickles.
    """

    files: tuple[str, ...]
    index: str | None
    pickled: bool


def weight_files(names: Collection[str], find: Callable[[str], Path], model: str) -> WeightFiles | None:
    """The weight files that count, or None where there are none of a kind that is read.

    Args:
        names: all files of the folder or repository; those that an index names need not be among them.
        find: where a file of these is on this machine.
        model: name of the model with its configuration key, for messages.

    Raises:
        UserError: an index cannot be read, or names a file elsewhere or of another kind.
    """
    for single, index, ending in KINDS:
        if single in names:
            return WeightFiles((single,), None, ending == "bin")
        if index in names:
            return WeightFiles(tuple(_indexed(find(index), ending, model)), index, ending == "bin")
    return None


def _indexed(index: Path, ending: str, model: str) -> list[str]:
    """The weight files that an index names, in their order."""
    try:
        files = sorted({str(file) for file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{model}: {index.name} is damaged ({type(error).__name__}: {error}); copy it again") from None
    for file in files:
        if not re.fullmatch(rf"[^/\\]+\.{ending}", file):
            kind = "safetensors" if ending == "safetensors" else "pickled weight"
            raise UserError(f"{model}: the index names {file!r}, which is no {kind} file beside it")
    return files


def read_weights(file: Path, place: str, model: str) -> dict[str, Tensor]:
    """The tensors of a weight file.

    Args:
        file: of safetensors, or pickled (.bin).
        place: `cpu`: mapped into memory, where the format allows it; `meta`: names, shapes and types alone.
        model: what is said of the model before the reason.

    Raises:
        UserError: it cannot be read, or is a pickle of more than tensors.
    """
    try:
        if file.suffix == ".safetensors":
            tensors: dict[str, Tensor] = load_state_dict(file, place)
            return tensors
        mapped = place != "meta" and zipfile.is_zipfile(file)  # what torch wrote before 1.6 cannot be mapped
        content = torch.load(file, map_location=place, weights_only=True, mmap=mapped)
    except (*FOREIGN, RuntimeError) as error:
        raise UserError(f"{model}: {file.name} is not readable: {cause(error)}") from None
    return _only_tensors(content, f"{model}: {file.name}")


def _only_tensors(content: object, name: str) -> dict[str, Tensor]:
    if not isinstance(content, dict) or not content:
        raise UserError(f"{name} holds no weights but a {type(content).__name__}; give a file of names and tensors")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            raise UserError(
                f"{name} holds {type(value).__name__} under {key!r}, and weights are names and dense tensors; where it "
                "is a checkpoint of training, save the model's state_dict alone"
            )
    return {key: value.detach() for key, value in content.items()}
