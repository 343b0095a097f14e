"""Results that survive a failure in the last moment: killed when all is written, but not yet recorded.

Snakemake removes the results of a job that did not end well, also where they were complete. They are therefore linked
into the state folder as well, which costs no space, until a Snakemake has come to its end.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rlhf.config.specification import AnySpecification
from rlhf.records.manifest import MANIFEST, is_whole, read_manifest
from rlhf.runtime.folders import atomic_directory
from rlhf.runtime.logging import get_logger

logger = get_logger(__name__)

FOLDER = "finished"
KEPT = (FOLDER, "lease")


def set_aside(output: Path, state: Path) -> None:
    """Link the results into the state folder, and remove what training needed there.

    Args:
        output: results/STAGE/ID, complete.
        state: state/STAGE/ID.
    """
    names = [*read_manifest(output)["outputs"], MANIFEST]
    try:
        with atomic_directory(state / FOLDER) as folder:
            for name in names:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(output / name, folder / name)
    except OSError as error:  # another file system, or one without hard links
        logger.info("the results have no second place until they are recorded: %s", error)
    for path in state.iterdir():
        if path.name not in KEPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def bring_back(output: Path, state: Path, spec: AnySpecification) -> bool:
    """Put the results of an earlier attempt back in their place.

    Args:
        output: results/STAGE/ID.
        state: state/STAGE/ID.
        spec: the stage's specification; results of another one are left alone.

    Returns:
        Whether there were any, whole and of this specification.
    """
    folder = state / FOLDER
    if not folder.is_dir():
        return False
    if not (is_whole(folder) and _is_of(folder, spec)):
        logger.warning("%s: damaged, or of another specification; not used", folder)
        return False
    output.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST):  # last: it says that all is there
        place = output / path.name
        if path.is_dir():
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(path, place, copy_function=os.link)
        else:
            place.unlink(missing_ok=True)
            os.link(path, place)
    logger.info("%s was finished by an attempt that failed afterwards, or that nobody recorded", output)
    return True


def _is_of(folder: Path, spec: AnySpecification) -> bool:
    """Whether results are of a specification; how they were made is no part of it."""
    made = read_manifest(folder).get("spec", {})
    return {**made, "execution": None} == {**spec.identity(), "execution": None}
