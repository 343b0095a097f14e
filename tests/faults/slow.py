"""Slows a stage down, so that a signal meets it in the middle of what it does, and has it note what that is.

python slow.py SECONDS SCRIPT ARGUMENTS...

Where the variable JOURNAL names a file, process 0 adds one JSON object per line to it, before and after: `restore`,
`boundary` (between two steps), `inside` (an evaluation or a rollout), `save` (a checkpoint), `finish` (the results).
Where the variable DISK_SECONDS is set, writing a model takes that long, and a collective waits for half of it only.
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from rlhf.training import stage
from rlhf.training.checkpoints import Checkpoints
from rlhf.training.distributed import rank
from rlhf.training.engine import Trainer
from rlhf.training.stage import TrainingStage


def install(seconds: float) -> None:
    """Slow the stages of this process down by a pause at each boundary, and shorter ones elsewhere."""
    slow_down(Checkpoints, "restore", "restore", 0.0, lambda arguments, state: (state or {"step": 0})["step"])
    slow_down(Checkpoints, "boundary", "boundary", seconds, lambda arguments, result: arguments[0]["step"])
    slow_down(Checkpoints, "interrupt_point", "inside", seconds / 10)
    slow_down(Trainer, "save", "save", seconds / 5)
    slow_down(TrainingStage, "save", "finish", seconds / 2)


def slow_down(
    owner: type, name: str, action: str, pause: float, step: Callable[[tuple[Any, ...], Any], int | None] | None = None
) -> None:
    """Pause after a method, and note its beginning and end, with a step that follows from its arguments and result."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def slowly(self: Any, *arguments: Any, **keywords: Any) -> Any:
        note(action, "begin", step(arguments, None) if step else None)
        result = original(self, *arguments, **keywords)
        note(action, "end", step(arguments, result) if step else None)
        time.sleep(pause)
        return result

    setattr(owner, name, slowly)


def slow_disk(seconds: float) -> None:
    """Writing a model takes so long; from the first one on, a collective waits for half of that."""
    save, write = TrainingStage.save, stage.write_model

    def impatiently(*arguments: Any, **keywords: Any) -> None:
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds / 2), dist.group.WORLD)
        save(*arguments, **keywords)

    def slowly(*arguments: Any, **keywords: Any) -> None:
        time.sleep(seconds)
        write(*arguments, **keywords)

    TrainingStage.save, stage.write_model = impatiently, slowly


def note(action: str, when: str, step: int | None) -> None:
    """Add a line to the journal, in one write."""
    if "JOURNAL" in os.environ and rank() == 0:
        line = json.dumps({"time": time.time(), "pid": os.getpid(), "action": action, "when": when, "step": step})
        with Path(os.environ["JOURNAL"]).open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")


if __name__ == "__main__":
    # DeepSpeed's launcher puts the rank in front of all arguments.
    _, *words = sys.argv
    given = [word for word in words if word.startswith("--local_rank")]
    pause, path, *rest = words[len(given) :]
    sys.argv = [path, *given, *rest]
    install(float(pause))
    if "DISK_SECONDS" in os.environ:
        slow_disk(float(os.environ["DISK_SECONDS"]))
    runpy.run_path(path, run_name="__main__")
