"""Functions that a configuration names as `module:function`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from rlhf.errors import UserError

# A gold reward: (prompt, answer, whether the answer ends with EOS) -> float.
Judge = Callable[[str, str, bool], float]


def load_function(reference: str, key: str) -> Callable[..., Any]:
    """The function behind `module:function`.

    Args:
        reference: for example `rlhf.data.reviews:gold_reward`; the configuration takes no other form.
        key: configuration key that names it, for messages.

    Raises:
        UserError: the module or the function does not exist.
    """
    module_name, _, name = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"{key}: cannot import {module_name!r} ({error}); is it installed or on PYTHONPATH?") from None
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{key}: module {module_name!r} has no function {name!r}")
    return function


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
        UserError: the function cannot be loaded.
    """
    return load_function(reference, "gold_reward") if reference else None
