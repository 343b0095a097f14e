"""Models of a hub through the script as its rule calls it: the weights that are published, and what is said of faults."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf.files import sha256_file
from rlhf.models.loading import load_policy, load_reward_backbone, load_tokenizer
from tests.hub.caching import cache_model
from tests.hub.models import MODELS
from tests.hub.server import TOKENS, Hub

MEMBER = TOKENS["member"]


def files_of(hub: Hub, name: str, revision: str = "main") -> Path:
    return hub.root / "models" / name / revision.replace("/", "%2F")


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"zai-org/chatglm3-6b", "THUDM/chatglm3-6b"}))
def test_every_family_is_cached_as_its_main_revision_has_it(hub: Hub, tmp_path: Path, name: str) -> None:
    """Compared with the tensors in the published files: values, types, commit, licence, hashes."""
    done = cache_model(tmp_path, hub, {"hub": name}, HF_TOKEN=MEMBER)
    assert done.status == 0, done.log[-3000:]
    now = {"gpt2": "openai-community/gpt2", "THUDM/glm-4-9b-chat-hf": "zai-org/glm-4-9b-chat-hf"}.get(name, name)
    main = files_of(hub, now)
    pickled = not list(main.glob("model*.safetensors"))
    published: dict[str, torch.Tensor] = {}
    for file in main.glob("pytorch_model*.bin" if pickled else "model*.safetensors"):
        published |= torch.load(file, weights_only=True) if pickled else load_file(file)
    model = load_policy(done.output / "model", "fp32")
    prefix = model.base_model_prefix
    own = model.state_dict()
    types = set()
    for key, tensor in published.items():
        places = [one for one in (key, f"{prefix}.{key}") if one in own]
        if places:
            types.add(str(tensor.dtype).removeprefix("torch."))
            assert torch.equal(own[places[0]][: len(tensor)], tensor.float()), key
    source = done.manifest["source"]
    commit = hub._server.repository("models", now).revisions()["main"]
    assert (source["hub"], source["commit"], source["revision"]) == (name, commit, None)
    assert source["weights"] == ("pickled" if pickled else "safetensors")
    assert source["license"] is not None
    assert source["files"] == {file: sha256_file(main / file) for file in source["files"]}
    assert {file.name for file in main.iterdir() if file.suffix == (".bin" if pickled else ".safetensors")} - {
        "consolidated.safetensors"
    } <= source["files"].keys()
    assert set(done.manifest["precision"]) == types
    assert ("the hub calls it" in done.log) == (now != name)
    load_reward_backbone(done.output / "model", "fp32", seed=0)
    load_tokenizer(done.output / "model")
