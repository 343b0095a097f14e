"""Random weights, in the files in which they are published."""

from __future__ import annotations

import io
from typing import Any

import torch
from safetensors.torch import save
from transformers import AutoConfig, AutoModelForCausalLM

from tests.hub.repository import Files, as_json


def weights(config: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """Random weights by the names of the model's class, without tied copies."""
    settings = AutoConfig.for_model(**{key: value for key, value in config.items() if key != "auto_map"})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    tied = (
        set(getattr(model, "all_tied_weights_keys", {}) or {})
        if settings.get_text_config().tie_word_embeddings
        else set()
    )
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items() if name not in tied}


def cast(dtype: str, tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: one.to(getattr(torch, dtype)) if one.is_floating_point() else one for name, one in tensors.items()}


def safetensors(tensors: dict[str, Any]) -> bytes:
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata={"format": "pt"})


def pickled(tensors: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    torch.save(tensors, stream)
    return stream.getvalue()


def stored(tensors: dict[str, Any], kind: str, shards: int = 1) -> Files:
    """Weight files: `kind` is `safetensors` or `bin`; several shards have an index."""
    write, stem = (safetensors, "model") if kind == "safetensors" else (pickled, "pytorch_model")
    if shards == 1:
        return {f"{stem}.{kind}": write(tensors)}
    files: Files = {}
    places: dict[str, str] = {}
    names = list(tensors)
    for shard in range(shards):
        file = f"{stem}-{shard + 1:05d}-of-{shards:05d}.{kind}"
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        files[file] = write({name: tensors[name] for name in part})
        places |= dict.fromkeys(part, file)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    files[f"{stem}.{kind}.index.json"] = as_json({"metadata": {"total_size": size}, "weight_map": places})
    return files


LICENCES = {
    "facebook": "other",
    "openai-community": "mit",
    "meta-llama": "llama2",
    "google": "gemma",
    "microsoft": "mit",
}


def card(name: str) -> Files:
    """What every repository has beside its files."""
    licence = LICENCES.get(name.split("/")[0], "apache-2.0")
    text = f"---\nlicense: {licence}\nlibrary_name: transformers\n---\n# A stand-in for {name}\n"
    return {"README.md": text.encode(), ".gitattributes": b"*.bin filter=lfs\n"}


def renamed(tensors: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new + name.removeprefix(old) if name.startswith(old) else name: one for name, one in tensors.items()}
