"""Run the small experiment and store its curves where they have moved: `python -m tests.golden`.

A file in which nothing has moved by more than rounding stays as it is.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.golden.curves import FOLDER, STAGES, curve, moved, read, write
from tests.project import complete

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        project = complete(Path(folder))
        for stage in STAGES:
            found = curve(project, stage)
            changes = moved(found, read(stage)) if (FOLDER / f"{stage}.csv").exists() else [(0, "", "all of it", None)]
            for row, name, new, old in changes:
                print(f"{stage}, {row}: {name} {new}, was {old}")
            if changes:
                write(stage, found)
            else:
                print(f"{stage}: as stored")
