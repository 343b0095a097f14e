"""Reading a shell script without running it: assignments, simple conditions, and the one command that trains.

What a script may contain: assignments of words, `$NAME`, `${NAME:-default}` and positional parameters; `if` with
comparisons of two words; any other command, which is passed over. The command that trains may stand in a variable.
Where it depends on more, the reader is told so.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rlhf.errors import UserError

PROGRAM = "main.py"  # the name of all of DeepSpeed-Chat's
COMMAND_OUTPUT = "`"

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_REFERENCE = re.compile(r"\$(?:\{(\w+)(?:(:?)-([^}]*))?\}|(\w+)|[@*#?!$-]|$)|`")
_PIECE = re.compile(r"(?:\$\{[^}]*\}|\S)+")
_ENDS = {";", "&&", "||", "&", "|", ";;", "(", ")"}
_OPENING, _CLOSING = {"for", "while", "until", "case"}, {"done", "esac"}
_ARGUMENTS = ("$@", "$*")


@dataclass(frozen=True)
class Missing:
    """A word whose value, or a part of it, the script does not say, and the name that would give it."""

    name: str


@dataclass(frozen=True)
class Empty:
    """A word that bash leaves out, as it is of an empty variable; `said`: by the script or the user, not just unset."""

    name: str
    said: bool


Word = str | Missing | Empty


def remedy(name: str) -> str:
    """How a user gives the value of a variable."""
    if name.isidentifier() or name.isdigit():
        return f"give it with --set {name}=VALUE"
    return "write its value into a copy of the script"


@dataclass
class Reader:
    """Reads one script.

    Attributes:
        place: the script, for messages.
        given: values that the user sets; they win over assignments of the script.
    """

    place: str
    given: dict[str, str]
    _variables: dict[str, list[Word]] = field(default_factory=dict)
    _branches: list[tuple[bool | None, bool]] = field(default_factory=list)  # (is it taken, was one taken before)
    _unset_stops: bool = False  # `set -u`

    def command(self, text: str) -> list[Word]:
        """The words of the command that starts `main.py`, variables replaced.

        Raises:
            UserError: there is none, there are several, or whether it runs depends on what cannot be read.
        """
        found = [words for tokens in _commands(text, self.place) if (words := self._read(tokens))]
        if len(found) != 1:
            what = f"no command runs {PROGRAM}" if not found else f"{len(found)} commands run {PROGRAM}"
            raise UserError(f"{self.place}: {what}; give a script, or a command line, of one step")
        (words,) = found
        unset = next((word for word in words if isinstance(word, Empty) and not word.said), None)
        if self._unset_stops and unset is not None:
            raise UserError(f"{self.place}: stops at ${unset.name}, which is not set (`set -u`); {remedy(unset.name)}")
        return words

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
        program = self._trains(tokens)
        if not (program or all(assignments) or tokens[0] == "set"):
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
        if tokens[0] == "set":
            self._unset_stops |= any(re.fullmatch("-[a-z]*u[a-z]*|nounset", token) for token in tokens[1:])
            return []
        for match in assignments:
            assert match is not None  # all of them are assignments
            self._assign(match[1], match[2])
        return []

    def _trains(self, tokens: list[str]) -> bool:
        """Whether a command starts the program, be it by the words of a variable (`$cmd`)."""
        if any(token.endswith(PROGRAM) for token in tokens):
            return True
        first = self._expand(tokens[0]) if tokens[0].startswith("$") else []
        return any(isinstance(word, str) and word.endswith(PROGRAM) for word in first)

    def _assign(self, name: str, value: str) -> None:
        words = [part for word in self._expand(value) for part in (word.split() if isinstance(word, str) else [word])]
        unset = any(isinstance(word, Empty) and not word.said for word in words)
        if all(isinstance(word, Empty) for word in words):
            words = [Empty(name, said=not unset)]
        elif len(words) == 1 and isinstance(words[0], Missing):
            words = [Missing(name)]
        self._variables[name] = words

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
        return _joined_words(self._expand(token))

    def _expand(self, token: str) -> list[Word]:
        """The words of a token after its variables have been replaced."""
        if _REFERENCE.search(token) is None:
            return [token] if token else []
        return [word for piece in _PIECE.findall(token) for word in self._words_of(piece)]

    def _words_of(self, piece: str) -> Sequence[Word]:
        """The words of a piece of a token without spaces; several only where it is a variable and nothing else."""
        alone = _REFERENCE.fullmatch(piece)
        if alone is not None:
            return self._value(alone)
        values = [self._value(match) for match in _REFERENCE.finditer(piece)]
        unknown = [word for words in values for word in words if not isinstance(word, str)]
        for word in unknown:
            if isinstance(word, Missing) or not word.said:  # what bash would make of it is a part of a word
                return [Missing(word.name)]
        texts = iter([_joined_words(words) for words in values])
        return _REFERENCE.sub(lambda match: next(texts), piece).split()

    def _value(self, match: re.Match[str]) -> Sequence[Word]:
        """The words that a reference stands for."""
        name, colon, default = match[1] or match[4], match[2], match[3]
        if not name:
            return [Empty(match[0][1:], said=False) if match[0] in _ARGUMENTS else Missing(match[0])]
        if name in self.given:
            found: Sequence[Word] | None = self.given[name].split() or [Empty(name, said=True)]
        else:
            found = self._variables.get(name)
        empty = found is None or all(isinstance(word, Empty) for word in found)
        if default is not None and (found is None or (colon and empty)):
            return self._expand(default) or [Empty(name, said=True)]
        return found if found is not None else [Empty(name, said=False)]


def _joined_words(words: Sequence[Word]) -> str:
    return " ".join(word for word in words if isinstance(word, str))


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
