"""What comes from others (names, files, models) cannot leave its place, run code, or be shown where it is secret."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file

from rlhf.config import Fingerprints, parse, read_facts, resolve
from rlhf.config.sources import DatasetSource, ModelSettings
from rlhf.data.example import UnreadableRow
from rlhf.data.sources import load_rows
from rlhf.errors import UserError
from rlhf.models.cache import cache_model
from tests.project import tiny_config
from tests.unit.conftest import edit_json, make_model

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "hf_" + "Abcdefgh12345678" * 2


def refused_config(section: str, source: dict[str, Any]) -> str:
    config = tiny_config()
    config[section]["mine"] = {"source": source}
    with pytest.raises(UserError) as caught:
        parse(config)
    return str(caught.value)


# Names


@pytest.mark.parametrize("section", ["datasets", "models"])
@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc",
        "./x",
        "a/b/c",
        "a/../b",
        "~/x",
        "a b",
        "-x",
        "a/-x",
        "",
        "a\n",
        "$(x)",
        "ü/x",
        "x" * 300,
        "s3://x",
    ],
)
def test_a_hub_name_is_no_path_and_no_address(section: str, name: str) -> None:
    assert f"{section}.mine.source" in refused_config(section, {"hub": name})
    if name != "a/b/c":
        assert f"{section}.mine.source" in refused_config(section, {"hub": "org/x", "revision": name})


@pytest.mark.parametrize("name", ["org/model", "gpt2", "Org_1/model-v1.0", "org/a--b", "org/_x"])
def test_usual_hub_names_are_taken(name: str) -> None:
    config = tiny_config()
    for revision in (None, "main", "v1.0", "refs/pr/12", "0a1b2c3d"):
        config["models"]["mine"] = {"source": {"hub": name, "revision": revision}}
        parse(config)


@pytest.mark.parametrize("section", ["datasets", "models"])
@pytest.mark.parametrize(
    "path", ["", " ", "a\nb.jsonl", "a\0b", "{id}", "https://host/x.jsonl", "s3://bucket/x", "file:///etc"]
)
def test_a_path_is_the_name_of_a_local_file(section: str, path: str) -> None:
    assert f"{section}.mine.source: path: " in refused_config(section, {"path": path})


@pytest.mark.parametrize("path", [[], {}, {"eval": "a"}, {"train": "a", "test": "b"}, ["a", ""]])
def test_a_group_of_files_is_complete_and_named(path: Any) -> None:
    assert "datasets.mine.source: path: " in refused_config("datasets", {"path": path})


@pytest.mark.parametrize("key", ["generator", "gold_reward"])
@pytest.mark.parametrize("name", ["rlhf.data.reviews", ":x", "a:", "a.:b", ".a:b", "a:b:c", "a:b()", "os;x:y", "a b:c"])
def test_a_function_has_a_module_and_a_name(key: str, name: str) -> None:
    config = tiny_config()
    section = config["datasets"]["reviews"]
    (section["source"] if key == "generator" else section)[key] = name
    with pytest.raises(UserError, match=key):
        parse(config)


@pytest.mark.parametrize("key", ["../x", "sft/../x", "", ".", "sft.", "__class__", "$(touch x)"])
def test_keys_of_a_sweep_are_keys_of_the_configuration(key: str) -> None:
    config = tiny_config()
    config["experiments"]["tiny"]["sweep"] = {key: [1]}
    with pytest.raises(UserError, match=r"experiments\.tiny"):
        resolve(config, lambda path, key: path)


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "$(touch PWNED)", "-rf", "a b;c", "é" * 200, "..", "'\"`", "%s", "*"]
)
def test_folders_of_stages_have_plain_names(name: str) -> None:
    config = tiny_config()
    config["datasets"]["mine"] = {"source": {"path": name}}
    config["models"]["mine"] = {"source": {"path": name}}
    config["defaults"] |= {"data_path": ["mine"], "policy": "mine", "reward_model": "mine"}
    for _, identifier in resolve(config, lambda path, key: "content").stages:
        assert re.fullmatch(r"[a-z0-9][a-z0-9-]*-[0-9a-f]{8}", identifier), identifier
        assert len(identifier) < 64


# The shell

UNQUOTED = {"params.samples", "threads"}  # made of numbers and fixed words by this code


def test_every_value_in_a_shell_command_is_quoted() -> None:
    values = []
    for file in sorted((ROOT / "workflow/rules").glob("*.smk")):
        for line in file.read_text().splitlines():
            if line.lstrip().startswith(('"', 'f"')) and ("exec " in line or " --" in line or "printf" in line):
                values += re.findall(r"\{([^{}]+)\}", line)
    assert len(values) > 50
    assert {value for value in values if not value.endswith(":q")} == UNQUOTED


# Secrets


@pytest.mark.parametrize("section", ["datasets", "models"])
@pytest.mark.parametrize("key", ["hub", "path", "revision"])
@pytest.mark.parametrize(
    "value", [f"https://me:{TOKEN}@huggingface.co/org/x", f"org/x?token={TOKEN}", f"https://{TOKEN}@h/x"]
)
def test_a_token_in_a_name_is_refused_and_not_shown(section: str, key: str, value: str) -> None:
    if key == "path" and "://" not in value:
        return  # a file may have any name
    source = {"hub": "org/x", "revision": value} if key == "revision" else {key: value}
    message = refused_config(section, source)
    assert f"{section}.mine.source" in message
    assert TOKEN not in message and TOKEN[3:] not in message


def test_long_values_are_cut_in_messages() -> None:
    assert len(refused_config("models", {"hub": "a b" * 10_000})) < 1000


# Links and special files


@pytest.fixture
def fingerprint(tmp_path: Path) -> Callable[[Path], str]:
    return lambda path: Fingerprints(tmp_path / "memory.json").of(str(path), "models.mine.source.path")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with a file, and a secret outside."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "model/inner").mkdir(parents=True)
    (tmp_path / "model/inner/a.txt").write_text("a")
    return tmp_path / "model"


@pytest.mark.parametrize("target", ["../../secret", "/etc/passwd", "../..", "inner/../../../secret"])
def test_a_link_that_leaves_the_folder_is_refused(tree: Path, fingerprint: Any, target: str) -> None:
    (tree / "inner/link").symlink_to(target)
    with pytest.raises(UserError, match=r"models\.mine\.source\.path: .*inner/link' is a link that leaves .*copy"):
        fingerprint(tree)


def test_a_chain_of_links_is_followed_to_its_end(tree: Path, fingerprint: Any) -> None:
    (tree / "first").symlink_to("second")
    (tree / "second").symlink_to("../secret")
    with pytest.raises(UserError, match="is a link that leaves"):
        fingerprint(tree)


@pytest.mark.parametrize("target", ["nowhere", "link"])
def test_a_link_to_nothing_is_refused(tree: Path, fingerprint: Any, target: str) -> None:
    (tree / "link").symlink_to(target)
    with pytest.raises(UserError, match="which does not exist"):
        fingerprint(tree)


def test_links_inside_the_folder_and_to_the_folder_are_followed(tree: Path, fingerprint: Any) -> None:
    (tree / "b.txt").symlink_to("inner/a.txt")
    (tree / "again").symlink_to("inner")
    before = fingerprint(tree)
    (tree.parent / "named").symlink_to(tree)
    assert fingerprint(tree.parent / "named") == before
    (tree / "inner/a.txt").write_text("changed")
    assert fingerprint(tree) != before


def test_a_hub_cache_links_to_its_blobs_only(tmp_path: Path, fingerprint: Any) -> None:
    repository = tmp_path / "models--org--x"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs/0a").write_text("weights")
    (repository / "snapshots/main").mkdir(parents=True)
    (repository / "snapshots/main/model.safetensors").symlink_to("../../blobs/0a")
    before = fingerprint(repository / "snapshots/main")
    (repository / "blobs/0a").write_text("other weights")
    assert fingerprint(repository / "snapshots/main") != before
    (repository / "secret").write_text("secret")
    (repository / "snapshots/main/config.json").symlink_to("../../secret")
    with pytest.raises(UserError, match="is a link that leaves"):
        fingerprint(repository / "snapshots/main")


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
@pytest.mark.parametrize("inside", [True, False])
def test_what_is_no_file_is_refused_without_reading_it(
    tree: Path, fingerprint: Any, kind: str, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)  # names of sockets are short
    if kind == "device" and inside:
        return  # making one takes more rights
    if kind == "pipe":
        os.mkfifo("config.json")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("config.json")
    place = tree if inside else Path("/dev/zero") if kind == "device" else tree / "config.json"
    with pytest.raises(UserError, match="neither a file nor a folder, but a pipe, a socket or a device"):
        fingerprint(place)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read_is_named(tree: Path, fingerprint: Any) -> None:
    (tree / "inner/a.txt").chmod(0)
    with pytest.raises(UserError, match=r"a\.txt' cannot be read \(Permission denied\)"):
        fingerprint(tree)


def test_names_that_are_no_unicode_have_a_hash(tree: Path, fingerprint: Any) -> None:
    before = fingerprint(tree)
    (tree / os.fsdecode(b"\xff.bin")).write_text("x")
    assert fingerprint(tree) != before


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "\0"])
def test_a_damaged_memory_of_hashes_is_made_anew(tree: Path, content: str) -> None:
    memory = tree.parent / "memory.json"
    expected = Fingerprints(memory).of(str(tree), "key")
    memory.write_text(content)
    fingerprints = Fingerprints(memory)
    assert fingerprints.of(str(tree), "key") == expected
    fingerprints.save()
    assert json.loads(memory.read_text())


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"linear_modules": []}'])
def test_a_damaged_manifest_of_a_model_names_the_remedy(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json: damaged; run `rlhf-verify --discard`"):
        read_facts(tmp_path / "manifest.json")


# Pickles and code


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def evil(tmp_path: Path) -> Any:
    """The pickle that must not be read; the mark is looked for at the end."""
    yield Evil(tmp_path / "PWNED")
    assert not (tmp_path / "PWNED").exists()


def refused_model(folder: Path, output: Path) -> str:
    with pytest.raises(UserError) as caught:
        cache_model(ModelSettings(source={"path": str(folder)}), output, "models.mine")
    assert not output.exists()
    message = str(caught.value)
    assert message.startswith("models.mine.source.path: ")
    return message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pytorch_model.bin", None),
        ("model.safetensors", "is no safetensors file but a pickle"),
        ("model.bin", "model.bin is all it has for weights, and it is not known by this name what it holds"),
        ("model.pt", "model.pt is all it has for weights, and it is not known by this name what it holds"),
    ],
)
@pytest.mark.parametrize("kind", ["pickle", "torch", "one weight"])
def test_what_a_pickle_would_run_is_not_run(
    gpt2_folder: Path, tmp_path: Path, evil: Evil, name: str, said: str | None, kind: str
) -> None:
    """Pickled weights are read by a loader that knows tensors alone; it says what else is in a file."""
    weights = load_file(gpt2_folder / "model.safetensors")
    (gpt2_folder / "model.safetensors").unlink()
    if kind == "pickle":
        (gpt2_folder / name).write_bytes(pickle.dumps(evil, protocol=2))
    else:
        rest = weights if kind == "one weight" else {}
        torch.save({**rest, "transformer.wte.weight": evil}, gpt2_folder / name)
    message = refused_model(gpt2_folder, tmp_path / "output")
    assert "no usable model" in message
    assert (said or "it is pickled and holds more than weights, which torch's restricted loader refuses") in message
    assert said or "posix.mkdir" in message  # the reason
    assert "weights_only" not in message  # no advice to run it


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": {"a": 1}}, "holds dict under 'state_dict', and weights are names and dense tensors"),
        ([1, 2], "holds no weights but a list"),
        ({}, "holds no weights but a dict"),
        ({"a": "text"}, "holds str under 'a'"),
        ({1: torch.zeros(1)}, "holds Tensor under 1"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "holds Tensor under 'a'"),
    ],
)
def test_a_pickle_without_weights_says_what_it_has(
    gpt2_folder: Path, tmp_path: Path, content: object, said: str
) -> None:
    (gpt2_folder / "model.safetensors").unlink()
    torch.save(content, gpt2_folder / "pytorch_model.bin")
    assert said in refused_model(gpt2_folder, tmp_path / "output")


@pytest.mark.parametrize("target", ["evil.bin", "../other/model.safetensors", "/etc/passwd", "a\\b.safetensors"])
def test_an_index_names_weights_beside_it_only(gpt2_folder: Path, tmp_path: Path, evil: Evil, target: str) -> None:
    shutil.copytree(gpt2_folder, tmp_path / "other")
    names = load_file(gpt2_folder / "model.safetensors")
    (gpt2_folder / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": evil}, gpt2_folder / "evil.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, target)}
    (gpt2_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    said = f"names {target!r}, which is no safetensors file beside it"
    assert said in refused_model(gpt2_folder, tmp_path / "output")
    (gpt2_folder / "model.safetensors.index.json").rename(gpt2_folder / "pytorch_model.bin.index.json")
    said = "torch's restricted loader refuses" if target == "evil.bin" else "which is no pickled weight file beside it"
    assert said in refused_model(gpt2_folder, tmp_path / "output")


def test_an_adapter_does_not_load_another_model(gpt2_folder: Path, tmp_path: Path) -> None:
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(gpt2_folder), "task_type": "CAUSAL_LM"}
    (gpt2_folder / "adapter_config.json").write_text(json.dumps(adapter))
    assert "has adapter_config.json beside whole weights" in refused_model(gpt2_folder, tmp_path / "output")


def test_code_of_a_model_folder_does_not_run(gpt2_folder: Path, tmp_path: Path, evil: Evil) -> None:
    (gpt2_folder / "mine.py").write_text(f"import os\nos.mkdir({str(evil.mark)!r})\n")
    code = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    edit_json(gpt2_folder / "config.json", model_type="mine", auto_map=code)
    edit_json(gpt2_folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.Tokenizer", None]})
    assert "no usable model" in refused_model(gpt2_folder, tmp_path / "output")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"[1]"),
        ("config.json", b"\xff\xfe"),
        ("config.json", b'{"model_type": "gpt2", "n_embd": "wide"}'),
        ("config.json", b'{"model_type": ["gpt2"]}'),
        ("tokenizer.json", b"{}"),
        ("tokenizer_config.json", b"[]"),
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 64),
    ],
)
def test_a_damaged_file_of_a_model_is_one_message(gpt2_folder: Path, tmp_path: Path, file: str, content: bytes) -> None:
    (gpt2_folder / file).write_bytes(content)
    assert "no usable" in refused_model(gpt2_folder, tmp_path / "output")


def test_a_local_folder_does_not_pass_for_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its content would be in no ID."""
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "org/x", "gpt2")
    with pytest.raises(UserError, match=r"models\.mine\.source\.hub: there is a local file or folder 'org/x'"):
        cache_model(ModelSettings(source={"hub": "org/x"}), tmp_path / "out", "models.mine")
    with pytest.raises(UserError, match=r"datasets\.mine\.source\.hub: there is a local 'org/x'"):
        load_rows(DatasetSource(hub="org/x"), "datasets.mine.source")


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv", "rows.parquet", "rows.jsonl.gz", "rows.pkl"])
def test_a_pickle_is_no_dataset(tmp_path: Path, evil: Evil, name: str) -> None:
    """It is refused, or some lines of nonsense, each of which is counted; nothing in it is run."""
    (tmp_path / name).write_bytes(pickle.dumps([evil]))
    try:
        rows = list(load_rows(DatasetSource(path=str(tmp_path / name)), "x").train)
    except UserError as error:
        assert "not readable as" in str(error) or "no known format" in str(error) or "holds no row" in str(error)
        return
    assert name in ("rows.jsonl", "rows.csv")
    assert all(isinstance(row, UnreadableRow) or all(isinstance(text, str) for text in row.values()) for row in rows)


@pytest.mark.parametrize("split", ["", "train"])
def test_a_saved_dataset_names_files_beside_it_only(tmp_path: Path, split: str) -> None:
    rows = datasets.Dataset.from_list([{"prompt": "a", "chosen": "b"}])
    rows.save_to_disk(tmp_path / "other")
    (datasets.DatasetDict({split: rows}) if split else rows).save_to_disk(tmp_path / "saved")
    stolen = "../" * (2 if split else 1) + "other/data-00000-of-00001.arrow"
    edit_json(tmp_path / "saved" / split / "state.json", _data_files=[{"filename": stolen}])
    with pytest.raises(UserError, match=r"state\.json' names '\.\./.*', which is not beside it"):
        load_rows(DatasetSource(path=str(tmp_path / "saved")), "x")


@pytest.mark.parametrize("file", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
@pytest.mark.parametrize("damage", ["pickle", "empty", "[]"])
def test_a_damaged_saved_dataset_is_one_message(tmp_path: Path, evil: Evil, file: str, damage: str) -> None:
    datasets.Dataset.from_list([{"prompt": "a", "chosen": "b"}]).save_to_disk(tmp_path / "saved")
    content = {"pickle": pickle.dumps(evil), "empty": b"", "[]": b"[]"}[damage]
    (tmp_path / "saved" / file).write_bytes(content)
    with pytest.raises(UserError, match=r"x\.path: .*saved' is "):
        list(load_rows(DatasetSource(path=str(tmp_path / "saved")), "x").train)


def test_no_code_reads_pickles_or_yaml_objects() -> None:
    """numpy.load refuses pickles unless it is told otherwise; torch's restricted loader makes tensors alone."""
    words = (r"allow_pickle", r"yaml\.(?:unsafe_|full_)?load\(", r"pickle\.", r"import pickle")
    restricted = r"torch\.load\((?![^()]*weights_only=True)"
    unsafe = re.compile("|".join((*words, restricted, r"(?<![.\w])(?:eval|exec)\(", "shell=True")))
    for file in sorted((ROOT / "workflow").rglob("*.py")):
        found = unsafe.findall(file.read_text())
        assert not found, f"{file}: {found}"
