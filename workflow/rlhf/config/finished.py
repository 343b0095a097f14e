"""Stages that were finished while nobody watched: Snakemake was killed, and its job went on to the end.

Snakemake takes such results for incomplete, and would remove them and make them again. But a stage writes its manifest
last, with the hashes of all its files, so that it can be told whether they are whole.
"""

from __future__ import annotations

import binascii
import shutil
from base64 import urlsafe_b64decode
from collections import defaultdict
from pathlib import Path

from rlhf.phases import PHASES
from rlhf.records.manifest import MANIFEST, is_whole

MARKS = Path(".snakemake/incomplete")


def accept_finished() -> list[str]:
    """Take Snakemake's mark `incomplete` from the results of training stages that are whole.

    Returns:
        The folders of these stages, relative to the working directory.
    """
    marks: dict[Path, list[Path]] = defaultdict(list)
    for mark in MARKS.rglob("*"):
        place = Path(_marked_path(mark)).parent
        if len(place.parts) == 3 and place.parts[0] == "results" and place.parts[1] in PHASES:
            marks[place].append(mark)
    accepted = sorted(place for place in marks if is_whole(place))
    for place in accepted:
        for mark in marks[place]:
            mark.unlink(missing_ok=True)
    return [str(place) for place in accepted]


def remove_recorded_states(root: Path = Path()) -> None:
    """Remove what finished training stages have set aside, where their results are in their place.

    To be called when Snakemake has recorded what ended well, and removed the results of what did not.
    """
    for kind in PHASES:
        for aside in (root / "state" / kind).glob("*/finished"):
            if (root / "results" / kind / aside.parent.name / MANIFEST).exists():
                shutil.rmtree(aside.parent)


def _marked_path(mark: Path) -> str:
    """The output that a mark belongs to; Snakemake (9.27) encodes its path, and cuts a long one into folders."""
    code = "".join(part.removeprefix("@") for part in mark.relative_to(MARKS).parts)
    try:
        return urlsafe_b64decode(code).decode()
    except (binascii.Error, ValueError):  # a folder of a long path, or no mark
        return ""
