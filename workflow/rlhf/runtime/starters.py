"""The processes that started this one: a launcher, Snakemake. Where one of them dies, nobody waits for this one."""

from __future__ import annotations

import itertools
from pathlib import Path

import psutil

# By these names of a program or a Python module; what a person typed into a shell may outlive the shell.
NAMES = frozenset({"deepspeed", "deepspeed.launcher.launch", "snakemake", "torch.distributed.run", "torchrun"})


def starters() -> list[psutil.Process]:
    """The launchers above this process, the nearest first, and the Snakemake above them where there is one."""
    return list(itertools.takewhile(_starts_stages, psutil.Process().parents()))


def is_gone(process: psutil.Process) -> bool:
    """Whether a process has ended, also where its parent has not asked for its exit status yet (a zombie)."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _starts_stages(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:  # ended meanwhile, or another user's, which no launcher of ours is
        return False
    # The program, or `python -u script` or `python -m module`.
    return any(Path(word).name in NAMES for word in words[:4])
