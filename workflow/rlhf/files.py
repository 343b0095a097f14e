"""Files that appear whole or not at all, and their hashes. Light: the Snakefile imports it."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf.errors import UserError

JsonObject = dict[str, Any]
TAIL_BYTES = 65536
AGAIN = "remove it and run snakemake again"


def temporary_prefix(path: Path) -> str:
    """How the names of temporary files for a path begin; they tell which process makes them."""
    return f".{path.name}.{os.getpid()}@{socket.gethostname()}."


def write_text(path: Path, text: str) -> None:
    """Write a text file beside its place, flush it to disk, and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, beside = tempfile.mkstemp(prefix=temporary_prefix(path), dir=path.parent)
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
    return _parsed(_content(path), str(path))


def read_object(path: Path) -> Any:
    """Content of a JSON file that holds one object; the type of its keys and values is the caller's to state.

    Raises:
        UserError: the file is missing, is not JSON, or holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; {AGAIN}")
    return content


def peek(path: Path) -> Any:
    """The object of a file that its writer may change or remove meanwhile.

    Returns:
        None where there is no file, and an empty object where it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def tail(path: Path) -> list[str]:
    """The last lines of a text file that may be long, the first of them perhaps cut; none where there is no file."""
    if not path.exists():
        return []
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return stream.read().decode("utf-8", errors="replace").splitlines()


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON object per line, atomically."""
    write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def append_jsonl(path: Path, row: Mapping[str, object]) -> None:
    """Append one JSON object as a line and flush it, so that a reader sees whole lines only."""
    with Path(path).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, allow_nan=False) + "\n")
        stream.flush()


def read_jsonl(path: Path) -> list[JsonObject]:
    """The objects of a file with one JSON object per line.

    Raises:
        UserError: the file is missing, or a line of it is not JSON.
    """
    lines = enumerate(_content(path).split("\n"), start=1)
    return [_parsed(line, f"{path}: line {number}") for number, line in lines if line.strip()]


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


def _content(path: Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: file not found; run the step that makes it (`snakemake -n` names it)") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({error}); {AGAIN}") from None


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{place}: not valid JSON ({error}); {AGAIN}") from None
