"""One logger set-up for all scripts, and the frame that turns a user's mistake into one clear line."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from rlhf.errors import Interrupted, UserError
from rlhf.runtime.failure import explain

PACKAGE = "rlhf"
LOG_FORMAT, LOG_DATES = "%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"
USER_ERROR_EXIT_CODE = 2
RESUME_EXIT_CODE = 75  # EX_TEMPFAIL: not done, and goes on when it is started again


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; name it with `__name__`."""
    return logging.getLogger(name)


def configure_logging() -> None:
    """Log to standard error with time and level; ranks other than 0 log warnings only."""
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))  # srun is the launcher that sets no RANK
    mark = f" [rank {rank}]" if rank else ""
    logging.basicConfig(
        level=logging.WARNING,
        format=LOG_FORMAT.replace("%(levelname)s", f"%(levelname)s{mark}"),
        datefmt=LOG_DATES,
        stream=sys.stderr,
        force=True,
    )
    logging.getLogger(PACKAGE).setLevel(logging.WARNING if rank else logging.INFO)


def run_script(main: Callable[[], None]) -> NoReturn:
    """Run a script's main function and exit.

    A `UserError` is printed as one message without a traceback and ends the process with status 2. A stage that was
    interrupted and goes on when it is started again ends with status 75. Any other exception keeps its traceback, has
    its cause and remedy after it, and ends the process with status 1.
    """
    configure_logging()
    _leave(_status(main))


def _status(main: Callable[[], None]) -> int:
    """Run a script's main function; returns the exit status of the process, having printed what went wrong."""
    try:
        main()
    except UserError as error:
        _print(f"error: {error}")
        return USER_ERROR_EXIT_CODE
    except Interrupted as error:
        _print(f"interrupted: {error}")
        return RESUME_EXIT_CODE
    except Exception as error:
        traceback.print_exc()
        _print(f"error: {explain(error)}")
        return 1
    return 0


def _leave(status: int) -> NoReturn:
    """End the process as the interpreter does, but do not take the interpreter down under native threads.

    Gloo's threads keep tensors of the last collectives. One that frees a tensor while the interpreter ends aborts the
    process (pytorch/pytorch#179291), and a stage whose results are written would count as failed.
    """
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _print(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
