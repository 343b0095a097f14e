"""Exceptions of libraries: a remedy where the cause is known, all of the library's words where it is not."""

from __future__ import annotations

import errno
import gzip
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import datasets
import httpx2
import pyarrow as pa
import pyarrow.parquet
import pytest
from huggingface_hub import errors
from safetensors import SafetensorError

from rlhf import hub
from rlhf.causes import FOREIGN, cause
from rlhf.config.sources import DatasetSource, ModelSettings
from rlhf.data import sources
from rlhf.errors import UserError
from rlhf.functions import load_function, load_judge
from rlhf.models import cache
from rlhf.models.loading import load_policy, load_tokenizer


def answered(kind: type[errors.HfHubHTTPError], status: int, address: str = "https://hub/x") -> errors.HfHubHTTPError:
    return kind(f"{status} of the hub", response=httpx2.Response(status, request=httpx2.Request("GET", address)))


def made_from(outer: Exception, *inner: Exception) -> Exception:
    """An exception as it is raised from another one, which was raised from the next."""
    chain = [outer, *inner]
    for error, reason in zip(chain, chain[1:], strict=False):
        error.__cause__ = reason
    return outer


# Name -> (exception as the installed libraries raise it, kind, part of the remedy).
KNOWN: dict[str, tuple[Exception, str, str]] = {
    "no route": (
        made_from(OSError("We couldn't connect"), errors.LocalEntryNotFoundError("no file"), httpx2.ConnectError("-2")),
        "network",
        "reaches the hub",
    ),
    "too slow": (httpx2.ReadTimeout("timed out"), "network", "reaches the hub"),
    "datasets without network": (ConnectionError("Couldn't reach 'a/b' on the Hub"), "network", "reaches the hub"),
    "switched off": (
        made_from(ConnectionError("Couldn't reach"), errors.OfflineModeIsEnabled("offline")),
        "network",
        "HF_HUB_OFFLINE is set",
    ),
    "hub in trouble": (answered(errors.HfHubHTTPError, 503), "network", ""),
    "asked to wait": (answered(errors.HfHubHTTPError, 429), "network", ""),
    "gated": (
        made_from(
            OSError("gated repo"), answered(errors.GatedRepoError, 403, "https://hub/api/models/a/b/revision/main")
        ),
        "permission",
        "open https://hub/a/b with your account, and accept its licence or ask for access; then log in on this machine",
    ),
    "gated file": (
        answered(errors.GatedRepoError, 401, "https://hub/datasets/a/b/resolve/main/x.gz"),
        "permission",
        "open https://hub/datasets/a/b with your account",
    ),
    "bad token": (answered(errors.HfHubHTTPError, 401), "permission", "HF_TOKEN to a token that is valid"),
    "gated dataset": (
        datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub."),
        "permission",
        "accept its licence or ask for access",
    ),
    "no such model": (
        made_from(OSError("is not a local folder"), answered(errors.RepositoryNotFoundError, 401)),
        "name",
        "how it is spelt",
    ),
    "no such revision": (answered(errors.RevisionNotFoundError, 404), "name", "how it is spelt"),
    "no such split": (ValueError("Unknown split \"trian\". Should be one of ['train']."), "name", "how it is spelt"),
    "no such configuration": (ValueError("BuilderConfig 'x' not found. Available: ['main']"), "name", "spelt"),
    "no configuration": (
        ValueError(
            "Config name is missing.\nPlease pick one among the available configs: ['main', 'socratic']\nExample"
        ),
        "name",
        "name one in `name` of the source: 'main', 'socratic'",
    ),
    "cut": (
        OSError("Consistency check failed: file should be of size 2 but has size 1 (x)."),
        "network",
        "same command",
    ),
    "cut and closed": (httpx2.RemoteProtocolError("peer closed connection"), "network", "what was fetched is kept"),
    "more than weights": (
        UnpicklingError(
            "Weights only load failed.\n\n\nTrying to load unsupported GLOBAL a.b.\n\nCheck the documentation of torch"
        ),
        "file",
        "take a copy with safetensors",
    ),
    "cut pickle": (
        made_from(ValueError("x"), RuntimeError("PytorchStreamReader failed reading zip archive")),
        "damage",
        "download",
    ),
    "sentencepiece": (
        ImportError("\nLlamaConverter requires the SentencePiece library but it was not found in your environment."),
        "package",
        "pip install sentencepiece",
    ),
    "protobuf": (ImportError("X requires the protobuf library but it was not"), "package", "pip install protobuf"),
    "tiktoken": (
        ImportError("`tiktoken` is required to read a `tiktoken` file. Install it with `pip install tiktoken`."),
        "package",
        "pip install tiktoken",
    ),
    "bitsandbytes": (
        ImportError("4-bit requires bitsandbytes: `pip install -U bitsandbytes>=0.46.1`"),
        "package",
        "pip install bitsandbytes",
    ),
    "module": (ModuleNotFoundError("No module named 'einops'", name="einops"), "package", "pip install einops"),
    "own code": (
        made_from(ValueError("The repository t contains custom code which must be executed"), EOFError("reading")),
        "code",
        "trust_remote_code: true",
    ),
    "disk": (
        made_from(RuntimeError("could not write"), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
        "disk",
        "free space",
    ),
    "not allowed": (PermissionError(errno.EACCES, "Permission denied"), "permission", "change the permissions"),
    "no weights": (
        OSError("x does not appear to have a file named model.safetensors or model.safetensors.index.json"),
        "file",
        "download the rest of the folder",
    ),
    "safetensors": (SafetensorError("incomplete metadata, file not fully covered"), "damage", "download"),
    "zip": (zipfile.BadZipFile("File is not a zip file"), "damage", "download"),
    "gzip": (gzip.BadGzipFile("Not a gzipped file"), "damage", "download"),
    "parquet": (
        made_from(datasets.exceptions.DatasetGenerationError("while generating"), pa.ArrowInvalid("magic bytes")),
        "damage",
        "download",
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_cause_is_found_in_the_chain(name: str) -> None:
    error, kind, remedy = KNOWN[name]
    found = cause(error)
    assert found.kind == kind
    assert remedy in found.remedy
    assert isinstance(error, FOREIGN) or name == "disk"
    others = {"network": "HF_TOKEN", "permission": "reaches the hub", "damage": "hub", "package": "hub", "disk": "hub"}
    assert others.get(kind, "no other") not in found.remedy
    assert ("pickled" in str(found)) == (name == "more than weights")


@pytest.mark.parametrize("text", ["'su'", "shapes " + "cannot be multiplied " * 60 + "END", "first line\nsecond line"])
def test_an_unknown_cause_is_said_to_be_one_with_all_words(text: str) -> None:
    found = cause(made_from(ValueError(text), KeyError("inner words")))
    assert (found.kind, found.remedy) == ("unknown", "")
    assert str(found).startswith("the cause is not known to this workflow; the library says: ValueError: ")
    for words in (" ".join(text.split()), "made from KeyError: 'inner words'"):
        assert words in str(found)


def test_a_name_that_cannot_be_imported_from_a_package_is_no_missing_package() -> None:
    assert cause(ImportError("cannot import name 'x' from 'json'", name="json")).kind == "unknown"


def test_a_users_error_inside_a_library_speaks_for_itself() -> None:
    assert str(cause(made_from(ValueError("wrapped"), UserError("key: do this")))) == "key: do this"


# Where they are used


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> hub.Found:
    """What the hub has under any name."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    files = dict.fromkeys(("config.json", "model.safetensors", "tokenizer.json"))
    one = hub.Found("a/b", "a/b", "model", "0" * 40, files, reached=True)
    monkeypatch.setattr(hub, "find", lambda *_: one)
    return one


@pytest.mark.parametrize("name", ["no route", "gated dataset", "parquet", "no such split", "disk"])
def test_a_hub_dataset_that_fails_says_why(name: str, monkeypatch: pytest.MonkeyPatch, found: hub.Found) -> None:
    error, _, remedy = KNOWN[name]
    wrapped = error if isinstance(error, FOREIGN) else error.__cause__
    monkeypatch.setattr(datasets, "load_dataset", raising(wrapped))
    with pytest.raises(UserError, match="datasets.mine.source.hub: 'a/b' cannot be loaded: ") as raised:
        sources.load_rows(DatasetSource(hub="a/b"), "datasets.mine.source")
    assert remedy in str(raised.value)


@pytest.mark.parametrize("name", ["no route", "gated", "own code", "bitsandbytes", "no weights"])
def test_a_hub_model_that_fails_says_why(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: hub.Found
) -> None:
    error, _, remedy = KNOWN[name]
    monkeypatch.setattr(hub, "fetch", lambda *_: found.snapshot)
    monkeypatch.setattr(cache, "require_model_folder", lambda *_: None)
    monkeypatch.setattr(cache, "load_as_published", raising(error))
    settings = ModelSettings(source={"hub": "a/b"})
    with pytest.raises(UserError, match="models.mine.source.hub: no usable tokenizer in 'a/b': ") as raised:
        cache.cache_model(settings, tmp_path / "out", "models.mine")
    assert remedy in str(raised.value)
    monkeypatch.setattr(hub, "fetch", raising(error))
    with pytest.raises(UserError, match="models.mine.source.hub: 'a/b' cannot be fetched: ") as raised:
        cache.cache_model(settings, tmp_path / "out", "models.mine")
    assert remedy in str(raised.value)


def test_a_saved_folder_with_a_broken_file_is_told_from_one_of_another_kind(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"prompt": "p"}]).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(UserError, match="a file is damaged, or not what its name says .* copy it again"):
        sources.load_rows(DatasetSource(path=str(tmp_path / "saved")), "datasets.mine.source")


def test_stages_say_what_a_folder_suffers_from(gpt2_folder: Path) -> None:
    weights = gpt2_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UserError, match="no readable weights: a file is damaged.*rlhf-verify --discard"):
        load_policy(gpt2_folder, "fp32")
    (gpt2_folder / "tokenizer.json").write_text('{"cut')
    with pytest.raises(UserError, match="no tokenizer can be loaded: a file is damaged"):
        load_tokenizer(gpt2_folder)
    (gpt2_folder / "config.json").write_text(json.dumps({"model_type": "su"}))
    with pytest.raises(UserError, match="no model folder: the cause is not known .* model type `su`"):
        load_policy(gpt2_folder, "fp32")


# Functions of the user


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes the user's module `mine_of_causes`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "mine_of_causes", raising=False)

    def write(text: str) -> Path:
        (tmp_path / "mine_of_causes.py").write_text(text)
        return tmp_path / "mine_of_causes.py"

    return write


def test_an_error_inside_a_judge_is_the_users_own_with_file_and_line(mine: Any, caplog: Any) -> None:
    file = mine("import json\n\ndef gold(prompt, answer, finished):\n    return json.loads(answer)['score']\n")
    judge = load_judge("mine_of_causes:gold")
    assert judge is not None
    assert judge("p", '{"score": 2}', True) == 2.0
    with pytest.raises(UserError) as raised:
        judge("p", "no json", True)
    place = f"gold_reward: mine_of_causes:gold failed in {file}, line 4 (gold): JSONDecodeError: Expecting value"
    assert str(raised.value).startswith(place)
    assert "Traceback" in caplog.text  # the log has the rest
    with pytest.raises(UserError, match=r"KeyError: 'score'"):
        judge("p", "{}", True)


@pytest.mark.parametrize("value", ["None", "'good'", "[1, 2]"])
def test_a_judge_must_return_a_number(mine: Any, value: str) -> None:
    mine(f"def gold(prompt, answer, finished):\n    return {value}\n")
    judge = load_judge("mine_of_causes:gold")
    assert judge is not None
    with pytest.raises(UserError, match="gold_reward: mine_of_causes:gold must return a number; it returned"):
        judge("p", "a", True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\ndef f(:\n", r"failed in .*mine_of_causes.py, line 2: SyntaxError"),
        ("x = 1\n\ny = 1 / 0\n", r"failed in .*mine_of_causes.py, line 3 \(<module>\): ZeroDivisionError"),
        ("import not_there_at_all\n", "cannot import 'mine_of_causes' .*not_there_at_all"),
    ],
)
def test_a_module_that_cannot_be_imported_says_where(mine: Any, text: str, said: str) -> None:
    mine(text)
    with pytest.raises(UserError, match=said):
        load_function("mine_of_causes:f", "gold_reward")


def test_a_lack_of_memory_is_no_mistake_of_the_function(mine: Any) -> None:
    mine("def gold(prompt, answer, finished):\n    raise MemoryError\n")
    judge = load_judge("mine_of_causes:gold")
    assert judge is not None
    with pytest.raises(MemoryError):
        judge("p", "a", True)
