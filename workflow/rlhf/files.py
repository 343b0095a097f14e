"""Files that appear whole or not at all, and their hashes. Light: the Snakefile imports it."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from rlhf.errors import UserError


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
