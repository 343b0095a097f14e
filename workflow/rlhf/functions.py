"""Functions that a configuration names as `module:function`; what fails in one is reported as its own."""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf.config.user_code import is_installed
from rlhf.errors import UserError
from rlhf.runtime.logging import get_logger

logger = get_logger(__name__)

# A gold reward: (prompt, answer, whether the answer ends with EOS) -> float.
Judge = Callable[[str, str, bool], float]


def load_function(reference: str, key: str) -> Callable[..., Any]:
    """The function behind `module:function`.

    Args:
        reference: for example `rlhf.data.reviews:gold_reward`; the configuration takes no other form.
        key: configuration key that names it, for messages.

    Raises:
        UserError: the module or the function does not exist, or importing it fails.
    """
    module_name, _, name = reference.partition(":")
    with own_errors(f"{key}: importing {module_name!r}"):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise UserError(
                f"{key}: cannot import {module_name!r} ({error}); is it installed or on PYTHONPATH?"
            ) from None
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{key}: module {module_name!r} has no function {name!r}")
    return function


@contextmanager
def own_errors(what: str) -> Iterator[None]:
    """Report what fails in the block as a failure of the user's code, with file and line; its traceback is logged.

    What has a meaning of its own passes: a `UserError`, and a lack of memory, after which a stage is tried with less.

    Args:
        what: what was being done, as `KEY: mine:rows`.

    Raises:
        UserError: the code raised something else.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        logger.error("%s failed", what, exc_info=error)
        words = " ".join(str(error).split())
        raise UserError(f"{what} failed in {_place(error)}: {type(error).__name__}: {words}") from None


def _place(error: Exception) -> str:
    """File and line of the user's that an exception comes from: the deepest one outside of installed packages."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith("<") and not is_installed(Path(frame.filename))]
    frame = (own or frames)[-1]
    return f"{frame.filename}, line {frame.lineno} ({frame.name})"


def require_arguments(function: Callable[..., Any], arguments: dict[str, Any], reference: str, key: str) -> None:
    """Refuse keyword arguments that a function does not take, before it is called: what fails in it is its own.

    Raises:
        UserError: one is unknown or missing.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C, it tells nothing
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise UserError(f"{key}: {reference} does not take them: {error}; its arguments are {signature}") from None


def load_judge(reference: str | None) -> Judge | None:
    """The gold reward that an experiment names, or None where it names none.

    Raises:
        UserError: the function cannot be loaded. The judge itself raises it where the function fails, or returns no
            number.
    """
    if reference is None:
        return None
    function = load_function(reference, "gold_reward")

    def judge(prompt: str, answer: str, finished: bool) -> float:
        with own_errors(f"gold_reward: {reference}"):
            value = function(prompt, answer, finished)
        try:
            return float(value)
        except (TypeError, ValueError):
            raise UserError(f"gold_reward: {reference} must return a number; it returned {value!r}") from None

    return judge
