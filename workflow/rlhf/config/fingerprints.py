"""Content hashes of the local files that a configuration names.

Hashes are remembered by path, size and modification time, so that parsing the workflow does not read large files again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from rlhf.errors import UserError


class Fingerprints:
    """Content hashes of files and folders, remembered in a JSON file.

    Args:
        memory: file that keeps the hashes between runs; may not exist yet.
    """

    def __init__(self, memory: str | Path) -> None:
        memory = Path(memory)
        self._memory = memory
        self._known: dict[str, str] = json.loads(memory.read_text()) if memory.exists() else {}
        self._changed = False

    def of(self, path: str, key: str) -> str:
        """Hash of a file, or of all files of a folder with their relative names.

        Args:
            path: file or folder.
            key: configuration key that names it, for the error message.

        Raises:
            UserError: the path does not exist, or is an empty folder.
        """
        root = Path(path)
        files = sorted(self._files(root))
        if not files:
            raise UserError(f"{key}: {path!r} is missing or an empty folder; paths are relative to {os.getcwd()}")
        digest = hashlib.sha256()
        for file in files:
            name = "" if file == root else file.relative_to(root).as_posix()
            digest.update(f"{name}\0{self._file(file)}\n".encode())
        return digest.hexdigest()

    def save(self) -> None:
        """Write what was learnt; another process may do the same at the same time."""
        if not self._changed:
            return
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        beside = self._memory.with_name(f"{self._memory.name}.{os.getpid()}")
        beside.write_text(json.dumps(self._known, sort_keys=True))
        os.replace(beside, self._memory)

    @staticmethod
    def _files(root: Path) -> Iterator[Path]:
        if root.is_file():
            yield root
        elif root.is_dir():
            yield from (file for file in root.rglob("*") if file.is_file())

    def _file(self, file: Path) -> str:
        stat = file.stat()
        key = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        if key not in self._known:
            with file.open("rb") as stream:
                self._known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
            self._changed = True
        return self._known[key]
