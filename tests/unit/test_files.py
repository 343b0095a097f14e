"""Files and folders appear whole or not at all, and are identified by their content."""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import UserError
from rlhf.files import (
    append_jsonl,
    peek,
    read_json,
    read_jsonl,
    read_object,
    sha256_file,
    sha256_tree,
    write_json,
    write_jsonl,
    write_text,
)
from rlhf.runtime.folders import atomic_directory
from rlhf.runtime.manifest import seal, utc_now
from tests.specifications import specification


def contents(folder: Path) -> dict[str, str]:
    """Relative path -> text of every file, hidden ones too."""
    return {file.relative_to(folder).as_posix(): file.read_text() for file in folder.rglob("*") if file.is_file()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Folders


def test_a_folder_is_not_there_before_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model"
    with atomic_directory(target) as beside:
        (beside / "a").mkdir()
        (beside / "a/b.txt").write_text("1")
        assert not target.exists()
        assert beside.parent == target.parent  # a rename is atomic within one file system only
    assert contents(target.parent) == {"model/a/b.txt": "1"}
    assert mode(target) == 0o755


def test_a_folder_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old.txt").write_text("old")
    with atomic_directory(target) as beside:
        assert not list(beside.iterdir())
        (beside / "new.txt").write_text("new")
        assert contents(target) == {"old.txt": "old"}
    assert contents(tmp_path) == {"model/new.txt": "new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_old_folder_and_nothing_beside_it(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old.txt").write_text("old")
    with pytest.raises(error), atomic_directory(target) as beside:
        (beside / "half.txt").write_text("half")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert contents(target) == {"old.txt": "old"}


def test_an_error_leaves_no_folder_where_none_was(tmp_path: Path) -> None:
    with pytest.raises(ValueError), atomic_directory(tmp_path / "model") as beside:
        (beside / "half.txt").write_text("half")
        raise ValueError
    assert not list(tmp_path.iterdir())


# Files


def test_text_is_written_in_utf8_into_folders_that_are_made(tmp_path: Path) -> None:
    file = tmp_path / "a/b/text.txt"
    write_text(file, "größer 😀\n")
    assert file.read_bytes() == "größer 😀\n".encode()
    assert mode(file) == 0o644
    assert [path.name for path in file.parent.iterdir()] == ["text.txt"]


def test_a_write_that_fails_leaves_the_old_text_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "text.txt"
    write_text(file, "old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_text(file, "new and longer")
    assert contents(tmp_path) == {"text.txt": "old"}


def test_a_reader_never_sees_half_a_text(tmp_path: Path) -> None:
    """A reader that opened the old file keeps it: the new one is another file that took its name."""
    file = tmp_path / "text.txt"
    write_text(file, "old")
    with file.open() as reader:
        write_text(file, "new")
        assert reader.read() == "old"
    assert file.read_text() == "new"


def test_json_comes_back_and_does_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    value = {"b": [1, None, 0.1], "a": {"y": "ü", "x": True}}
    write_json(first, value)
    write_json(second, {"a": {"x": True, "y": "ü"}, "b": [1, None, 0.1]})
    assert read_json(first) == value
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("write", [write_json, lambda path, value: write_jsonl(path, [value]), append_jsonl])
def test_what_is_no_json_is_refused_and_the_file_stays(tmp_path: Path, write: Any, value: float) -> None:
    file = tmp_path / "metrics"
    file.write_text('{"loss": 1.0}\n')
    with pytest.raises(ValueError):
        write(file, {"loss": value})
    assert contents(tmp_path) == {"metrics": '{"loss": 1.0}\n'}


def test_a_missing_json_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.json: file not found; run the step that makes it"):
        read_json(tmp_path / "nowhere.json")


@pytest.mark.parametrize("text", ["", '{"a": 1', "not json"])
def test_a_broken_json_file_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "broken.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"broken\.json: not valid JSON .*remove it and run snakemake again"):
        read_json(file)


def test_json_lines_come_back_one_per_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"text": "two\nlines"}, {"text": "ü\u2028", "number": 0.1}]
    write_jsonl(file, rows)
    append_jsonl(file, {"last": None})
    assert read_jsonl(file) == [*rows, {"last": None}]
    assert [json.loads(line) for line in file.read_text().split("\n")[:-1]] == [*rows, {"last": None}]


def test_appending_starts_a_file_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    append_jsonl(file, {"a": 1})
    file.write_text(file.read_text() + "\n")
    append_jsonl(file, {"a": 2})
    assert read_jsonl(file) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("rest", ['{"a": 2\n', "\u00fc\n", "no json\n"])
def test_a_damaged_line_is_named(tmp_path: Path, rest: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 1}\n\n' + rest.encode("latin-1"))
    with pytest.raises(UserError, match=r"rows\.jsonl(: line 3)?: not valid JSON .*remove it and run snakemake again"):
        read_jsonl(file)
    with pytest.raises(UserError, match=r"nowhere\.jsonl: file not found"):
        read_jsonl(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize("text", ["[]", "1", '"text"', "null"])
def test_a_file_that_holds_another_kind_of_json_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "manifest.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: not a JSON object; remove it and run snakemake again"):
        read_object(file)
    assert peek(file) == {}


def test_a_file_that_is_being_written_can_be_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "progress.json"
    assert peek(file) is None
    file.write_text('{"step"')
    assert peek(file) == {}
    file.write_text('{"step": 3}')
    assert peek(file) == read_object(file) == {"step": 3}


def test_no_rows_are_an_empty_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [])
    assert (tmp_path / "rows.jsonl").read_bytes() == b""
    assert read_jsonl(tmp_path / "rows.jsonl") == []


# Hashes

ABC = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1


def test_a_hash_is_the_sha256_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "abc").write_text("abc")
    assert sha256_file(tmp_path / "abc") == ABC
    large = b"0123456789abcdef" * 100_000
    (tmp_path / "large").write_bytes(large)
    assert sha256_file(tmp_path / "large") == "sha256:" + hashlib.sha256(large).hexdigest()


def make_tree(folder: Path, names: list[str]) -> dict[str, str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("abc" if name == "sub/a" else name)
    return sha256_tree(folder)


def test_a_tree_is_hashed_by_relative_names_and_contents_in_order(tmp_path: Path) -> None:
    first = make_tree(tmp_path / "first", ["z", "sub/a", ".hidden"])
    second = make_tree(tmp_path / "second/deeper", ["sub/a", ".hidden", "z"])
    assert list(first) == [".hidden", "sub/a", "z"]
    assert list(first.items()) == list(second.items())
    assert first["sub/a"] == ABC


def test_times_and_modes_do_not_change_a_tree_and_contents_do(tmp_path: Path) -> None:
    before = make_tree(tmp_path, ["z", "sub/a"])
    os.utime(tmp_path / "z", (1, 1))
    (tmp_path / "z").chmod(0o600)
    (tmp_path / "empty").mkdir()
    assert sha256_tree(tmp_path) == before
    (tmp_path / "z").write_text("other")
    after = sha256_tree(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"z"}


def test_snakemakes_marks_are_no_part_of_a_tree(tmp_path: Path) -> None:
    before = make_tree(tmp_path, ["z", "sub/a"])
    for folder in (tmp_path, tmp_path / "sub"):  # Snakemake puts one into each directory() output
        (folder / ".snakemake_timestamp").touch()
    assert sha256_tree(tmp_path) == before


# What killed processes leave


def make_leftover(folder: Path, pid: int, host: str, age: float = 0.0) -> Path:
    path = folder / f".model.{pid}@{host}.abcdefgh"
    (path / "inner").mkdir(parents=True)
    (path / "inner/weights").write_text("half")
    for entry in (path / "inner/weights", path / "inner", path):
        os.utime(entry, (time.time() - age,) * 2)
    return path


def test_leftovers_of_processes_that_are_gone_are_removed(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    host = socket.gethostname()
    day = 24 * 3600
    abandoned = [
        make_leftover(tmp_path, gone.pid, host),
        make_leftover(tmp_path, os.getpid(), host, age=10 * day),  # of an older process with the same number
        make_leftover(tmp_path, 1, "elsewhere", age=1.1 * day),
    ]
    in_use = [make_leftover(tmp_path, os.getppid(), host), make_leftover(tmp_path, 2, "elsewhere", age=0.9 * day)]
    others = [tmp_path / ".model", tmp_path / ".other.1@elsewhere.abcdefgh", tmp_path / ".model.tmp"]
    for path in others:
        path.mkdir()
        os.utime(path, (0, 0))
    with atomic_directory(tmp_path / "model"):
        assert not any(path.exists() for path in abandoned)
    assert all(path.exists() for path in (*in_use, *others))
    assert (in_use[0] / "inner/weights").read_text() == "half"


def test_a_process_does_not_remove_what_another_is_writing(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "model") as first:
        (first / "a").write_text("first")
        with atomic_directory(tmp_path / "model") as second:
            (second / "a").write_text("second")
        assert (first / "a").read_text() == "first"
    assert contents(tmp_path) == {"model/a": "first"}


def test_a_manifest_lists_no_leftover_of_a_killed_attempt(tmp_path: Path) -> None:
    make_leftover(tmp_path, 1, "elsewhere")
    (tmp_path / ".memory.json.1@elsewhere.abcdefgh").write_text("{")
    (tmp_path / "memory.json").write_text("{}")
    seal(tmp_path, utc_now(), specification("sft"), {})
    assert read_json(tmp_path / "manifest.json")["outputs"].keys() == {"memory.json"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "memory.json"]
