"""The mutants that mutmut makes of a source file, each with a key that outlives shifted lines and other mutants."""

from __future__ import annotations

import ast
import copy
import difflib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ORIGINAL = "orig"
SEPARATOR = "__mutmut_"


@dataclass(frozen=True)
class Mutant:
    """One change of one function.

    Attributes:
        name: what mutmut calls it; its number shifts with the code around it.
        function: dotted name of the mutated function, `rlhf.data.batching.pad`.
        was: the changed lines as they are, joined by spaces, in the formatting of `ast.unparse`.
        now: the same lines as they are mutated.
        occurrence: counts equal changes of a function, from 0.
        left_out: why the mutant is not tried; None: it is.
    """

    name: str
    function: str
    was: str
    now: str
    occurrence: int
    left_out: str | None

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells the mutant from all others, whatever happens to the code around it."""
        return self.function, self.was, self.now, self.occurrence

    @property
    def package(self) -> str:
        """The mutated part, such as `data`."""
        return self.function.split(".")[1]


def mutants_of(source: Path, module: str) -> list[Mutant]:
    """All mutants of a file; the working directory has mutmut's configuration.

    Args:
        source: path of the file below the working directory, as mutmut sees it.
        module: its dotted name.
    """
    from mutmut.mutation.file_mutation import mutate_file_contents

    code = mutate_file_contents(str(source), source.read_text(encoding="utf-8")).code
    variants: dict[str, dict[str, ast.FunctionDef]] = defaultdict(dict)
    for function in _functions(ast.parse(code)):
        place, found, number = function.name.partition(SEPARATOR)
        if found:
            variants[place][number] = function
    seen: Counter[tuple[str, str, str]] = Counter()
    mutants = []
    for place, functions in variants.items():
        original = functions.pop(ORIGINAL)
        for number, mutated in functions.items():
            change = (f"{module}.{_plain(place)}", *_changed_lines(original, mutated))
            mutants.append(
                Mutant(f"{module}.{place}{SEPARATOR}{number}", *change, seen[change], _left_out(original, mutated))
            )
            seen[change] += 1
    return mutants


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    for node in tree.body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        yield from (function for function in inner if isinstance(function, ast.FunctionDef))


def _plain(place: str) -> str:
    """`x_pad` -> `pad`; `xǁTokenStoreǁprompt` -> `TokenStore.prompt`."""
    return place.removeprefix("x_") if place.startswith("x_") else place.split("ǁ", 1)[1].replace("ǁ", ".")


def _changed_lines(original: ast.FunctionDef, mutated: ast.FunctionDef) -> tuple[str, str]:
    before, after = (_unnamed(function) for function in (original, mutated))
    changes = list(difflib.ndiff(ast.unparse(before).splitlines(), ast.unparse(after).splitlines()))
    removed, added = (" ".join(line[2:].strip() for line in changes if line.startswith(sign)) for sign in ("- ", "+ "))
    return removed, added


def _unnamed(function: ast.FunctionDef) -> ast.FunctionDef:
    """The function without its mangled name."""
    same = copy.deepcopy(function)
    same.name = "function"
    return same


class _WithoutMessages(ast.NodeTransformer):
    """Drops the text of errors and all log lines."""

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        if isinstance(node.exc, ast.Call):
            node.exc.args, node.exc.keywords = [], []
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        call = node.value
        is_log = isinstance(call, ast.Call) and ast.unparse(call.func).startswith("logger.")
        return ast.copy_location(ast.Pass(), node) if is_log else node


class _WithoutStrict(ast.NodeTransformer):
    """Drops `strict` of `zip`, which guards what the lines before it make equal."""

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "zip":
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "strict"]
        return node


LEFT_OUT = {"text of an error or a log line": _WithoutMessages, "`strict` of `zip`": _WithoutStrict}


def _left_out(original: ast.FunctionDef, mutated: ast.FunctionDef) -> str | None:
    for reason, transformer in LEFT_OUT.items():
        before, after = (ast.dump(transformer().visit(_unnamed(function))) for function in (original, mutated))
        if before == after:
            return reason
    return None
