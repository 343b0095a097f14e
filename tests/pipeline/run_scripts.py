"""Runs stage scripts one after another in this process, or in those of a launcher: `run_scripts.py COMMANDS.json`.

A start costs more than a small stage. Each script parses its own command line and runs its own `main`; only the process
group is kept from one to the next.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

from rlhf.training.distributed import processes


def load(script: str) -> ModuleType:
    """The script as a module."""
    specification = importlib.util.spec_from_file_location(Path(script).stem, script)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


if __name__ == "__main__":
    commands = json.loads(Path(sys.argv[-1]).read_text())
    with processes():
        for command in commands:
            sys.argv = command
            script = load(command[0])
            script.processes = contextlib.nullcontext
            script.main(script.parse_args())
