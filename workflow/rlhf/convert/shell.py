"""Reading a shell script without running it: assignments, simple conditions, and the one command that trains.

What a script may contain: assignments of words, `$NAME`, `${NAME:-default}` and positional parameters; `if` with
comparisons of two words; any other command, which is passed over. Where the training command depends on more, the
reader is told so.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field

from rlhf.errors import UserError

PROGRAM = "main.py"  # the name of all three of DeepSpeed-Chat's
COMMAND_OUTPUT = "`"

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_REFERENCE = re.compile(r"\$(?:\{(\w+)(?::?-([^}]*))?\}|(\w+)|[@*#?!$-]|$)|`")
_ENDS = {";", "&&", "||", "&", "|", ";;", "(", ")"}
_OPENING, _CLOSING = {"for", "while", "until", "case"}, {"done", "esac"}


@dataclass(frozen=True)
class Missing:
    """A word whose value the script does not say, and the name that would give it."""

    name: str


Word = str | Missing


@dataclass
class Reader:
    """Reads one script.

    Attributes:
        place: the script, for messages.
        given: values that the user sets; they win over assignments of the script.
    """

    place: str
    given: dict[str, str]
    _variables: dict[str, Word] = field(default_factory=dict)
    _branches: list[tuple[bool | None, bool]] = field(default_factory=list)  # (is it taken, was one taken before)

    def command(self, text: str) -> list[Word]:
        """The words of the command that starts `main.py`, variables replaced.

        Raises:
            UserError: there is none, there are several, or whether it runs depends on what cannot be read.
        """
        found = [words for tokens in _commands(text, self.place) if (words := self._read(tokens))]
        if len(found) != 1:
            what = f"no command runs {PROGRAM}" if not found else f"{len(found)} commands run {PROGRAM}"
            raise UserError(f"{self.place}: {what}; give a script, or a command line, of one step")
        return found[0]

    def _read(self, tokens: list[str]) -> list[Word]:
        """Carry out one command as far as it matters here; returns the words of the training command."""
        if tokens[0] in ("then", "do", "{"):
            tokens = tokens[1:]
        elif tokens[0] == "else" and len(tokens) > 1:
            self._branch(["else"])
            tokens = tokens[1:]
        if not tokens or self._branch(tokens):
            return []
        assignments = [_ASSIGNMENT.fullmatch(token) for token in tokens if token != "export"]
        program = any(token.endswith(PROGRAM) for token in tokens)
        if not (program or all(assignments)):
            return []
        if any(taken is False for taken, _ in self._branches):
            return []
        if any(taken is None for taken, _ in self._branches):
            raise UserError(
                f"{self.place}: cannot tell whether `{' '.join(tokens)}` runs: it stands in a loop or a condition that "
                "is not a comparison of two words. Give the command line alone"
            )
        if program:
            return [word for token in tokens for word in self._expand(token)]
        for match in assignments:
            assert match is not None  # all of them are assignments
            self._assign(match[1], match[2])
        return []

    def _assign(self, name: str, value: str) -> None:
        words = self._expand(value)
        missing = next((word for word in words if isinstance(word, Missing)), None)
        unset = Missing(name) if missing is not None or not words else None
        self._variables[name] = unset or " ".join(str(word) for word in words)

    def _branch(self, tokens: list[str]) -> bool:
        """Follow `if`, `elif`, `else`, `fi` and loops; whether the command was one of them."""
        head = tokens[0]
        if head == "if":
            taken = self._condition(tokens[1:])
            self._branches.append((taken, taken is not False))
        elif head in _OPENING:
            self._branches.append((None, True))
        elif head in ("elif", "else") and self._branches:
            taken, before = self._branches.pop()
            unknown = taken is None
            now = None if unknown else not before and (head == "else" or self._condition(tokens[1:]))
            self._branches.append((now, before or now is not False))
        elif (head == "fi" or head in _CLOSING) and self._branches:
            self._branches.pop()
        else:
            return False
        return True

    def _condition(self, tokens: list[str]) -> bool | None:
        """Whether `[ A == B ]`, `[ A != B ]`, `[ -z A ]` or `[ -n A ]` holds; None for any other condition."""
        if len(tokens) < 3 or (tokens[0], tokens[-1]) not in (("[", "]"), ("[[", "]]")):
            return None
        inner = tokens[1:-1]
        if len(inner) == 3 and inner[1] in ("=", "==", "!="):
            equal = self._plain(inner[0]) == self._plain(inner[2])
            return equal == (inner[1] != "!=")
        if len(inner) == 2 and inner[0] in ("-z", "-n"):
            return (self._plain(inner[1]) == "") == (inner[0] == "-z")
        return None

    def _plain(self, token: str) -> str:
        return " ".join("" if isinstance(word, Missing) else word for word in self._expand(token))

    def _expand(self, token: str) -> list[Word]:
        """The words of a token after its variables have been replaced."""
        missing: list[str] = []

        def value(match: re.Match[str]) -> str:
            name, default = match[1] or match[3], match[2]
            found: Word = Missing(name or match[0])
            if name:
                # What is set to nothing is empty, and what the script makes of that counts, as in a shell.
                empty = "" if name in self.given else found
                found = self.given.get(name) or self._variables.get(name) or empty
            if default is not None and (isinstance(found, Missing) or not found):
                return default
            if isinstance(found, Missing):
                missing.append(found.name)
                return ""
            return found

        text = _REFERENCE.sub(value, token)
        if missing:
            return [Missing(missing[0])]
        return list(text.split()) if text != token else [token]


def _joined(text: str) -> list[str]:
    """Lines of a script, each with those that a backslash at its end adds; at the end of a comment it adds none."""
    lines: list[str] = []
    goes_on = False
    for line in text.splitlines():
        before = lines.pop() if goes_on else ""
        goes_on = line.endswith("\\") and not line.lstrip().startswith("#")
        lines.append(before + (line[:-1] + " " if goes_on else line))
    return lines


def _commands(text: str, place: str) -> Iterator[list[str]]:
    """The commands of a script as lists of tokens, without comments, redirections and quotes."""
    for line in _joined(text):
        line = re.sub(r"\$\([^()]*\)|`[^`]*`", COMMAND_OUTPUT, line)
        line = re.sub(r"(?<=\s)\d(?=[<>])", "", line)  # a digit that names a stream is no word: `2>&1`
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split = True
        try:
            tokens = list(lexer)
        except ValueError as error:
            raise UserError(f"{place}: cannot be read ({error}) at `{line.strip()[:80]}`") from None
        command: list[str] = []
        skip = False
        for token in tokens:
            if skip:
                skip = False
            elif token in _ENDS:
                if command:
                    yield command
                command = []
            elif token and set(token) <= set("<>&"):
                skip = True  # the target of a redirection
            else:
                command.append(token)
        if command:
            yield command
