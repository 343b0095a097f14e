"""A repository below ROOT: where its files lie, and what the hub says of them.

Layout of ROOT: `models/OWNER/NAME/` and `datasets/OWNER/NAME/` hold `repository.json` and one folder per revision, its
name percent-encoded (`main`, `refs%2Fconvert%2Fparquet`). Keys of `repository.json`:

    gated       "manual" or "auto": files need a token of TOKENS["member"]; false: they do not
    private     only that token sees the repository at all
    moved_to    the repository was renamed; requests are redirected (307)
    discussions pull requests, as the hub lists them: [{"num", "title", "author", "status"}]
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import yaml

Files = dict[str, bytes]
LARGE = (".bin", ".safetensors", ".h5", ".msgpack", ".ot", ".pth", ".model", ".parquet", ".gz")  # kept in Git LFS
REVISION = "main"


class Repository:
    """One repository below ROOT, read anew for each request, so that tests can change it."""

    def __init__(self, folder: Path, kind: str, name: str) -> None:
        self.folder, self.kind, self.name = folder, kind, name
        facts = json.loads((folder / "repository.json").read_text())
        self.gated: str | bool = facts.get("gated", False)
        self.private: bool = facts.get("private", False)
        self.moved_to: str | None = facts.get("moved_to")
        self.discussions: list[dict[str, Any]] = facts.get("discussions", [])

    def revisions(self) -> dict[str, str]:
        """Name -> commit."""
        names = sorted(unquote(path.name) for path in self.folder.iterdir() if path.is_dir())
        return {name: self._commit(name) for name in names}

    def resolve(self, revision: str) -> tuple[str, str] | None:
        """Name and commit of a revision given by name or commit."""
        for name, commit in self.revisions().items():
            if revision in (name, commit) or (len(revision) >= 7 and commit.startswith(revision)):
                return name, commit
        return None

    def files(self, revision: str) -> dict[str, Path]:
        """Path in the repository -> file, of a revision given by name."""
        root = self.folder / quote(revision, safe="")
        return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}

    def card(self, revision: str) -> dict[str, Any] | None:
        """What the README says between its first lines of dashes."""
        file = self.files(revision).get("README.md")
        text = file.read_text() if file else ""
        return yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else None

    def _commit(self, revision: str) -> str:
        digest = hashlib.sha1(f"{self.kind} {self.name} {revision}".encode())
        for path, file in self.files(revision).items():
            digest.update(f"{path} {sha256(file)}\n".encode())
        return digest.hexdigest()


_DIGESTS: dict[tuple[str, int, int], str] = {}


def sha256(file: Path) -> str:
    stat = file.stat()
    key = (str(file), stat.st_size, stat.st_mtime_ns)
    if key not in _DIGESTS:
        _DIGESTS[key] = hashlib.sha256(file.read_bytes()).hexdigest()
    return _DIGESTS[key]


def blob(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(path: str, file: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": blob(file), "size": file.stat().st_size, "path": path}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": sha256(file), "size": entry["size"], "pointerSize": 134}
    return entry


def as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def write(folder: Path, revisions: dict[str, Files] | None = None, **facts: Any) -> None:
    """Write one repository."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "repository.json").write_bytes(as_json(facts))
    for revision, files in (revisions or {}).items():
        for path, content in files.items():
            file = folder / quote(revision, safe="") / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
