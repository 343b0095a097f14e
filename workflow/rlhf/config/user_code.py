"""The content of functions that a configuration names: their module, and what it imports from the user's folders.

Modules are found and read, never run: that would cost time whenever the workflow is parsed, and may do anything.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from rlhf.errors import UserError

OWN = "rlhf"  # changes of the library are told by the code's hash in manifests, and by revisions of stages


def function_content(reference: str, key: str) -> str | None:
    """Hash of the code behind `module:function`: its module, and all that this imports which is not installed.

    Modules are looked for where a step of the workflow will look: in PYTHONPATH, seen from the working directory, then
    where Python itself does. What is imported by a name made at run time, and files that the code reads, are not seen.

    Args:
        reference: `module:function`.
        key: configuration key that names it, for the message.

    Returns:
        None for a function of this library.

    Raises:
        UserError: there is no such module, or a file cannot be read.
    """
    name = reference.partition(":")[0]
    if name.partition(".")[0] == OWN:
        return None
    if _find(name) is None:
        raise UserError(
            f"{key}: there is no module {name!r}; is it installed, or its folder on PYTHONPATH? "
            f"(PYTHONPATH is {os.environ.get('PYTHONPATH', '')!r}, seen from {os.getcwd()})"
        )
    digest = hashlib.sha256()
    try:
        for module, file in sorted(_modules(name).items()):
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"{module}\0{content}\n".encode())
    except OSError as error:
        raise UserError(f"{key}: {error.filename!r} cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def _modules(name: str) -> dict[str, Path]:
    """Module -> file, of a module, the packages it lies in, and everything of the user's that they import."""
    found: dict[str, Path] = {}
    queue = [name]
    while queue:
        module = queue.pop()
        for part in _with_packages(module):
            spec = _find(part)
            file = None if spec is None else _file(spec)
            if part in found or file is None or (is_installed(file) and part != name):
                continue
            found[part] = file
            queue += _imports(file, part, is_package=spec is not None and spec.submodule_search_locations is not None)
    return found


def _with_packages(module: str) -> list[str]:
    """`a.b.c` -> `a`, `a.b`, `a.b.c`: importing it runs all of them."""
    parts = module.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _find(module: str) -> ModuleSpec | None:
    """Where a module is; importing nothing, it knows of no folders that a package adds to itself when it is run."""
    top, *parts = module.split(".")
    spec = _find_top(top)
    for part in parts:
        if spec is None:
            return None
        # By its last name: under the whole one, Python would ask for packages that are imported.
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations or []))
    return spec


def _find_top(name: str) -> ModuleSpec | None:
    given = [os.path.abspath(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    spec = PathFinder.find_spec(name, given)
    if spec is not None:
        return spec
    if name in sys.builtin_module_names or name in sys.stdlib_module_names:
        return importlib.util.find_spec(name)
    for finder in sys.meta_path:  # editable installations bring their own
        found: ModuleSpec | None = finder.find_spec(name, None)
        if found is not None:
            return found
    return None


def _file(spec: ModuleSpec) -> Path | None:
    """A module's file; none for a package without `__init__.py`, and for what is built into Python."""
    return Path(spec.origin) if spec.has_location and spec.origin else None


def is_installed(file: Path) -> bool:
    """Whether a file is of Python, of an installed package or of this library: known by version, not by content."""
    paths = sysconfig.get_paths()
    places = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    places += [*site.getsitepackages(), site.getusersitepackages(), str(Path(__file__).parents[1])]
    return any(file.resolve().is_relative_to(Path(place).resolve()) for place in places)


def _imports(file: Path, module: str, is_package: bool) -> Iterator[str]:
    """Modules that a file imports, anywhere in it; `from a import b` may mean `a` and `a.b`."""
    if file.suffix != ".py":
        return
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # importing it will tell, with the line
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """The name that a relative import stands for."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parents = parts[: len(parts) - node.level + is_package]
    return ".".join([*parents, *([node.module] if node.module else [])])
