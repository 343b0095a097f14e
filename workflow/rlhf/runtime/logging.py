"""One logger set-up for all scripts, and the frame that turns a user's mistake into one clear line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from rlhf.errors import UserError

USER_ERROR_EXIT_CODE = 2


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; name it with `__name__`."""
    return logging.getLogger(name)


def configure_logging() -> None:
    """Log to standard error with time and level; ranks other than 0 log warnings only."""
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))  # srun is the launcher that sets no RANK
    mark = f" [rank {rank}]" if rank else ""
    logging.basicConfig(
        level=logging.WARNING,
        format=f"%(asctime)s %(levelname)s{mark} %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    logging.getLogger("rlhf").setLevel(logging.WARNING if rank else logging.INFO)


def run_script(main: Callable[[], None]) -> NoReturn:
    """Run a script's main function and exit.

    A `UserError` is printed as one message without a traceback and ends the process with status 2; any other
    exception keeps its traceback and ends it with status 1.
    """
    configure_logging()
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(USER_ERROR_EXIT_CODE)
    sys.exit(0)
