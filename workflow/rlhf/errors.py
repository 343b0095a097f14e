"""Errors that the user can act on, the request to go on later, and what one process hears of another's failure."""


class UserError(Exception):
    """A mistake in the configuration, the data or the environment.

    The message says what is wrong, where (file, key, row), and what to do. Scripts print it without a traceback.
    """


class Interrupted(Exception):
    """The stage was asked to stop, has saved what it has, and goes on when it is started again."""


class PeerFailed(RuntimeError):
    """Another process of this stage has failed; the message says which one, and of what."""


def first_line(error: BaseException) -> str:
    """The first line of what an exception of a library says, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def has_errno(error: BaseException, *numbers: int) -> bool:
    """Whether the operating system gave one of these reasons (`errno.ENOSPC`, ...)."""
    return isinstance(error, OSError) and error.errno in numbers
