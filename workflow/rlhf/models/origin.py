"""Where a model's files come from: a hub's repository at a commit, or a folder; and the licence they state."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME

from rlhf import hub
from rlhf.causes import FOREIGN, cause
from rlhf.config.sources import ModelSource
from rlhf.errors import UserError
from rlhf.models.folders import require_model_files
from rlhf.models.merged import FILE
from rlhf.models.weights import weight_files

# What is fetched of a hub's repository beside weights: configuration, tokenizer, card.
TEXTS = ("*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken", "additional_chat_templates/*.jinja", "README.md", FILE)
CODE = "*.py"  # where it may be run


@dataclass(frozen=True)
class Origin:
    """Where a model's files are, and from where they came.

    Attributes:
        folder: with the files.
        hub: name on a hub, or None.
        revision: as it was asked for.
        commit: of a hub, that the files are of.
    """

    folder: Path
    hub: str | None = None
    revision: str | None = None
    commit: str | None = None


def find_origin(source: ModelSource, key: str, trust_remote_code: bool) -> Origin:
    """The files of a source on this machine, fetched where they were not."""
    name = source.hub or str(source.path)
    if source.hub is None:
        folder = Path(name)
        if not folder.is_dir():
            raise UserError(f"{key}: there is no folder {name!r}; paths are relative to the working directory")
        return Origin(folder)
    if Path(name).exists():  # somebody who writes it means that, and no hash of it would be in the ID
        raise UserError(f"{key}: there is a local file or folder {name!r}; give it as {key[:-3]}path, or move it")
    try:
        found = hub.find(name, source.revision, "model")
        paths = _wanted(found, key, trust_remote_code)
        folder = hub.fetch(found, paths)
        hub.remember(found, source.revision)
    except (*FOREIGN, UserError) as error:
        said = str(cause(error))
        raise UserError(said if said.startswith(key) else f"{key}: {name!r} cannot be fetched: {said}") from None
    return Origin(folder, name, source.revision, found.commit)


def _wanted(found: hub.Found, key: str, trust_remote_code: bool) -> list[str]:
    """The files of a repository that are read: of weights, one kind alone.

    Raises:
        UserError: it has no model that is read here.
    """
    texts = [path for path in found.files if is_text(path) or (trust_remote_code and _fits(path, CODE))]
    in_part = "" if found.reached else " (the hub was not asked, and this is what the cache has of it)"
    require_model_files(found.files, key, found.name + in_part)
    indices = [path for path in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME) if path in found.files]
    snapshot = hub.fetch(found, indices)
    weights = weight_files(found.files, lambda path: snapshot / path, f"{key}: {found.name!r}")
    files = weights.files if weights else ()
    missing = [file for file in files if file not in found.files]
    if missing:
        raise UserError(
            f"{key}: {found.name!r}{in_part} lacks {missing[0]} ({len(missing)} of {len(files)} weight files are "
            "missing)"
        )
    return [*texts, *files]


def is_text(path: str) -> bool:
    """Whether a file of a repository is read beside its weights."""
    return any(_fits(path, pattern) for pattern in TEXTS)


def _fits(path: str, pattern: str) -> bool:
    return path.count("/") == pattern.count("/") and fnmatch.fnmatchcase(path, pattern)
