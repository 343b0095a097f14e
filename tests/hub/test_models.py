"""Models of a hub through the script as its rule calls it: the weights that are published, and what faults do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf.files import sha256_file
from rlhf.models.loading import load_policy, load_reward_backbone, load_tokenizer
from tests.hub.caching import cache_model
from tests.hub.layout import cast, renamed, stored, weights
from tests.hub.models import MODELS
from tests.hub.models.older import opt
from tests.hub.repository import as_json, write
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
    commit = hub.commits("models", now)["main"]
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


def test_only_files_of_the_asked_revision_are_read_and_nothing_is_sent(hub: Hub, tmp_path: Path) -> None:
    """A bot's pull request has other weights, as safetensors; transformers would take them, or ask for such a one."""
    done = cache_model(tmp_path, hub, {"hub": "tiiuae/falcon-rw-1b"})
    assert done.status == 0, done.log
    kept = {}
    for file in (done.output / "model").glob("*.safetensors"):
        kept |= load_file(file)
    for revision, equal in (("main", True), ("refs/pr/3", False)):
        published: dict[str, torch.Tensor] = {}
        for file in files_of(hub, "tiiuae/falcon-rw-1b", revision).glob("*.bin" if equal else "*.safetensors"):
            published |= torch.load(file, weights_only=True) if equal else load_file(file)
        assert all(torch.equal(kept[name], published[name]) for name in kept) == equal
    assert {one["method"] for one in hub.requests} <= {"GET", "HEAD"}
    assert not [one for one in hub.requests if "discussions" in one["path"] or "refs/pr" in one["path"]]
    asked = cache_model(tmp_path / "pr", hub, {"hub": "tiiuae/falcon-rw-1b", "revision": "refs/pr/3"})
    assert asked.manifest["source"]["weights"] == "safetensors"  # who asks for it gets it
    assert asked.manifest["source"]["commit"] != done.manifest["source"]["commit"]


def test_of_several_kinds_of_weights_one_is_fetched(hub: Hub, tmp_path: Path) -> None:
    done = cache_model(tmp_path, hub, {"hub": "openai-community/gpt2"})
    fetched = {one["path"].rpartition("/")[2] for one in hub.requests if "/resolve/" in one["path"]}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= fetched
    assert not fetched & {
        "pytorch_model.bin",
        "flax_model.msgpack",
        "tf_model.h5",
        "rust_model.ot",
        "decoder_model.onnx",
    }
    assert done.manifest["source"]["license"] == "mit"


@pytest.mark.parametrize("revision", ["step3000", None])
def test_a_revision_is_fixed_as_a_commit(hub: Hub, tmp_path: Path, revision: str | None) -> None:
    name = "EleutherAI/pythia-70m"
    commits = hub.commits("models", name)
    done = cache_model(tmp_path, hub, {"hub": name} | ({"revision": revision} if revision else {}))
    assert done.manifest["source"]["commit"] == commits[revision or "main"]
    again = cache_model(tmp_path / "again", hub, {"hub": name, "revision": commits[revision or "main"]})
    weights = {file: digest for file, digest in done.manifest["outputs"].items()}
    assert weights == again.manifest["outputs"]


def test_links_spare_the_disk_and_leave_the_cache_alone(hub: Hub, tmp_path: Path) -> None:
    done = cache_model(tmp_path, hub, {"hub": "Qwen/Qwen3-0.6B"})
    kept, blobs = done.output / "model/model.safetensors", tmp_path / "home/hub/models--Qwen--Qwen3-0.6B/blobs"
    assert [file for file in blobs.iterdir() if file.samefile(kept)]
    grown = cache_model(tmp_path, hub, {"hub": "google/gemma-3-1b-it"}, HF_TOKEN=MEMBER)  # a token more than rows
    blobs = tmp_path / "home/hub/models--google--gemma-3-1b-it/blobs"
    assert {file.name for file in blobs.iterdir() if len(file.name) == 64} == {
        sha256_file(file).removeprefix("sha256:") for file in blobs.iterdir() if len(file.name) == 64
    }
    assert grown.status == 0


# Rows of the table: messages by cause


@pytest.mark.parametrize(
    ("source", "token", "said"),
    [
        (
            {"hub": "meta-llama/Llama-3.2-1B"},
            None,
            "/meta-llama/Llama-3.2-1B with your account, and accept its licence or ask for access",
        ),
        (
            {"hub": "meta-llama/Llama-3.2-1B"},
            TOKENS["stranger"],
            "/meta-llama/Llama-3.2-1B with your account, and accept its licence or ask for access",
        ),
        ({"hub": "meta-llama/Llama-3.2-1B"}, "hf_WrongTokenWrongToken", "the hub does not accept the token"),
        ({"hub": "facebook/opt-125"}, None, "no model 'facebook/opt-125' that is public; did you mean 'facebook/opt-1"),
        ({"hub": "fecebook/opt-350m"}, None, "did you mean 'facebook/opt-350m'?"),
        ({"hub": "nobody/at-all-like-this"}, None, "the hub has no such name"),
        ({"hub": "openai-community/gpt2", "revision": "v9"}, None, "the hub has no such name, revision"),
        ({"hub": "zai-org/chatglm3-6b"}, None, "set `trust_remote_code: true` of this model"),
    ],
)
def test_what_hinders_is_said_by_its_cause(
    hub: Hub, tmp_path: Path, source: dict[str, str], token: str | None, said: str
) -> None:
    done = cache_model(tmp_path, hub, source, **({"HF_TOKEN": token} if token else {}))
    assert said in done.message
    assert done.message.startswith("error: models.mine.source.hub: ")
    assert "safetensors" not in done.message
    assert token is None or token not in done.log


def test_a_hub_that_is_not_there_is_no_mistake_of_the_name(tmp_path: Path) -> None:
    done = cache_model(tmp_path, None, {"hub": "facebook/opt-125m"})
    assert "the hub cannot be reached" in done.message
    assert "run the same command again, what was fetched is kept" in done.message
    assert "HF_TOKEN" not in done.message


@pytest.mark.parametrize(
    "fault",
    [
        {"path": "GET /api/models", "kind": "status", "status": 503, "times": 3},
        {"path": "GET /api/models", "kind": "status", "status": 429, "headers": {"Retry-After": "1"}, "times": 2},
        {"path": "GET /cdn/", "kind": "status", "status": 503, "times": 2},
        {"path": "GET .*config.json", "kind": "refuse", "times": 2},
        {"path": "GET /cdn/", "kind": "drop", "bytes": 20_000, "times": 3},
        {"path": "HEAD .*bin", "kind": "refuse", "times": 1},
        {"path": "GET /cdn/", "kind": "stall", "bytes": 5_000, "seconds": 1, "times": 1},
    ],
    ids=lambda fault: f"{fault['kind']} {fault.get('status', '')} {fault['path']}",
)
def test_faults_that_pass_are_waited_for(hub: Hub, tmp_path: Path, fault: dict[str, object]) -> None:
    hub.faults(fault)
    done = cache_model(tmp_path, hub, {"hub": "facebook/opt-350m"})
    assert done.status == 0, done.log[-3000:]


def test_no_token_is_left_or_sent_to_the_host_of_files(hub: Hub, tmp_path: Path) -> None:
    done = cache_model(tmp_path, hub, {"hub": "meta-llama/Llama-2-7b-hf"}, HF_TOKEN=MEMBER)
    assert done.status == 0, done.log
    content = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert content and not any(MEMBER.encode() in one for one in content)
    at_files = [one for one in hub.requests if one["path"].startswith("/cdn/")]
    assert at_files and not any(one["token"] for one in at_files)


# The cache: offline, warm, resumed


def test_a_warm_cache_needs_no_hub(hub: Hub, tmp_path: Path) -> None:
    first = cache_model(tmp_path / "first", hub, {"hub": "facebook/opt-125m"}, home="../home")
    assert first.status == 0
    hub.requests.clear()
    offline = cache_model(tmp_path / "offline", hub, {"hub": "facebook/opt-125m"}, home="../home", HF_HUB_OFFLINE="1")
    assert offline.status == 0, offline.log
    assert hub.requests == []
    began = time.monotonic()
    down = cache_model(tmp_path / "down", None, {"hub": "facebook/opt-125m"}, home="../home")
    assert down.status == 0, down.log
    assert time.monotonic() - began < 20  # and no minutes of asking again
    assert f"commit {first.manifest['source']['commit']} from the cache is taken" in down.log
    assert down.manifest["source"]["commit"] == offline.manifest["source"]["commit"]
    assert first.manifest["outputs"] == offline.manifest["outputs"] == down.manifest["outputs"]


def test_a_cold_cache_says_that_the_hub_may_not_be_asked(hub: Hub, tmp_path: Path) -> None:
    done = cache_model(tmp_path, hub, {"hub": "facebook/opt-125m"}, HF_HUB_OFFLINE="1")
    assert "the hub may not be asked" in done.message
    assert "HF_HUB_OFFLINE is set" in done.message
    assert hub.requests == []


def test_a_cache_that_has_a_part_says_so(hub: Hub, tmp_path: Path) -> None:
    cache_model(tmp_path, hub, {"hub": "facebook/opt-13b"})
    for file in (tmp_path / "home/hub").rglob("pytorch_model-00002*"):
        file.unlink()
    shutil.rmtree(tmp_path / "model-step/resources")
    done = cache_model(tmp_path, hub, {"hub": "facebook/opt-13b"}, HF_HUB_OFFLINE="1")
    assert "the hub was not asked, and this is what the cache has of it" in done.message
    assert "pytorch_model-00002-of-00003.bin (1 of 3 weight files are missing)" in done.message


@pytest.fixture(scope="module")
def large(serving: Hub) -> str:
    """A model of two large pickled files."""
    name = "large/opt"
    content = opt("125m")
    main = content["revisions"]["main"]
    config = json.loads(main["config.json"]) | {"hidden_size": 512, "word_embed_proj_dim": 512, "ffn_dim": 2048}
    config |= {"num_hidden_layers": 8}
    body = renamed(cast("float16", weights(config)), "model.", "")
    main = {file: text for file, text in main.items() if not file.endswith(".bin")}
    main |= {"config.json": as_json(config)} | stored(body, "bin", 2)
    write(serving.root / "models" / name, {"main": main})
    return name


def test_a_killed_download_goes_on_where_it_was(hub: Hub, large: str, tmp_path: Path) -> None:
    """Whole blocks of 10 MB are written; the next process asks for the rest."""
    hub.faults({"path": "GET /cdn/", "kind": "stall", "bytes": 21 << 20, "seconds": 30, "times": 1})
    partials = tmp_path / "home/hub/models--large--opt/blobs"

    def kill(pid: int) -> None:
        deadline = time.monotonic() + 60
        while not any(file.stat().st_size >= 10 << 20 for file in partials.glob("*.partial")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)

    killed = cache_model(tmp_path, hub, {"hub": large}, during=kill)
    assert killed.status == -signal.SIGKILL
    (partial,) = partials.glob("*.partial")
    there = partial.stat().st_size
    hub.faults()
    hub.requests.clear()
    done = cache_model(tmp_path, hub, {"hub": large})
    assert done.status == 0, done.log
    assert [one["range"] for one in hub.requests if one["path"].startswith("/cdn/")][0] == f"bytes={there}-"
    assert "goes on at" in done.log
    assert not list(partials.glob("*partial*")) and not list(partials.glob("*incomplete*"))
    assert load_policy(done.output / "model", "fp32").num_parameters() > 20e6


def test_what_came_broken_is_not_kept(hub: Hub, large: str, tmp_path: Path) -> None:
    partials = tmp_path / "home/hub/models--large--opt/blobs"
    partials.mkdir(parents=True)
    for file in files_of(hub, large).glob("*.bin"):
        (partials / f"{sha256_file(file).removeprefix('sha256:')}.partial").write_bytes(b"x" * (11 << 20))
    done = cache_model(tmp_path, hub, {"hub": large})
    assert "what came is not what the hub lists (another SHA-256); it was removed: try again" in done.message
    for _ in range(2):
        done = cache_model(tmp_path, hub, {"hub": large})
    assert done.status == 0, done.log
