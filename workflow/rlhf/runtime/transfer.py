"""Signs of life of a step that fetches or writes much: how many bytes a folder has won."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rlhf.runtime.logging import get_logger
from rlhf.runtime.progress import LOG_INTERVAL_SECONDS

logger = get_logger(__name__)


@contextlib.contextmanager
def bytes_logged(folder: Path, text: str, total: int | None = None) -> Iterator[None]:
    """Log how many bytes a folder has won, every ten seconds for as long as the block lasts.

    Args:
        folder: need not be there yet.
        text: what is said before the number.
        total: bytes that are expected, where they are known.
    """
    ended, start, began = threading.Event(), _bytes(folder), time.monotonic()

    def watch() -> None:
        while not ended.wait(LOG_INTERVAL_SECONDS):
            done = _bytes(folder) - start
            speed = done / (time.monotonic() - began)
            expected = f" of {gigabytes(total)}" if total else ""
            logger.info("%s %s%s (%s/s)", text, gigabytes(done), expected, gigabytes(speed))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def gigabytes(count: float) -> str:
    """A number of bytes in words: `26.32 GB`; small ones in MB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _bytes(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):  # it may be renamed meanwhile
            total += file.stat().st_size if file.is_file() and not file.is_symlink() else 0
    return total
