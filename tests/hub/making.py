"""All repositories, or some, written into a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.hub.datasets import DATASETS
from tests.hub.models import MODELS
from tests.hub.repository import REVISION, write


def make(root: Path, names: Iterable[str] = ()) -> list[str]:
    """Write repositories (all, or those named, and what those were renamed to); returns what was written."""
    wanted = set(names)
    unknown = wanted - MODELS.keys() - DATASETS.keys()
    if unknown:
        raise SystemExit(f"no stand-in of that name: {', '.join(sorted(unknown))}; see `list`")
    made = []
    for kind, table in (("models", MODELS), ("datasets", DATASETS)):
        for name, maker in table.items():
            if wanted and name not in wanted:
                continue
            content = maker()
            if "moved_to" in content:
                made += [] if not wanted or content["moved_to"] in wanted else make(root, [content["moved_to"]])
            elif "revisions" not in content:  # a dataset: files, or files by revision
                by_revision = all(isinstance(one, dict) for one in content.values())
                content = {"revisions": content if by_revision else {REVISION: content}}
            write(root / kind / name, **content)
            made.append(f"{kind}/{name}")
    return made
