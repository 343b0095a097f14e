"""Datasets of a hub through the script as its rule calls it: the commit that they are of, and what faults do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.hub.caching import cache_dataset
from tests.hub.datasets import gsm8k
from tests.hub.repository import REVISION, write
from tests.hub.server import TOKENS, Hub

PLAIN = "Dahoas/synthetic-instruct-gptj-pairwise"


def test_a_revision_is_fixed_as_a_commit(hub: Hub, tmp_path: Path) -> None:
    done = cache_dataset(tmp_path, hub, {"hub": PLAIN})
    assert done.status == 0, done.log
    commit = hub.commits("datasets", PLAIN)[REVISION]
    assert done.report["source"] == {"hub": PLAIN, "revision": None, "commit": commit, "license": "apache-2.0"}
    again = cache_dataset(tmp_path / "again", hub, {"hub": PLAIN, "revision": commit})
    assert again.report["fingerprint"] == done.report["fingerprint"]


def test_a_warm_cache_needs_no_hub(hub: Hub, tmp_path: Path) -> None:
    first = cache_dataset(tmp_path / "first", hub, {"hub": PLAIN}, home="../home")
    hub.requests.clear()
    offline = cache_dataset(tmp_path / "offline", hub, {"hub": PLAIN}, home="../home", HF_HUB_OFFLINE="1")
    assert offline.status == 0, offline.log
    assert hub.requests == []
    began = time.monotonic()
    down = cache_dataset(tmp_path / "down", None, {"hub": PLAIN}, home="../home")
    assert down.status == 0, down.log
    assert time.monotonic() - began < 20
    assert "from the cache is taken: the hub cannot be reached" in down.log
    assert first.report == offline.report == down.report


def test_without_the_hub_no_other_commit_is_taken(hub: Hub, tmp_path: Path) -> None:
    """`datasets` takes the newest that it finds."""
    write(hub.root / "datasets/mine/changing", {REVISION: lines(3)})
    cache_dataset(tmp_path / "old", hub, {"hub": "mine/changing"}, home="../home")
    old = hub.commits("datasets", "mine/changing")[REVISION]
    write(hub.root / "datasets/mine/changing", {REVISION: lines(5)})
    new = cache_dataset(tmp_path / "new", hub, {"hub": "mine/changing"}, home="../home")
    assert new.report["source"]["commit"] != old
    asked = {"hub": "mine/changing", "revision": old}
    done = cache_dataset(tmp_path / "asked", hub, asked, home="../home", HF_HUB_OFFLINE="1")
    said = f"those of commit {new.report['source']['commit']}, in the place of those of {old}"
    assert said in done.message


def lines(times: int) -> dict[str, bytes]:
    row = '{"prompt": "question NUMBER", "chosen": " good", "rejected": " bad"}\n'
    return {"train.jsonl": "".join(row.replace("NUMBER", str(number)) for number in range(10 * times)).encode()}


@pytest.mark.parametrize(
    ("source", "token", "said"),
    [
        ({"hub": "mine/named"}, None, "name one in `name` of the source: 'main', 'socratic'"),
        ({"hub": "dahoas/rm-statik"}, None, "did you mean 'Dahoas/rm-static'?"),
        ({"hub": PLAIN, "revision": "v7"}, None, "the hub has no such name, revision, configuration or split"),
        ({"hub": PLAIN, "train_split": "trian"}, None, "Unknown split"),
        ({"hub": "gated/rows"}, None, "/datasets/gated/rows with your account, and accept its licence"),
        ({"hub": "gated/rows"}, TOKENS["stranger"], "/datasets/gated/rows with your account, and accept its licence"),
        ({"hub": "gated/rows"}, "hf_WrongTokenWrongToken", "the hub does not accept the token"),
    ],
)
def test_what_hinders_is_said_by_its_cause(
    hub: Hub, tmp_path: Path, source: dict[str, Any], token: str | None, said: str
) -> None:
    write(hub.root / "datasets/gated/rows", {REVISION: lines(1)}, gated="manual")
    write(hub.root / "datasets/mine/named", {REVISION: gsm8k()})
    done = cache_dataset(tmp_path, hub, dict(source), **({"HF_TOKEN": token} if token else {}))
    assert said in done.message
    assert done.message.startswith("error: datasets.mine.source.hub: ")
    assert token is None or token not in done.log


def test_a_dataset_that_was_renamed_is_found_and_its_name_said(hub: Hub, tmp_path: Path) -> None:
    columns = {"shape": {"shape": "instructions", "columns": {"instruction": "question", "output": "answer"}}}
    done = cache_dataset(tmp_path, hub, {"hub": "gsm8k", "name": "main", **columns})
    assert done.status == 0, done.log
    assert "gsm8k: the hub calls it openai/gsm8k now; write that" in done.log


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"path": "GET /cdn/", "kind": "refuse"}, "the hub cannot be reached"),
        ({"path": "GET /cdn/", "kind": "drop", "bytes": 100}, "the hub cannot be reached"),
        ({"path": "/cdn/", "kind": "status", "status": 503}, "the hub cannot be reached"),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
@pytest.mark.slow
def test_a_connection_that_breaks_is_one_message(hub: Hub, tmp_path: Path, fault: dict[str, object], said: str) -> None:
    hub.faults(fault)
    done = cache_dataset(tmp_path, hub, {"hub": PLAIN})
    assert said in done.message
    assert "run the same command again, what was fetched is kept" in done.message


def test_broken_lines_and_unlike_files_are_one_message(hub: Hub, tmp_path: Path) -> None:
    good = lines(1)["train.jsonl"]
    write(hub.root / "datasets/mine/broken", {REVISION: {"train.jsonl": good + b'{"prompt": "cut'}})
    write(hub.root / "datasets/mine/unlike", {REVISION: {"a.jsonl": good, "b.jsonl": b'{"other": 1}\n'}})
    for name in ("mine/broken", "mine/unlike"):
        message = cache_dataset(tmp_path / name, hub, {"hub": name}).message
        assert message.startswith(f"error: datasets.mine.source.hub: '{name}' cannot be loaded: ")


def test_sizes_of_an_earlier_commit_in_the_card_do_no_harm(hub: Hub, tmp_path: Path) -> None:
    card = (
        "---\ndataset_info:\n  features:\n  - name: prompt\n    dtype: string\n  - name: chosen\n    dtype: string\n"
        "  - name: rejected\n    dtype: string\n"
        "  splits:\n  - name: train\n    num_bytes: 7\n    num_examples: 999\n---\n"
    )
    write(hub.root / "datasets/mine/sizes", {REVISION: {"README.md": card.encode(), **lines(1)}})
    done = cache_dataset(tmp_path, hub, {"hub": "mine/sizes"})
    assert done.status == 0, done.log
    assert done.report["splits"]["train"]["rows_read"] == 10
