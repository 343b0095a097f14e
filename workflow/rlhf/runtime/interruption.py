"""What asks a stage to stop: signals, the time limit it runs under, the end of what started it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import psutil

from rlhf.runtime.logging import get_logger
from rlhf.runtime.starters import is_gone

logger = get_logger(__name__)

# SIGHUP: the terminal was closed.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
# Of a time limit, what is left for what is not measured: the end of the process and of its job.
RESERVE_SECONDS, RESERVE_SHARE = 60.0, 0.1
# Launchers deliver one request twice within a moment; a second request is a person's.
REPEAT_SECONDS = 1.0


class Interruption:
    """Whether this process has been asked to stop: by a signal, or by an approaching time limit.

    Who started it counts too: a process whose launcher or Snakemake was killed would go on unseen, and its results
    would be made again.

    Args:
        limit_seconds: time that the job may take in all, or None where there is no limit.
        starters: processes without which this one has no reason to go on.
    """

    def __init__(self, limit_seconds: float | None = None, starters: Sequence[psutil.Process] = ()) -> None:
        self.reason: str | None = None
        self._starters = starters
        self._first = 0.0
        self._deadline: float | None = None
        if limit_seconds is not None:
            self._deadline = time.monotonic() + limit_seconds - min(RESERVE_SECONDS, RESERVE_SHARE * limit_seconds)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Signals are requests in the block: the first is noted, a second one ends the process at once.

        SIGHUP stays ignored where `nohup` has made it so.
        """
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
        before = {number: signal.signal(number, self._receive) for number in SIGNALS if number not in ignored}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def look_for_starters(self) -> None:
        """Ask for a stop if a launcher, or the Snakemake that started this process, is gone."""
        if self.reason is None and any(is_gone(process) for process in self._starters):
            self.reason = "the process that started this one is gone"

    def expect(self, seconds: float) -> None:
        """Ask for a stop if what comes next takes `seconds` and the time limit does not leave them."""
        if self.reason is None and self._deadline is not None and time.monotonic() + seconds > self._deadline:
            self.reason = "the time limit is near"

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.reason is None:
            self.reason, self._first = signal.Signals(number).name, now
            logger.warning("%s: saving at the next chance; a second signal ends the process at once", self.reason)
        # Slurm sends a request to the job and to its steps, seconds apart, and kills in the end by itself.
        elif now - self._first > REPEAT_SECONDS and "SLURM_JOB_ID" not in os.environ:
            logger.error("%s again: ending without saving", signal.Signals(number).name)
            os._exit(128 + number)


def slurm_seconds_left(runtime_minutes: float) -> float | None:
    """Seconds until Slurm ends this job; None outside Slurm.

    Args:
        runtime_minutes: limit that the job was submitted with, where Slurm itself does not tell.
    """
    if "SLURM_JOB_ID" not in os.environ:
        return None
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    return float(end) - time.time() if end.isdigit() else 60.0 * runtime_minutes
