"""Datasets and models as DeepSpeed-Chat names them, and as the configuration does."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rlhf.data.published import KNOWN

Section = dict[str, Any]  # a mapping of the configuration file
LOCAL_JSON = "local/jsonfile"
SPACED = {"prompt_format": " {prompt}", "answer_format": " {answer}"}  # as its class puts in
LANGUAGES = {"mkqa-Chinese": "zh_cn", "mkqa-Japanese": "ja"}  # names that its program alone knows
_HUB = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def dataset(path: str, sft_only: bool) -> tuple[Section, list[str]]:
    """Settings of a dataset, and notes about what the reader must add.

    Args:
        path: a word of `--data_path` or `--sft_only_data_path`.
        sft_only: it serves step 1 only.
    """
    own: Section = {"data_split": "1,0,0"} if sft_only else {}
    if path == LOCAL_JSON:
        files = {"train": "data/train.json", "eval": "data/eval.json"}
        return {"source": {"path": files}, **SPACED} | own, [f"{path} is read from {' and '.join(files.values())}"]
    if path in LANGUAGES:
        language = LANGUAGES[path]
        columns = {"prompt": f"queries.{language}", "chosen": f"answers.{language}.0.text"}
        return {"source": {"hub": "apple/mkqa"}, "columns": columns} | own, []
    place = {"hub": path} if _is_hub(path) else {"path": path}
    notes = [] if path in KNOWN else [f"{path} has no ready mapping: set its shape and columns (config/README.md)"]
    return {"source": place} | own, notes


def model(path: str) -> Section:
    """Settings of a model: a hub name or a folder."""
    return {"source": {"hub": path} if _is_hub(path) else {"path": path}}


def names_of_paths(paths: Iterable[str]) -> dict[str, str]:
    """Path -> a name for it, its last part in lower case; later ones of equal names get a number."""
    found: dict[str, str] = {}
    for path in paths:
        base = re.sub(r"[^a-z0-9_.-]+", "-", path.rstrip("/").rsplit("/", 1)[-1].lower()).strip("-._")[:60] or "x"
        taken = {name for known, name in found.items() if known != path}
        number = 2
        name = base
        while name in taken:
            name, number = f"{base}-{number}", number + 1
        found[path] = name
    return found


def _is_hub(path: str) -> bool:
    return _HUB.fullmatch(path) is not None
