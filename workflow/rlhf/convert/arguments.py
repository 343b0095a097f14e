"""From the words of a training command to the typed values of its flags."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from rlhf.convert.flags import CORE, LAUNCHER, Flag, Value
from rlhf.convert.programs import PROGRAMS
from rlhf.convert.shell import COMMAND_OUTPUT, PROGRAM, Empty, Missing, Reader, Word, remedy
from rlhf.errors import UserError

Kind = TypeVar("Kind")
_KINDS = {int: "a whole number", float: "a number", str: "one word", bool: "no value"}
_ALIASES = {"num_accelerators": "num_gpus", "nproc_per_node": "num_gpus", "nproc-per-node": "num_gpus"}
_ALIASES |= {"nnodes": "num_nodes"}
# Folder of DeepSpeed-Chat -> the phase that its scripts are of.
DPO = "step2_dpo_finetuning"
STEPS = {
    "step1_supervised_finetuning": "sft",
    "step2_reward_model_finetuning": "reward",
    DPO: None,
    "step3_rlhf_finetuning": "ppo",
}
DPO_FLAGS = ("beta", "label_smoothing")  # that no other step has


@dataclass
class Command:
    """A training command of one phase.

    Attributes:
        phase: `sft`, `reward` or `ppo`.
        place: where it was read, for messages.
        given: flag -> value, as far as the command gives it.
        launch: flag of the launcher -> the processes it counts, or None where it has no effect here.
        notes: what was taken as bash takes it, though the script may mean something else.
    """

    phase: str
    place: str
    given: dict[str, Value] = field(default_factory=dict)
    launch: dict[str, int | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

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
        UserError: the script cannot be followed or is of another step, a flag is unknown, or a value is missing or of
            another kind.
    """
    words = Reader(place, variables).command(text)
    program = next(index for index, word in enumerate(words) if isinstance(word, str) and word.endswith(PROGRAM))
    require_step(phase, str(words[program]))
    step = f"step {list(PROGRAMS).index(phase) + 1}"
    given, unset = _flags(words[program + 1 :], (*PROGRAMS[phase], *CORE), place, step)
    notes = [
        f"the script of {phase} does not set ${name}: left out, as bash does; where it has a value, {remedy(name)}"
        for name in dict.fromkeys([*_unset(words[:program]), *unset])
    ]
    return Command(phase, place, given, _launch(words[:program], place), notes)


def require_step(phase: str, path: str) -> None:
    """Refuse what by its name is of another step of DeepSpeed-Chat, as the flags of the steps are alike.

    Args:
        phase: that it is given for.
        path: of a script, or of the program that it runs.

    Raises:
        UserError: its folder is that of another step, or it is of DPO, which is no stage here.
    """
    *folders, file = Path(path).parts
    step = next((folder for folder in reversed(folders) if folder in STEPS), None)
    if step == DPO or (step is None and re.search(r"(^|[^a-z])dpo([^a-z]|$)", file.lower())):
        own = next(folder for folder, of in STEPS.items() if of == phase)
        raise UserError(f"{path}: this is DPO ({DPO}), which is no stage here; --{phase} takes a script of {own}")
    if step is not None and STEPS[step] != phase:
        raise UserError(f"{path}: this is of {step}; give it with --{STEPS[step]}, not with --{phase}")


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


def _flags(
    words: Sequence[Word], known: tuple[Flag, ...], place: str, program: str
) -> tuple[dict[str, Value], list[str]]:
    """Flag -> value of the program's own flags, and the names of variables that were left out as they are not set."""
    table = {flag.name: flag for flag in known}
    found: dict[str, Value] = {}
    rest = list(words)
    unset: list[str] = []
    while rest:
        word = rest.pop(0)
        if isinstance(word, Empty):
            unset += _unset([word])
            continue
        if not isinstance(word, str) or not word.startswith("--"):
            raise UserError(f"{place}: {_shown(word)} belongs to no flag of {program}")
        name, sign, attached = word[2:].partition("=")
        flag = table.get(name)
        if flag is None:
            raise UserError(f"{place}: {program} of DeepSpeed-Chat has no flag --{name}{_hint(name, table)}")
        values: list[Word] = [attached] if sign else []
        while rest and not sign and not _is_flag(rest[0]):
            values.append(rest.pop(0))
        found[flag.name] = _typed(flag, values, place)
        if found[flag.name] is not None:
            unset += _unset(values)
    return found, unset


def _hint(name: str, table: Iterable[str]) -> str:
    if name in DPO_FLAGS:
        return f": it is one of {DPO}, and DPO is no stage here"
    near = difflib.get_close_matches(name, table, n=1)
    return f"; did you mean --{near[0]}?" if near else ""


def _unset(words: Iterable[Word]) -> list[str]:
    """The variables that nobody has set, of words that bash leaves out."""
    return [word.name for word in words if isinstance(word, Empty) and not word.said]


def _is_flag(word: Word) -> bool:
    return isinstance(word, str) and word.startswith("--")


def _typed(flag: Flag, values: list[Word], place: str) -> Value:
    """The value of a flag from the words up to the next flag; None where it is not known and has no effect here."""
    words = [word for word in values if not isinstance(word, Empty)]
    needed = len(words) if flag.kind is list else int(flag.kind is not bool)
    more = next((word for word in words[needed:] if isinstance(word, Missing)), None)
    if more is not None:
        raise UserError(
            f"{place}: what {_shown(more)} after --{flag.name} stands for is not in the script; {remedy(more.name)}"
        )
    left_out = values if len(words) < needed else []
    unsaid = next((word for word in (*words, *left_out) if not isinstance(word, str)), None)
    if unsaid is not None and flag.use == "report":
        return None
    if unsaid is not None:
        raise UserError(
            f"{place}: --{flag.name} is {_shown(unsaid)}, which the script does not say; {remedy(unsaid.name)}"
        )
    given = [str(word) for word in words]
    if flag.kind is list:
        return given
    if len(given) != needed:
        shown = " ".join(given) or "nothing"
        raise UserError(f"{place}: --{flag.name} takes {_KINDS[flag.kind]} (given: {shown})")
    if flag.kind is bool:
        return True
    try:
        value: Value = flag.kind(given[0])
    except ValueError:
        raise UserError(f"{place}: --{flag.name} takes {_KINDS[flag.kind]} (given: {given[0]!r})") from None
    return value


def _shown(word: Word) -> str:
    if isinstance(word, str):
        return repr(word)
    return "the output of a command" if word.name == COMMAND_OUTPUT else f"${word.name.removeprefix('$')}"
