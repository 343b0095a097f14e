"""Cache a folder's model in a process of its own, and print what its memory grew to above its imports, in bytes."""

from __future__ import annotations

import sys
from pathlib import Path

from rlhf.config.sources import ModelSettings
from rlhf.models.cache import cache_model


def peak() -> int:
    """Largest resident memory of this process since it began or `reset` was called."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def reset() -> None:
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    reset()
    before = peak()
    cache_model(ModelSettings(source={"path": sys.argv[1]}), Path(sys.argv[2]), "models.mine")
    print(peak() - before)
