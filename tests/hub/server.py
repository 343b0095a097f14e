"""The server: answers as the hub does, as far as huggingface_hub 2.4, transformers 5.23 and datasets 5.2 ask.

Not as the real hub: Xet is not spoken (large files come over the HTTP way that every client has), listings have one
page, nothing can be written, there is no dataset viewer, and the address is http.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.hub.faults import Fault, Faults
from tests.hub.repository import LARGE, REVISION, Repository, blob, entry, sha256

TOKENS = {"member": "hf_standinMemberOfAllGates", "stranger": "hf_standinStrangerToAllGates"}


def _sizes(path: str, file: Path) -> dict[str, Any]:
    """What a listing says of a file where it is asked for more than names."""
    facts = entry(path, file)
    large = (
        {"lfs": {"sha256": facts["lfs"]["oid"], "size": facts["size"], "pointerSize": 134}} if "lfs" in facts else {}
    )
    return {"blobId": facts["oid"], "size": facts["size"], **large}


class Refusal(Exception):
    """An answer that is no success, with the headers by which huggingface_hub tells them apart."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **headers} | ({"X-Error-Code": code} if code else {})


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does, as far as the three libraries ask."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:  # noqa: N802
        self._answer()

    def do_HEAD(self) -> None:  # noqa: N802
        self._answer()

    def do_POST(self) -> None:  # noqa: N802
        self._answer()

    def log_message(self, format: str, *arguments: Any) -> None:
        """The server keeps its own log."""

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        address = urlsplit(self.path)
        self.fault = self.server.faults.of(f"{self.command} {unquote(address.path)}")
        self.status = 0
        try:
            if self.fault.get("kind") == "refuse":
                self.close_connection = True
                return
            if self.fault.get("kind") == "slow":
                time.sleep(self.fault["seconds"])
            if self.fault.get("kind") == "status":
                raise Refusal(self.fault["status"], "a fault of the stand-in", **self.fault.get("headers", {}))
            self._route(unquote(address.path), parse_qs(address.query), body)
        except Refusal as refusal:
            text = json.dumps({"error": str(refusal)}).encode()
            self._send(refusal.status, text, {"Content-Type": "application/json"} | refusal.headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self.server.note(self, self.status)

    def _route(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        if path == "/api/whoami-v2":
            return self._json(
                {"name": "member", "type": "user", "auth": {}} if self._member() else self._unknown_user()
            )
        if path.startswith("/cdn/"):
            return self._content(self.server.content(path.removeprefix("/cdn/")))
        if path in ("/api/models", "/api/datasets"):
            return self._json(self.server.listing(path.removeprefix("/api/"), query))
        if found := re.fullmatch(r"/api/resolve-cache/(models|datasets)/(.+?)/([0-9a-f]{40})/(.+)", path):
            return self._small(*found.groups())
        if found := re.fullmatch(r"/(datasets/)?(.+?)/(?:resolve|raw)/(refs/[^/]+/[^/]+|[^/]+)/(.+)", path):
            kind, name, revision, file = found.groups()
            return self._resolve("datasets" if kind else "models", name, revision, file)
        if found := re.fullmatch(
            r"/api/(models|datasets)/([^/]+(?:/[^/]+)??)(?:/(revision|tree|paths-info|refs|commits"
            r"|discussions|branch|compare)(?:/(.*))?)?",
            path,
        ):
            kind, name, what, rest = found.groups()
            return self._api(kind, name, what, rest or "", query, body)
        raise Refusal(404, "Not Found")

    # Repositories

    def _repository(self, kind: str, name: str, prefix: str, rest: str) -> Repository:
        repository = self.server.repository(kind, name)
        if repository is None or (repository.private and self._who() != "member"):
            if self._who() is None:
                # The hub does not tell strangers which names exist; it sends no code, but its clients look for https.
                raise Refusal(401, "Invalid username or password.", "RepoNotFound")
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if repository.moved_to:
            query = urlsplit(self.path).query
            place = f"{prefix}{repository.moved_to}{rest}" + (f"?{query}" if query else "")
            raise Refusal(307, "Temporary Redirect. Redirecting", Location=quote(place, safe="/?&=%"))
        return repository

    def _who(self) -> str | None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not given:
            return None
        known = {token: who for who, token in TOKENS.items()}
        if given not in known:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return known[given]

    def _member(self) -> bool:
        return self._who() == "member"

    def _unknown_user(self) -> Any:
        raise Refusal(401, "Invalid username or password.")

    def _require_access(self, repository: Repository) -> None:
        if not repository.gated or self._member():
            return
        if self._who() is None:
            message = (
                f"Access to {repository.kind[:-1]} {repository.name} is restricted. You must have access to it "
                "and be authenticated to access it. Please log in."
            )
            raise Refusal(401, message, "GatedRepo")
        message = (
            f"Access to {repository.kind[:-1]} {repository.name} is restricted and you are not in the authorized "
            f"list. Visit https://huggingface.co/{repository.name} to ask for access."
        )
        raise Refusal(403, message, "GatedRepo")

    def _revision(self, repository: Repository, revision: str) -> tuple[str, str]:
        found = repository.resolve(revision)
        if found is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def _file(self, repository: Repository, revision: str, commit: str, path: str) -> Path:
        file = repository.files(revision).get(path)
        if file is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit})
        return file

    def _resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        prefix = "/datasets/" if kind == "datasets" else "/"
        repository = self._repository(kind, name, prefix, f"/resolve/{quote(revision, safe='')}/{path}")
        self._require_access(repository)
        revision, commit = self._revision(repository, revision)
        file = self._file(repository, revision, commit, path)
        headers = {"X-Repo-Commit": commit, "X-Linked-Size": str(file.stat().st_size)}
        if path.endswith(LARGE):
            digest = sha256(file)
            self.server.keep(digest, file)
            place = f"http://localhost:{self.server.server_port}/cdn/{digest}"  # another host, as the hub's CDN is
            self._send(302, b"", headers | {"X-Linked-Etag": f'"{digest}"', "Location": place})
        else:
            place = quote(f"/api/resolve-cache/{kind}/{name}/{commit}/{path}")
            self._send(307, b"", headers | {"X-Linked-Etag": f'"{blob(file)}"', "Location": place})

    def _small(self, kind: str, name: str, commit: str, path: str) -> None:
        repository = self._repository(kind, name, "", "")
        self._require_access(repository)
        file = self._file(repository, self._revision(repository, commit)[0], commit, path)
        self._content(file, {"X-Repo-Commit": commit, "ETag": f'"{blob(file)}"'})

    def _content(self, file: Path | None, headers: dict[str, str] | None = None) -> None:
        if file is None:
            raise Refusal(404, "Not Found")
        content = file.read_bytes()
        headers = {"Accept-Ranges": "bytes", "ETag": f'"{sha256(file)}"'} | (headers or {})
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(found[1]), int(found[2] or len(content) - 1)
            if start >= len(content):
                raise Refusal(416, "Range Not Satisfiable", **{"Content-Range": f"bytes */{len(content)}"})
            headers["Content-Range"] = f"bytes {start}-{min(end, len(content) - 1)}/{len(content)}"
            self._send(206, content[start : end + 1], headers)
        else:
            self._send(200, content, headers)

    def _api(self, kind: str, name: str, what: str | None, rest: str, query: dict[str, list[str]], body: bytes) -> None:
        tail = (f"/{what}" if what else "") + (f"/{quote(rest, safe='')}" if rest else "")
        repository = self._repository(kind, name, f"/api/{kind}/", tail)
        if what == "refs":
            return self._json(self._refs(repository))
        if what == "discussions":
            listed = [
                {
                    **one,
                    "isPullRequest": True,
                    "repo": {"name": name, "type": kind[:-1]},
                    "createdAt": "2023-06-01T00:00:00.000Z",
                    "author": {"name": one["author"]},
                }
                for one in repository.discussions
            ]
            return self._json({"discussions": listed, "count": len(listed), "start": 0})
        # A revision may hold slashes, and comes encoded; `tree` has a path after it.
        named = [one for one in repository.revisions() if rest == one or rest.startswith(f"{one}/")]
        asked, _, below = (max(named, key=len), "", "") if named else rest.partition("/")
        below = rest[len(asked) + 1 :] if named else below
        revision, commit = self._revision(repository, asked or REVISION)
        if what in (None, "revision"):
            return self._json(self._info(repository, revision, commit, "blobs" in query))
        if what == "commits":
            parents = [commit] if revision == REVISION else [commit, repository.revisions()[REVISION]]
            return self._json(
                [
                    {"id": one, "title": "commit", "message": "", "authors": [], "date": "2023-06-01T00:00:00.000Z"}
                    for one in parents
                ]
            )
        entries = self._tree(repository, revision)
        if what == "tree":
            return self._json(self._below(entries, below, query.get("recursive", ["false"])[0].lower() == "true"))
        if what == "paths-info":
            return self._json([entries[path] for path in self._paths(body) if path in entries])
        raise Refusal(404, "Not Found")

    def _refs(self, repository: Repository) -> dict[str, Any]:
        refs: dict[str, Any] = {"branches": [], "converts": [], "tags": []}
        for name, commit in repository.revisions().items():
            if name.startswith("refs/convert/"):
                short = name.removeprefix("refs/convert/")
                refs["converts"].append({"name": short, "ref": name, "targetCommit": commit})
            elif not name.startswith("refs/"):
                refs["branches"].append({"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit})
        return refs

    def _info(self, repository: Repository, revision: str, commit: str, sizes: bool) -> dict[str, Any]:
        files = repository.files(revision)
        return {
            "cardData": repository.card(revision),
            "_id": hashlib.md5(repository.name.encode()).hexdigest()[:24],
            "id": repository.name,
            "modelId": repository.name,
            "author": repository.name.split("/")[0],
            "sha": commit,
            "lastModified": "2024-01-01T00:00:00.000Z",
            "createdAt": "2022-05-01T00:00:00.000Z",
            "private": repository.private,
            "gated": repository.gated,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": path} | (_sizes(path, file) if sizes else {}) for path, file in files.items()],
        }

    def _tree(self, repository: Repository, revision: str) -> dict[str, dict[str, Any]]:
        entries: dict[str, dict[str, Any]] = {}
        for path, file in repository.files(revision).items():
            for parent in list(Path(path).parents)[:-1]:
                oid = hashlib.sha1(str(parent).encode()).hexdigest()
                entries[parent.as_posix()] = {"type": "directory", "oid": oid, "size": 0, "path": parent.as_posix()}
            entries[path] = entry(path, file)
        return entries

    def _below(self, entries: dict[str, dict[str, Any]], folder: str, recursive: bool) -> list[dict[str, Any]]:
        folder = folder.strip("/")
        if folder and entries.get(folder, {}).get("type") != "directory":
            raise Refusal(404, "Entry not found", "EntryNotFound")
        inside = [path for path in entries if not folder or path.startswith(f"{folder}/")]
        depth = folder.count("/") + 1 if folder else 0
        return [entries[path] for path in inside if recursive or path.count("/") == depth]

    def _paths(self, body: bytes) -> list[str]:
        if "json" in self.headers.get("Content-Type", ""):
            return json.loads(body)["paths"]
        return parse_qs(body.decode())["paths"]

    # Writing

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.status = status
        self.send_response(status)
        for name, value in {"X-Request-Id": "stand-in", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        kind = self.fault.get("kind")
        if kind in ("drop", "stall"):
            self.wfile.write(content[: self.fault["bytes"]])
            self.wfile.flush()
            if kind == "drop":
                self.close_connection = True
                return
            time.sleep(self.fault["seconds"])
            content = content[self.fault["bytes"] :]
        self.wfile.write(content)


class Server(ThreadingHTTPServer):
    """The server, with the faults that are to happen and a log of what was asked."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, root: Path, port: int, log: Path | None = None) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.root, self.faults, self.log = root, Faults(), log
        self.requests: list[dict[str, Any]] = []
        self._kept: dict[str, Path] = {}
        self._lock = threading.Lock()

    def repository(self, kind: str, name: str) -> Repository | None:
        folder = self.root / kind / name
        return Repository(folder, kind, name) if (folder / "repository.json").exists() else None

    def listing(self, kind: str, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        """What is found by `author` and `search`; private repositories are not."""
        author, word = (query.get(key, [""])[0].lower() for key in ("author", "search"))
        found = []
        for facts in sorted((self.root / kind).rglob("repository.json")):
            name = facts.parent.relative_to(self.root / kind).as_posix()
            one = Repository(facts.parent, kind, name)
            if word in name.lower() and name.lower().startswith(author) and not (one.private or one.moved_to):
                found.append({"_id": name, "id": name, "modelId": name, "private": False, "tags": []})
        return found

    def keep(self, digest: str, file: Path) -> None:
        self._kept[digest] = file

    def content(self, digest: str) -> Path | None:
        return self._kept.get(digest)

    def note(self, handler: Handler, status: int) -> None:
        request = {
            "method": handler.command,
            "path": unquote(handler.path),
            "status": status,
            "range": handler.headers.get("Range"),
            "host": handler.headers.get("Host"),
            "token": "Authorization" in handler.headers,
            "agent": handler.headers.get("User-Agent", ""),
        }
        with self._lock:
            self.requests.append(request)
            if self.log:
                with self.log.open("a") as stream:
                    stream.write(json.dumps(request) + "\n")

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Hub:
    """The server in a thread of this process, for tests."""

    def __init__(self, root: Path | str, port: int = 0) -> None:
        self._server = Server(Path(root), port)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def requests(self) -> list[dict[str, Any]]:
        return self._server.requests

    def faults(self, *faults: Fault) -> None:
        """The faults that happen from now on, in the place of earlier ones."""
        self._server.faults = Faults(faults)

    @property
    def root(self) -> Path:
        return self._server.root

    def commits(self, kind: str, name: str) -> dict[str, str]:
        """Revision -> commit of a repository."""
        return Repository(self.root / kind / name, kind, name).revisions()

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
