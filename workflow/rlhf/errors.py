"""Errors that the user can act on."""


class UserError(Exception):
    """A mistake in the configuration, the data or the environment.

    The message says what is wrong, where (file, key, row), and what to do. Scripts print it without a traceback.
    """
