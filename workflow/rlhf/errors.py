"""Errors that the user can act on, and the request to go on later."""


class UserError(Exception):
    """A mistake in the configuration, the data or the environment.

    The message says what is wrong, where (file, key, row), and what to do. Scripts print it without a traceback.
    """


class Interrupted(Exception):
    """The stage was asked to stop, has saved what it has, and goes on when it is started again."""
