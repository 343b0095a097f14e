"""From the words of a training command to the typed values of its flags."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from rlhf.convert.flags import CORE, LAUNCHER, Flag, Value
from rlhf.convert.programs import PROGRAMS
from rlhf.convert.shell import COMMAND_OUTPUT, PROGRAM, Missing, Reader, Word
from rlhf.errors import UserError

Kind = TypeVar("Kind")
_KINDS = {int: "a whole number", float: "a number", str: "one word", bool: "no value"}
_ALIASES = {"num_accelerators": "num_gpus", "nproc_per_node": "num_gpus", "nproc-per-node": "num_gpus"}
_ALIASES |= {"nnodes": "num_nodes"}


@dataclass
class Command:
    """A training command of one phase.

    Attributes:
        phase: `sft`, `reward` or `ppo`.
        place: where it was read, for messages.
        given: flag -> value, as far as the command gives it.
        launch: flag of the launcher -> the processes it counts, or None where it has no effect here.
    """

    phase: str
    place: str
    given: dict[str, Value] = field(default_factory=dict)
    launch: dict[str, int | None] = field(default_factory=dict)

    def value(self, name: str) -> Value:
        """What the program runs with: the given value, or its default."""
        return self.given.get(name, next(flag.default for flag in PROGRAMS[self.phase] if flag.name == name))

    def get(self, name: str, kind: type[Kind]) -> Kind | None:
        """The value of a flag of this kind; None where it is neither given nor has a default."""
        value = self.value(name)
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"--{name} is {value!r}, no {kind.__name__}")
        return value

    def number(self, name: str) -> int:
        """The value of a flag that counts something; 0 where it is neither given nor has a default."""
        return self.get(name, int) or 0

    def words(self, name: str) -> list[str]:
        """The words of a flag that takes any number of them."""
        return self.get(name, list) or []


def read_command(phase: str, place: str, text: str, variables: dict[str, str]) -> Command:
    """The training command of a script.

    Args:
        phase: `sft`, `reward` or `ppo`.
        place: name of the script, for messages.
        text: a shell script or a command line.
        variables: shell variables that the user sets.

    Raises:
        UserError: the script cannot be followed, a flag is unknown, or a value is missing or of another kind.
    """
    words = Reader(place, variables).command(text)
    program = next(index for index, word in enumerate(words) if isinstance(word, str) and word.endswith(PROGRAM))
    step = f"step {list(PROGRAMS).index(phase) + 1}"
    given = _flags(words[program + 1 :], (*PROGRAMS[phase], *CORE), place, step)
    return Command(phase, place, given, _launch(words[:program], place))


def _launch(words: Sequence[Word], place: str) -> dict[str, int | None]:
    """Flags of the launcher: numbers where they count processes, None for all others."""
    table = {flag.name: flag for flag in LAUNCHER}
    found: dict[str, int | None] = {}
    for index, word in enumerate(words):
        if not isinstance(word, str) or not word.startswith("-"):
            continue
        name, sign, attached = word.lstrip("-").partition("=")
        flag = table.get(_ALIASES.get(name, name))
        values: list[Word] = [attached] if sign else list(words[index + 1 : index + 2])
        counts = flag is not None and flag.use == "convert"
        number = _typed(flag, values, place) if flag and counts else None
        found[flag.name if flag else name] = number if isinstance(number, int) else None
    return found


def _flags(words: Sequence[Word], known: tuple[Flag, ...], place: str, program: str) -> dict[str, Value]:
    """Flag -> value of the program's own flags."""
    table = {flag.name: flag for flag in known}
    found: dict[str, Value] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not isinstance(word, str) or not word.startswith("--"):
            raise UserError(f"{place}: {_shown(word)} belongs to no flag of {program}")
        name, sign, attached = word[2:].partition("=")
        flag = table.get(name)
        if flag is None:
            near = difflib.get_close_matches(name, table, n=1)
            hint = f"; did you mean --{near[0]}?" if near else ""
            raise UserError(f"{place}: {program} of DeepSpeed-Chat has no flag --{name}{hint}")
        values: list[Word] = [attached] if sign else []
        while rest and not sign and not _is_flag(rest[0]):
            values.append(rest.pop(0))
        found[flag.name] = _typed(flag, values, place)
    return found


def _is_flag(word: Word) -> bool:
    return isinstance(word, str) and word.startswith("--")


def _typed(flag: Flag, values: list[Word], place: str) -> Value:
    missing = next((word for word in values if isinstance(word, Missing)), None)
    if missing is not None and flag.use == "report":
        return None  # it has no effect here
    if missing is not None:
        raise UserError(
            f"{place}: --{flag.name} is {_shown(missing)}, which the script does not say; {_remedy(missing)}"
        )
    if flag.kind is list:
        return [str(value) for value in values]
    if len(values) != (0 if flag.kind is bool else 1):
        given = " ".join(str(value) for value in values) or "nothing"
        raise UserError(f"{place}: --{flag.name} takes {_KINDS[flag.kind]} (given: {given})")
    if flag.kind is bool:
        return True
    try:
        value: Value = flag.kind(values[0])
    except ValueError:
        raise UserError(f"{place}: --{flag.name} takes {_KINDS[flag.kind]} (given: {values[0]!r})") from None
    return value


def _shown(word: Word) -> str:
    if isinstance(word, str):
        return repr(word)
    return "the output of a command" if word.name == COMMAND_OUTPUT else f"${word.name}"


def _remedy(missing: Missing) -> str:
    if missing.name.isidentifier() or missing.name.isdigit():
        return f"give it with --set {missing.name}=VALUE; --set {missing.name}= leaves it empty, as the shell does"
    return "write its value into a copy of the script"
