"""The right to write a stage's state: one process holds it, and a dead holder's right expires."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from filelock import SoftFileLease, Timeout

from rlhf.errors import UserError
from rlhf.records.attempts import Holder, read_holder, write_holder
from rlhf.runtime.logging import get_logger

logger = get_logger(__name__)

LEASE_SECONDS = 60.0


class StateLease:
    """Keeps a second job from writing the state and the results of a stage that a first one still works on.

    A killed controller leaves its cluster jobs running, and the next one submits them again. The holder renews its
    claim in a thread. A claim of this host expires with its process, one of another host after a minute without a
    renewal, by the waiting process's own clock. Whoever lost its claim must not write any more: see `require`.

    Args:
        folder: state/<stage>/<id>/.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lease = SoftFileLease(folder / "lease", lease_duration=LEASE_SECONDS, thread_local=False)

    def acquire(self) -> None:
        """Take the lease; waits for the expiry of a claim from another host.

        Raises:
            UserError: another process works on this stage.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lease.acquire(timeout=0)
        except Timeout:
            self._wait()
        write_holder(self._folder, _this_process())

    def _wait(self) -> None:
        holder = read_holder(self._folder)
        if holder.get("host") == socket.gethostname():
            raise UserError(self._refusal(holder))
        logger.info("waiting up to %.0f s: %s", 1.5 * LEASE_SECONDS, self._refusal(holder))
        try:
            self._lease.acquire(timeout=1.5 * LEASE_SECONDS)
        except Timeout:
            raise UserError(self._refusal(read_holder(self._folder))) from None

    def require(self) -> None:
        """Make sure that the claim still holds, before something is written for good.

        Raises:
            UserError: another process has taken over, because this one was silent for too long.
        """
        if self._lease.compromise is not None:
            taker = _describe(read_holder(self._folder))
            raise UserError(
                f"{self._folder}: another process has taken over ({taker}), because this one gave no sign of life for "
                "a minute; nothing more is written here"
            )

    def release(self) -> None:
        """Give the lease back."""
        self._lease.release()

    def _refusal(self, holder: Holder) -> str:
        return (
            f"{self._folder}: this stage is being computed by another job ({_describe(holder)}); wait for it, or "
            "cancel it and start again"
        )


def _this_process() -> Holder:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _describe(holder: Holder) -> str:
    if not holder:
        return "unknown process"
    job = f"job {holder['job']}, " if holder.get("job") else ""
    return f"{job}process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"
