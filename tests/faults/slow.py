"""Runs a stage's script with a pause at each boundary between steps, so that a signal meets it in the middle.

python slow.py SECONDS SCRIPT ARGUMENTS...
"""

from __future__ import annotations

import runpy
import sys
import time
from typing import Any

from rlhf.training.checkpoints import Checkpoints


def main(seconds: float, script: str) -> None:
    boundary = Checkpoints.boundary

    def slowly(self: Checkpoints, state: dict[str, Any]) -> None:
        boundary(self, state)
        time.sleep(seconds)

    Checkpoints.boundary = slowly  # type: ignore[method-assign]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    _, pause, path, *rest = sys.argv
    sys.argv = [path, *rest]
    main(float(pause), path)
