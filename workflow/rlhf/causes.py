"""What exceptions of libraries mean for the user: found by type in the chain of causes, with a remedy only where known.

Libraries wrap errors, often in the same `OSError` or `ValueError` for a dead network, a gated model and a broken file;
what happened is told by the exceptions that they were made from.
"""

from __future__ import annotations

import errno
import gzip
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pickle import UnpicklingError

import datasets
import httpx2
import pyarrow as pa
from huggingface_hub import constants
from huggingface_hub.errors import (
    CorruptedCacheException,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError

from rlhf.errors import UserError, has_errno

# What libraries raise at sources that are damaged, of another kind or out of reach: they check few of them themselves.
# An `AssertionError` or a `RuntimeError` of plain Python would be a defect, and keeps its traceback.
FOREIGN = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    ImportError,
    EOFError,
    RecursionError,
    SafetensorError,
    StrictDataclassError,
    CorruptedCacheException,
    UnpicklingError,
    httpx2.HTTPError,
    datasets.exceptions.DatasetsError,
    pa.ArrowException,
    zipfile.BadZipFile,
    zlib.error,
)
LONGEST = 600  # characters of a library's words where the cause is known


@dataclass(frozen=True)
class Cause:
    """What an exception means.

    Attributes:
        kind: `network`, `permission`, `name`, `package`, `code`, `file`, `disk`, `damage`, `user` or
            `unknown`.
        message: what happened, with the library's words; where the cause is unknown, all of them.
        remedy: what to do; empty where nothing is known.
    """

    kind: str
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


def cause(error: BaseException) -> Cause:
    """The cause of a library's exception.

    A `UserError` in the chain speaks for itself.
    """
    chain = list(_chain(error))
    for known in chain:
        if isinstance(known, UserError):
            return Cause("user", str(known))
    for rule in _RULES:
        for found in chain:
            if rule.applies(found):
                return Cause(rule.kind, f"{rule.what} ({_words(found)[:LONGEST]})", rule.remedy(found))
    words = ", made from ".join(f"{type(part).__name__}: {_words(part)}" for part in chain)
    return Cause("unknown", f"the cause is not known to this workflow; the library says: {words}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those it was made from, as a traceback shows them."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _words(error: BaseException) -> str:
    refused = re.search(r"\n\n+(.+?)\s*\n\nCheck the documentation of torch", str(error), re.DOTALL)
    if isinstance(error, UnpicklingError) and refused:  # the rest is how to run what is in the file
        return " ".join(refused[1].split())
    return " ".join(str(error).split()) or type(error).__name__


def _status(error: BaseException) -> int | None:
    """What a hub answered."""
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


_PACKAGES = (r"pip install (?:-\S+ )*['\"]?([\w.-]+)", r"requires the (\S+) library", r"`([\w.-]+)` is required")


def _package(error: BaseException) -> str | None:
    """The package that an exception says is missing; libraries say it in words of their own."""
    if not isinstance(error, ImportError):
        return None
    for pattern in _PACKAGES:
        found = re.search(pattern, str(error))
        if found:
            return found[1].lower().removesuffix(".")
    return error.name if isinstance(error, ModuleNotFoundError) else None


def _needs_package(error: BaseException) -> str:
    return f"install it in this environment: pip install {_package(error)}"


def _is_offline(error: BaseException) -> bool:
    """Whether a setting forbids to ask; it has no type left where a library has put it into words."""
    words = "OfflineModeIsEnabled|outgoing traffic has been disabled"
    return isinstance(error, OfflineModeIsEnabled) or re.search(words, str(error)) is not None


def _is_network(error: BaseException) -> bool:
    """Whether nobody answered, or a server that is in trouble or asks to wait."""
    if isinstance(error, HfHubHTTPError):
        status = _status(error)
        return status is not None and (status >= 500 or status == 429)
    if _is_cut(error):
        return True
    unreached = (httpx2.TransportError, ConnectionError, TimeoutError, LocalEntryNotFoundError, OfflineModeIsEnabled)
    return isinstance(error, unreached)


def _is_refused(error: BaseException) -> bool:
    # A name that does not exist is answered with 401 too, so that private ones cannot be told from it.
    refused = isinstance(error, HfHubHTTPError) and _status(error) in (401, 403)
    return refused and not isinstance(error, RepositoryNotFoundError)


def _is_gated(error: BaseException) -> bool:
    gated_dataset = isinstance(error, datasets.exceptions.DatasetNotFoundError) and "gated" in str(error)
    return isinstance(error, GatedRepoError | LocalTokenNotFoundError) or gated_dataset


def _accept_licence(error: BaseException) -> str:
    address = str(getattr(getattr(getattr(error, "response", None), "request", None), "url", ""))
    place = r"(https?://[^/]+)/(?:api/(?:models|(datasets))/)?((?:datasets/)?[^/]+/[^/?]+)"
    found = re.match(place, address)
    page = "/".join(part for part in found.groups() if part) if found else "its page"
    dataset = re.match(r"Dataset '([^']+)' is a gated dataset", str(error))
    if dataset:  # `datasets` keeps no answer of the hub
        page = f"{constants.ENDPOINT}/datasets/{dataset[1]}"
    return (
        f"open {page} with your account, and accept its licence or ask for access; then log in on this machine with "
        "`hf auth login`, or set HF_TOKEN"
    )


def _configurations(error: BaseException) -> str:
    names = re.search(r"available configs: \[(.*?)\]", str(error))
    return f"name one in `name` of the source: {names[1] if names else 'see its page'}"


def _is_cut(error: BaseException) -> bool:
    """Whether fewer bytes came than were announced."""
    return isinstance(error, OSError) and str(error).startswith("Consistency check failed")


def _is_unknown_name(error: BaseException) -> bool:
    unknown = (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError)
    if isinstance(error, (*unknown, datasets.exceptions.DatasetNotFoundError)):
        return True
    # datasets has no type of its own for these.
    text = r"Unknown split |BuilderConfig .* not found"
    return isinstance(error, ValueError) and re.match(text, str(error)) is not None


def _is_damage(error: BaseException) -> bool:
    damaged = (
        SafetensorError,
        CorruptedCacheException,
        json.JSONDecodeError,
        UnicodeDecodeError,
        gzip.BadGzipFile,
        zipfile.BadZipFile,
        zlib.error,
        pa.ArrowInvalid,
        EOFError,
        datasets.exceptions.ChecksumVerificationError,
        datasets.exceptions.SplitsVerificationError,
    )
    words = r"is not a valid JSON file|PytorchStreamReader failed|Unsupported operand \d+$"
    return isinstance(error, damaged) or re.search(words, _words(error)) is not None


@dataclass(frozen=True)
class _Rule:
    kind: str
    applies: Callable[[BaseException], bool]
    what: str
    remedy: Callable[[BaseException], str]


# The first one that fits any exception of the chain: what is more particular stands before what it would look like.
_RULES = (
    _Rule(
        "disk",
        lambda error: has_errno(error, errno.ENOSPC, errno.EDQUOT),
        "no space is left on the disk",
        lambda _: "free space (HF_HOME says where downloads are kept), and run the same command again",
    ),
    _Rule(
        "code",
        lambda error: "contains custom code" in str(error),
        "it comes with code of its own",
        lambda _: "read that code; where you trust it, set `trust_remote_code: true` of this model",
    ),
    _Rule("package", lambda error: _package(error) is not None, "a package is missing", _needs_package),
    _Rule("permission", _is_gated, "it is given only to those who have accepted its licence", _accept_licence),
    _Rule(
        "permission",
        _is_refused,
        "the hub does not accept the token",
        lambda _: "log in again with `hf auth login`, or set HF_TOKEN to a token that is valid",
    ),
    _Rule(
        "name",
        lambda error: isinstance(error, ValueError) and str(error).startswith("Config name is missing"),
        "the dataset has several configurations",
        _configurations,
    ),
    _Rule(
        "name",
        _is_unknown_name,
        "the hub has no such name, revision, configuration or split, or it is private",
        lambda _: "check how it is spelt; for a private one, log in with `hf auth login` or set HF_TOKEN",
    ),
    _Rule(
        "network",
        _is_offline,
        "the hub may not be asked",
        lambda _: (
            "HF_HUB_OFFLINE is set and it is not in the cache: unset it, or download the source and give its `path`"
        ),
    ),
    _Rule(
        "network",
        _is_network,
        "the hub cannot be reached",
        lambda _: (
            "run the same command again, what was fetched is kept; where there is no network, run it on a machine "
            "that reaches the hub, or download the source there and give its `path`"
        ),
    ),
    _Rule(
        "file",
        lambda error: isinstance(error, OSError) and "have a file named" in str(error),
        "a file is missing",
        lambda _: "copy or download the rest of the folder",
    ),
    _Rule(
        "permission",
        lambda error: isinstance(error, PermissionError),
        "the operating system refuses access",
        lambda _: "change the permissions of the file or folder",
    ),
    _Rule(
        "file",
        lambda error: isinstance(error, UnpicklingError) and not _is_damage(error),
        "it is pickled and holds more than weights, which torch's restricted loader refuses: it could run code",
        lambda _: (
            "take a copy with safetensors; or where you trust it, load it yourself with transformers, and save it"
        ),
    ),
    _Rule(
        "damage",
        _is_damage,
        "a file is damaged, or not what its name says",
        lambda _: "download or copy it again; a copy that was cut short is the usual reason",
    ),
)
