"""Files that appear whole or not at all, and their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from rlhf.errors import UserError

ABANDONED_SECONDS = 24 * 3600


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A fresh folder beside `path` that takes its place when the block ends without an error.

    An existing folder at `path` is replaced; after an error nothing is left behind and `path` is untouched. What a
    killed process has left of the same folder is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in leftovers(path.parent, path.name):
        if _is_abandoned(leftover):
            shutil.rmtree(leftover, ignore_errors=True)  # another process may be removing it too
    beside = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent))
    beside.chmod(0o755)
    try:
        yield beside
        for file in beside.rglob("*"):
            if file.is_file():
                fsync(file)
        _replace(path, beside)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _replace(path: Path, new: Path) -> None:
    """Put a folder in the place of another, which is moved aside first: it is never half deleted in its place."""
    aside = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent))
    if path.exists():
        os.replace(path, aside / "old")
    os.replace(new, path)
    fsync(path.parent)
    shutil.rmtree(aside)


def _prefix(path: Path) -> str:
    """How the names of temporary files for a path begin; they tell which process makes them."""
    return f".{path.name}.{os.getpid()}@{socket.gethostname()}."


def leftovers(folder: Path, name: str | None = None) -> list[Path]:
    """Temporary files and folders in a folder, of all paths or of the one of this name; some may be in use."""
    pattern = re.compile(rf"\.{'.+' if name is None else re.escape(name)}\.\d+@.+\.[a-z0-9_]{{8}}")
    return [entry for entry in folder.iterdir() if pattern.fullmatch(entry.name)]


def _is_abandoned(leftover: Path) -> bool:
    """Whether the process that made it is gone; of another host's, whether nothing in it has changed for a day."""
    pid, host = leftover.name.rpartition(".")[0].rpartition("@")[::2]
    try:
        changed = max(entry.lstat().st_mtime for entry in (leftover, *leftover.rglob("*")))
        if host != socket.gethostname():
            return time.time() - changed > ABANDONED_SECONDS
        # A process that began later has only the same number.
        return psutil.Process(int(pid.rpartition(".")[2])).create_time() > changed + 1
    except psutil.NoSuchProcess:
        return True
    except FileNotFoundError:  # its process is at work on it
        return False


def write_text(path: Path, text: str) -> None:
    """Write a text file beside its place, flush it to disk, and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, beside = tempfile.mkstemp(prefix=_prefix(path), dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused, because they are no JSON."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: file not found; run the step that makes it (`snakemake -n` names it)") from None
    except ValueError as error:  # no JSON, or no UTF-8
        raise UserError(f"{path}: not valid JSON ({error}); remove it and run snakemake again") from None


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Append one JSON object as a line and flush it, so that a reader sees whole lines only."""
    with Path(path).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, allow_nan=False) + "\n")
        stream.flush()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file."""
    with Path(path).open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream if line.strip()]


def sha256_file(path: Path) -> str:
    """`sha256:<hex digits>` of a file's content."""
    with Path(path).open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_tree(folder: Path) -> dict[str, str]:
    """Relative path -> hash of every file below a folder, in sorted order, Snakemake's own marks left out."""
    files = sorted(file for file in Path(folder).rglob("*") if file.is_file() and file.name != ".snakemake_timestamp")
    return {file.relative_to(folder).as_posix(): sha256_file(file) for file in files}


def fsync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
