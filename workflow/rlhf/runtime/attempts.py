"""The attempts at a stage: a log of each, and why it failed.

Snakemake removes the log of a failed job before the next attempt; these stay until the stage is done.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rlhf.errors import Interrupted
from rlhf.records.attempts import FAILURES, out_of_memory_failures, write_failure, write_memory_steps
from rlhf.runtime.failure import explain
from rlhf.runtime.logging import LOG_DATES, LOG_FORMAT, PACKAGE


class Attempt:
    """One attempt at a stage: rank 0 keeps a log of it, and every rank that fails says why.

    Args:
        state: state/<stage>/<id>/; below it are `logs/attempt-N.log` and `failures/rank-R.json`, the latter of the
            last attempt only.
        rank: of this process.
    """

    def __init__(self, state: Path, rank: int = 0) -> None:
        self._state, self._rank = state, rank
        self._logs = state / "logs"
        self._handler: logging.Handler | None = None
        self.number = 0

    def __enter__(self) -> Self:
        if self._rank == 0:
            self._logs.mkdir(parents=True, exist_ok=True)
            self.number = 1 + len(list(self._logs.glob("attempt-*.log")))
            self._handler = logging.FileHandler(self._logs / f"attempt-{self.number}.log", encoding="utf-8")
            self._handler.setFormatter(logging.Formatter(LOG_FORMAT, LOG_DATES))
            logging.getLogger(PACKAGE).addHandler(self._handler)
            write_memory_steps(self._state, {"failures": out_of_memory_failures(self._state)})
            shutil.rmtree(self._state / FAILURES, ignore_errors=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, Interrupted):
                logging.getLogger(PACKAGE).info("interrupted: %s", error)
            elif error is not None:
                self._record(error)
        finally:  # on a full disk the record fails as well
            if self._handler is not None:
                logging.getLogger(PACKAGE).removeHandler(self._handler)
                self._handler.close()

    def _record(self, error: BaseException) -> None:
        failure = explain(error)
        logging.getLogger(PACKAGE).error("rank %d: %s", self._rank, failure)
        write_failure(
            self._state,
            {
                "cause": failure.cause,
                "message": str(failure),
                "rank": self._rank,
                "time": time.time(),
                "host": socket.gethostname(),
                "pid": os.getpid(),
            },
        )
