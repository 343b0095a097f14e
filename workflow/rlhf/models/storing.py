"""The weights of a published model as safetensors: linked where nothing changes, else written one file at a time.

Names and types of the tensors stay those of the published files.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from rlhf.files import write_json
from rlhf.models.published import PublishedModel
from rlhf.models.weights import read_weights
from rlhf.runtime.logging import get_logger

logger = get_logger(__name__)

ROWS_AT_ONCE = 4096


def store_weights(published: PublishedModel, folder: Path, name: str) -> dict[str, str]:
    """Write a model's weights into a folder; never more than one of the published files is in memory.

    Args:
        published: what is written.
        folder: where the files go.
        name: of the model with its configuration key, for messages.

    Returns:
        Published file -> the file that it has become, for those that are the same to the last byte.

    Raises:
        UserError: a file cannot be read.
    """
    grown = published.grown
    same: dict[str, str] = {}
    places: dict[str, str] = {}
    touched = {published.places[key] for key in (*grown, *published.dropped)}
    for file in published.weights.files:
        target = _as_safetensors(file)
        if published.weights.pickled or file in touched:
            _rewrite(published, file, folder / target, grown, name)
            logger.info("%s: %s is written as %s", name, file, target)
        else:
            _place(published.folder / file, folder / target)
            same[file] = target
        places |= {
            key: target for key, place in published.places.items() if place == file and key not in published.dropped
        }
    if published.weights.index is not None:
        size = sum((folder / target).stat().st_size for target in set(places.values()))
        index = {"metadata": {"total_size": size}, "weight_map": places}
        write_json(folder / SAFE_WEIGHTS_INDEX_NAME, index)
    return same


def _as_safetensors(file: str) -> str:
    """The name of a weight file as transformers looks for it: pytorch_model-00001-of-00002.bin -> model-00001-..."""
    return (
        re.sub(r"^pytorch_model", "model", file.removesuffix(".bin")) + ".safetensors" if file[-4:] == ".bin" else file
    )


def _rewrite(published: PublishedModel, file: str, target: Path, grown: dict[str, int], name: str) -> None:
    tensors = {}
    places: set[int] = set()
    for key, tensor in read_weights(published.folder / file, "cpu", name).items():
        if key in published.dropped:
            continue
        if key in grown:
            tensor = torch.cat([tensor, _mean_row(tensor).expand(grown[key], *tensor.shape[1:])])
        # Two names of one tensor in a pickle: safetensors writes each of them.
        tensors[key] = tensor.clone() if tensor.data_ptr() in places else tensor.contiguous()
        places.add(tensor.data_ptr())
    save_file(tensors, target, metadata={"format": "pt"})


def _mean_row(tensor: Tensor) -> Tensor:
    """The mean of a tensor's rows, [1, ...], in its type.

    What a new token starts from: as likely as the average one, and no draw (Hewitt 2021, "Initializing New Word
    Embeddings for Pretrained Language Models").
    """
    total = torch.zeros(1, *tensor.shape[1:], dtype=torch.float64)
    for rows in tensor.split(ROWS_AT_ONCE):
        total += rows.double().sum(0, keepdim=True)
    return (total / len(tensor)).to(tensor.dtype)


def _place(source: Path, target: Path) -> None:
    """Give a file a second name where that is safe and possible, else copy it.

    Files of a hub's cache are named by their content, so nobody changes them in their place; in a folder of the user's,
    a program that writes its file again would change ours too.
    """
    source = source.resolve()
    if source.parent.name == "blobs":
        with contextlib.suppress(OSError):  # another disk, or a file system without links
            os.link(source, target)
            return
    shutil.copyfile(source, target)
