"""Snakemake that asks for its jobs every three seconds.

The plugin's interval grows by ten seconds with each question after which no job had completed; no option sets that.
The file `asked` is touched after each question.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor


async def sleep(self: RemoteExecutor) -> None:
    Path("asked").touch()
    await asyncio.sleep(min(3, self.next_seconds_between_status_checks))


RemoteExecutor.sleep = sleep

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it, as would we
    main()
