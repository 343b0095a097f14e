"""Content hashes of the local files that a configuration names.

Hashes are remembered by path, size, time of modification and time of change, so that parsing the workflow does not read
large files again. The time of change is the system's own, no program can set it: content that was exchanged under an
old time of modification (`cp -p`, `rsync -t`, `touch -r`) is seen. Not where a file system keeps no time of change.
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
        self._known = _read_memory(memory)
        self._changed = False

    def of(self, path: str, key: str) -> str:
        """Hash of a file, or of all files of a folder with their relative names.

        Args:
            path: file or folder.
            key: configuration key that names it, for the error message.

        Raises:
            UserError: the path does not exist, is an empty folder, or cannot be read, or the folder holds a link that
                leaves it or something that is no file, such as a pipe.
        """
        root = Path(path)
        digest = hashlib.sha256()
        try:
            files = sorted(_files(root, key))
            if not files:
                raise UserError(f"{key}: {path!r} is missing or an empty folder; paths are relative to {os.getcwd()}")
            for file in files:
                name = "" if file == root else file.relative_to(root).as_posix()
                digest.update(os.fsencode(f"{name}\0{self._file(file)}\n"))
        except OSError as error:
            raise UserError(f"{key}: {error.filename!r} cannot be read ({error.strerror})") from None
        return digest.hexdigest()

    def save(self) -> None:
        """Write what was learnt; another process may do the same at the same time."""
        if not self._changed:
            return
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        beside = self._memory.with_name(f"{self._memory.name}.{os.getpid()}")
        beside.write_text(json.dumps(self._known, sort_keys=True))
        os.replace(beside, self._memory)

    def _file(self, file: Path) -> str:
        stat = file.stat()
        key = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}"
        if key not in self._known:
            with file.open("rb") as stream:
                self._known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
            self._changed = True
        return self._known[key]


def _read_memory(file: Path) -> dict[str, str]:
    """What was remembered; nothing where the file is damaged, as all of it can be computed again."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _files(root: Path, key: str) -> Iterator[Path]:
    """The file, or all files of the folder; linked folders are not entered."""
    if not root.is_dir():
        if root.exists() and not root.is_file():
            raise UserError(f"{key}: {str(root)!r} is neither a file nor a folder, but a pipe, a socket or a device")
        yield from [root] if root.exists() else []
        return
    homes = _homes(Path(os.path.realpath(root)))
    for folder, folders, files in os.walk(root, onerror=_raise):
        for entry in (Path(folder, name) for name in (*folders, *files)):
            if entry.is_symlink():
                _require_inside(entry, root, homes, key)
            if entry.is_file():
                yield entry
            elif not entry.is_dir():
                raise UserError(
                    f"{key}: {str(entry)!r} is neither a file nor a folder, but a pipe, a socket or a device; remove it"
                )


def _homes(root: Path) -> tuple[Path, ...]:
    """Folders that links may lead to: the folder itself and, in a hub's cache, the one with its files' contents."""
    repository = root.parent.parent
    return (root, repository / "blobs") if root.parent.name == "snapshots" else (root,)


def _require_inside(link: Path, root: Path, homes: tuple[Path, ...], key: str) -> None:
    target = Path(os.path.realpath(link))
    if not any(target.is_relative_to(home) for home in homes):
        raise UserError(
            f"{key}: {str(link)!r} is a link that leaves {str(root)!r}, to {str(target)!r}; put a copy in its place"
        )
    if not target.exists():
        raise UserError(f"{key}: {str(link)!r} is a link to {str(target)!r}, which does not exist")


def _raise(error: OSError) -> None:
    raise error
