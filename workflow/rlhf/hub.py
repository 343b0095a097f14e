"""A repository of a hub at one commit: found, listed, and its files brought into the hub's cache on this machine.

The cache, tokens, mirrors and offline mode are those of huggingface_hub (HF_HOME, HF_TOKEN, HF_ENDPOINT,
HF_HUB_OFFLINE). Only what its client does not do is done here: a large file that a killed process left half goes on
where it was, and a hub that does not answer is not asked again for what is here already.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import yaml
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]  # it lists none

from rlhf.causes import FOREIGN, cause
from rlhf.errors import UserError
from rlhf.files import sha256_file
from rlhf.runtime.logging import get_logger
from rlhf.runtime.transfer import bytes_logged, gigabytes

logger = get_logger(__name__)

Result = TypeVar("Result")
COMMIT = re.compile(r"[0-9a-f]{40}")
PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds between attempts
LONGEST_PAUSE = 300.0  # the hub's window for counting requests
RESUMED_BYTES = 10 << 20  # below it a file is fetched anew; the hub keeps larger ones by their SHA-256


@dataclass(frozen=True)
class HubFile:
    """What a hub's listing says of a file; `sha256` is None where it is kept as text."""

    size: int
    sha256: str | None


@dataclass(frozen=True)
class Found:
    """A repository at one commit.

    Attributes:
        name: under which the cache has it.
        now: what the hub calls it.
        kind: `model` or `dataset`.
        commit: 40 hexadecimal digits.
        files: path -> what the hub lists; what is known of files that were fetched earlier is their paths alone.
        reached: whether the hub answered; else everything is from the cache.
    """

    name: str
    now: str
    kind: str
    commit: str
    files: dict[str, HubFile | None]
    reached: bool

    @property
    def storage(self) -> Path:
        """Its folder in the cache."""
        return _storage(self.name, self.kind)

    @property
    def snapshot(self) -> Path:
        """The folder in the cache with this commit's files."""
        return self.storage / "snapshots" / self.commit

    def has(self, path: str) -> bool:
        """Whether a file is in the cache."""
        return (self.snapshot / path).exists()


def find(name: str, revision: str | None, kind: str) -> Found:
    """The commit that a revision is now, with its files.

    Where the hub cannot be reached or may not be asked, the commit that it was when it was last fetched.

    Args:
        name: OWNER/NAME.
        revision: branch, tag or commit; None: the newest.
        kind: `model` or `dataset`.

    Raises:
        OSError, httpx2.HTTPError: as huggingface_hub raises them; `rlhf.causes` says what they mean.
        UserError: there is no such name, and there are others like it.
    """
    kept = _kept(name, revision, kind)
    if constants.is_offline_mode():
        if kept is None:
            raise OfflineModeIsEnabled(f"{name} ({revision or 'main'}) is not in {constants.HF_HUB_CACHE}")
        return kept

    def ask() -> Found:
        info = HfApi().repo_info(
            name, repo_type=kind, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
        files: dict[str, HubFile | None] = {
            one.rfilename: HubFile(one.size or 0, one.lfs.sha256 if one.lfs else None)
            for one in getattr(info, "siblings", None) or ()
        }
        # Clients keep a model under the name that was asked for, and of datasets know the present one alone.
        kept_as = name if kind == "model" else info.id
        return Found(kept_as, info.id, kind, str(info.sha), files, reached=True)

    try:
        found = _patiently(ask, PAUSES if kept is None else ())
    except RepositoryNotFoundError as error:
        near = _nearest(name, kind)
        if near:
            raise UserError(f"the hub has no {kind} {name!r} that is public; did you mean {near!r}?") from error
        raise
    except FOREIGN as error:
        if kept is None or cause(error).kind != "network":
            raise
        logger.warning("%s: commit %s from the cache is taken: %s", name, kept.commit, cause(error).message)
        return kept
    if found.now != name:
        logger.warning("%s: the hub calls it %s now; write that", name, found.now)
    return found


def fetch(found: Found, paths: Iterable[str]) -> Path:
    """Bring files into the cache; the folder in which they are then.

    Args:
        found: where they are.
        paths: of them, as the hub lists them.

    Raises:
        UserError: the disk has no room for them, or what came is not what the hub lists.
        OSError, httpx2.HTTPError: as huggingface_hub raises them; `rlhf.causes` says what they mean.
    """
    missing = [path for path in paths if not found.has(path)]
    total = sum(file.size for path in missing if (file := found.files[path]) is not None)
    if missing:
        logger.info("%s: fetching %d files, %s, at commit %s", found.name, len(missing), gigabytes(total), found.commit)
        _require_room(found, total)
        with bytes_logged(found.storage, f"{found.name}: fetched", total):
            for path in missing:
                _patiently(lambda path=path: _fetch(found, path), PAUSES)  # type: ignore[misc]
    return found.snapshot


def remember(found: Found, revision: str | None) -> None:
    """Note what a branch or tag is now, so that it is found in the cache when the hub is not asked."""
    revision = revision or constants.DEFAULT_REVISION
    if found.reached and revision != found.commit:
        place = _storage(found.name, found.kind) / "refs" / revision
        with contextlib.suppress(OSError):  # a cache that others have filled may be read-only
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(found.commit)


def licence(card: Path) -> str | None:
    """The licence that a card states between its first lines of dashes, with its name where it has one of its own."""
    if not card.exists():
        return None
    front = re.match(r"---\s*\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        stated = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:
        return None
    if not isinstance(stated, dict) or not isinstance(stated.get("license"), str):
        return None
    own = stated.get("license_name")
    return f"{stated['license']} ({own})" if isinstance(own, str) else str(stated["license"])


def _storage(name: str, kind: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)


def _kept(name: str, revision: str | None, kind: str) -> Found | None:
    """What the cache has of a revision, as far as it is known there."""
    storage = _storage(name, kind)
    commit = revision or constants.DEFAULT_REVISION
    with contextlib.suppress(OSError):
        commit = (storage / "refs" / commit).read_text().strip()
    snapshot = storage / "snapshots" / commit
    if COMMIT.fullmatch(commit) is None or not snapshot.is_dir():
        return None
    paths = [file.relative_to(snapshot).as_posix() for file in sorted(snapshot.rglob("*")) if file.is_file()]
    return Found(name, name, kind, commit, dict.fromkeys(paths), reached=False)


def _patiently(action: Callable[[], Result], pauses: Iterable[float]) -> Result:
    """Try again after each pause, for as long as it is the network that fails."""
    for pause in pauses:
        try:
            return action()
        except FOREIGN as error:
            if cause(error).kind != "network" or constants.is_offline_mode():
                raise
            logger.warning("%s; trying again", cause(error).message)
            time.sleep(_asked_to_wait(error) or pause)
    return action()


def _asked_to_wait(error: BaseException) -> float | None:
    """Seconds that a server asks to wait, as far as it says so."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    asked = str(headers.get("Retry-After", ""))
    return min(float(asked), LONGEST_PAUSE) if asked.isdigit() else None


def _fetch(found: Found, path: str) -> None:
    """One file; a large one goes on where an earlier process stopped."""
    file = found.files[path]
    if file and file.sha256 and RESUMED_BYTES < file.size <= constants.MAX_HTTP_DOWNLOAD_SIZE:
        _fetch_content(found, path, file.size, file.sha256)
    # Its content is there by now where it is large: what is left to do is the link to it.
    hf_hub_download(found.name, path, repo_type=found.kind, revision=found.commit)


def _fetch_content(found: Found, path: str, size: int, sha256: str) -> None:
    """The content of a large file, where huggingface_hub looks for it.

    Its own partial files have names that no other process finds again.
    """
    blob = found.storage / "blobs" / sha256
    partial = blob.with_name(f"{sha256}.partial")
    lock = Path(constants.HF_HUB_CACHE) / ".locks" / found.storage.name / f"{sha256}.lock"
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        if partial.exists() and partial.stat().st_size > size:
            partial.unlink()
        url = hf_hub_url(found.name, path, repo_type=found.kind, revision=found.commit)
        place = get_hf_file_metadata(url).location
        with partial.open("ab") as stream:
            if stream.tell():
                logger.info("%s: %s goes on at %s of %s", found.name, path, gigabytes(stream.tell()), gigabytes(size))
            # The token is for the hub alone; a large file mostly lies on another host, whose address is its own key.
            headers = build_hf_headers(token=None if urlsplit(place).netloc == urlsplit(url).netloc else False)
            http_get(
                place, stream, resume_size=stream.tell(), headers=headers, expected_size=size, displayed_filename=path
            )
        if sha256_file(partial) != f"sha256:{sha256}":
            partial.unlink()
            raise UserError(f"{path}: what came is not what the hub lists (another SHA-256); it was removed: try again")
        partial.rename(blob)


def _require_room(found: Found, total: int) -> None:
    folder = found.storage
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < total:
        raise UserError(
            f"{found.name}: {gigabytes(total)} are to be fetched, and {constants.HF_HUB_CACHE} has room for "
            f"{gigabytes(free)}; free space, or set HF_HOME to a larger disk"
        )


def _nearest(name: str, kind: str) -> str | None:
    """The public name that is most like one that is not there, of the same owner or with a similar name."""
    owner, _, short = name.rpartition("/")
    api = HfApi()
    listing = api.list_models if kind == "model" else api.list_datasets
    names: set[str] = set()
    with contextlib.suppress(*FOREIGN):  # the mistake itself is worth more than a failed search
        names |= {one.id for one in listing(search=short, limit=100)}
        names |= {one.id for one in listing(author=owner, limit=1000)} if owner else set()
    near = difflib.get_close_matches(name, names, n=1)
    same = [one for one in names if one.rpartition("/")[2] == short]
    return next(iter([*same, *near]), None)
