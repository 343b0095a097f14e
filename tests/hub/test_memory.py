"""Caching a sharded model takes the memory of its largest file, not of the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.snakemake import ENVIRONMENT, ROOT
from tests.unit.conftest import edit_json, make_model

SHARDS = 7
LAYERS, WIDTH = 14, 1280  # half a gigabyte in half precision
ALLOWED = 300 << 20


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of half a gigabyte in files of both kinds, whose vocabulary grows when it is cached."""
    folder = make_model(tmp_path_factory.mktemp("sharded") / "gpt2", "gpt2")
    (folder / "model.safetensors").unlink()
    edit_json(folder / "config.json", n_layer=LAYERS, n_embd=WIDTH, vocab_size=50)
    edit_json(folder / "tokenizer_config.json", pad_token="<eos>")
    with torch.device("meta"):
        layout = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).state_dict()
    names = [name for name in layout if name != "lm_head.weight"]
    places = {}
    for shard in range(SHARDS):
        part = names[shard * len(names) // SHARDS : (shard + 1) * len(names) // SHARDS]
        tensors = {name: torch.full(layout[name].shape, 0.5, dtype=torch.float16) for name in part}
        save_file(tensors, folder / f"model-{shard}.safetensors", metadata={"format": "pt"})
        torch.save(tensors, folder / f"pytorch_model-{shard}.bin")
        places |= dict.fromkeys(part, shard)
    for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        content = {"weight_map": {name: f"{stem}-{shard}.{ending}" for name, shard in places.items()}}
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(content))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_caching_takes_the_memory_of_the_largest_file(sharded: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in sharded.iterdir():
        if file.suffix not in (".safetensors", ".bin") and "index" not in file.name or kind in file.name:
            (folder / file.name).hardlink_to(file)
    sizes = [file.stat().st_size for file in folder.glob(f"*.{kind}")]
    assert len(sizes) == SHARDS and sum(sizes) > max(sizes) + ALLOWED  # a step that holds all would show
    command = [sys.executable, "-m", "tests.hub.memory", folder, tmp_path / "cache"]
    done = subprocess.run(
        list(map(str, command)),
        env=ENVIRONMENT | {"PYTHONPATH": f"{ROOT / 'workflow'}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    taken = int(done.stdout.split()[-1])
    print(f"{kind}: {taken >> 20} MiB above imports; largest file {max(sizes) >> 20} MiB, all {sum(sizes) >> 20} MiB")
    assert taken <= max(sizes) + ALLOWED
    assert len(list((tmp_path / "cache/model").glob("*.safetensors"))) == SHARDS
