"""What a worker's process does: imports first, then one job after another. The device is touched by the first job."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

POLL_SECONDS = 0.02


def run_script(command: list[str]) -> None:
    """Run a script of the workflow in this process; the process group stays for the next one."""
    script = _load(command[0])
    script.processes = _group  # type: ignore[attr-defined]
    sys.argv = command
    with _engines_end():
        script.main(script.parse_args())  # type: ignore[attr-defined]


def run_interrupted(command: list[str], step: int) -> None:
    """Run a training script that gets a SIGTERM while it records a training step.

    Raises:
        RuntimeError: the stage did not stop.
    """
    from rlhf.errors import Interrupted
    from rlhf.runtime.progress import StageMetrics

    record = StageMetrics.record

    def record_and_ask(self: StageMetrics, number: int, phase: str, **metrics: float) -> None:
        record(self, number, phase, **metrics)
        if (number, phase) == (step, "train"):
            os.kill(os.getpid(), signal.SIGTERM)

    StageMetrics.record = record_and_ask  # type: ignore[method-assign]
    try:
        run_script(command)
    except Interrupted:
        return
    finally:
        StageMetrics.record = record  # type: ignore[method-assign]
    raise RuntimeError(f"the stage did not stop at step {step}")


@contextlib.contextmanager
def _group(*_: Any) -> Iterator[None]:
    """The process group, joined by the first script and kept."""
    from rlhf.training.distributed import processes

    if not _KEPT:
        stack = contextlib.ExitStack()
        stack.enter_context(processes())
        _KEPT.append(stack)
    yield


_KEPT: list[contextlib.ExitStack] = []


@contextlib.contextmanager
def _engines_end() -> Iterator[None]:
    """End DeepSpeed's engines with their script, as the end of a process does: they hold memory in circles."""
    import deepspeed

    made: list[Any] = []
    initialize = deepspeed.initialize

    def noted(*arguments: Any, **options: Any) -> Any:
        result = initialize(*arguments, **options)
        made.append(result[0])
        return result

    deepspeed.initialize = noted
    try:
        yield
    finally:
        deepspeed.initialize = initialize
        while made:
            made.pop().destroy()
        gc.collect()


def _load(path: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _answer(line: str) -> None:
    job = json.loads(line)
    while job["after"] is not None and not Path(job["after"]).exists():
        time.sleep(POLL_SECONDS)
    started = time.monotonic()
    try:
        module, name = job["call"].split(":")
        answer = json.dumps({"value": getattr(importlib.import_module(module), name)(**job["arguments"])})
    except BaseException as error:  # SystemExit too: the parent is told, and the next job comes
        traceback.print_exc()
        first = (str(error) or "no message").splitlines()[0]
        told = {"error": f"{type(error).__name__}: {first}", "traceback": traceback.format_exc()}
        answer = json.dumps(told)
    print(f"{job['call']}: {time.monotonic() - started:.2f} s", flush=True)
    beside = Path(f"{job['answer']}.part")
    beside.write_text(answer, encoding="utf-8")
    beside.replace(job["answer"])


def main() -> None:
    """Import what training needs, then do jobs until there are no more."""
    jobs = os.fdopen(os.dup(0), encoding="utf-8")
    started = time.monotonic()
    from rlhf.runtime.logging import configure_logging

    configure_logging()
    for module in ("rlhf.training.distributed", "rlhf.ppo.loop", "rlhf.training.reward", "rlhf.planning.files"):
        importlib.import_module(module)
    print(f"imports: {time.monotonic() - started:.2f} s", flush=True)
    for line in jobs:
        _answer(line)
    for stack in _KEPT:
        stack.close()


if __name__ == "__main__":
    # Jobs name this module by its name: there must be one of it, not a second one beside `__main__`.
    importlib.import_module("benchmarks.gpu.jobs").main()
