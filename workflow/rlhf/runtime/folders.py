"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from rlhf.files import fsync, temporary_prefix

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
    beside = Path(tempfile.mkdtemp(prefix=temporary_prefix(path), dir=path.parent))
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
    aside = Path(tempfile.mkdtemp(prefix=temporary_prefix(path), dir=path.parent))
    if path.exists():
        os.replace(path, aside / "old")
    os.replace(new, path)
    fsync(path.parent)
    shutil.rmtree(aside)


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
