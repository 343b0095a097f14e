"""Dependencies point one way: rules -> scripts -> library, and inside the library from the stages to the foundations.

Read from the source, without importing it; imports inside functions count too.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from rlhf.phases import RULES as KINDS

WORKFLOW = Path(__file__).resolve().parents[2] / "workflow"
LIBRARY = WORKFLOW / "rlhf"
SCRIPTS = sorted((WORKFLOW / "scripts").glob("*.py"))
RULES = [WORKFLOW / "Snakefile", *sorted((WORKFLOW / "rules").glob("*.smk"))]

# Package or module directly below rlhf -> what it imports of the others: neither more nor less.
DEPENDENCIES: dict[str, set[str]] = {
    "errors": set(),
    "phases": set(),
    "files": {"errors"},
    "records": {"errors", "files"},
    "causes": {"errors"},
    "hub": {"causes", "errors", "files", "runtime"},
    "functions": {"config", "errors", "runtime"},
    "runtime": {"config", "errors", "files", "records"},
    "memory": {"config", "errors", "models", "records"},
    "config": {"errors", "files", "phases", "records"},
    "data": {"causes", "config", "errors", "files", "functions", "hub", "phases", "records", "runtime"},
    "models": {"causes", "config", "errors", "files", "hub", "records", "runtime"},
    "training": {"config", "data", "errors", "files", "memory", "models", "records", "runtime"},
    "ppo": {"config", "data", "errors", "functions", "models", "records", "runtime", "training"},
    "planning": {"config", "data", "errors", "files", "memory", "models", "ppo", "records", "runtime", "training"},
    "evaluation": {
        *("config", "data", "errors", "files", "functions", "memory"),
        *("models", "ppo", "records", "runtime", "training"),
    },
    "reporting": {"config", "errors", "evaluation", "files", "phases", "records", "runtime"},
    "convert": {"config", "data", "errors"},
    "manual": {"config", "data"},
    "commands": {"config", "convert", "errors", "memory", "planning", "records", "reporting", "runtime"},
}


def imported(file: Path) -> Iterator[str]:
    """Dotted names of everything a file imports; `from a import b` gives `a.b`, whether b is a module or not."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative imports are not counted here; write it in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_name(file: Path) -> str:
    parts = file.relative_to(WORKFLOW).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted(LIBRARY.rglob("*.py"))}


def module_of(name: str) -> str:
    """The library module behind an imported name: `rlhf.errors.UserError` -> `rlhf.errors`."""
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def top(names: Iterator[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def package_files(package: str) -> list[Path]:
    return [file for name, file in MODULES.items() if name.split(".")[1:2] == [package]]


def test_every_package_of_the_library_has_its_place() -> None:
    below = {name.split(".")[1] for name in MODULES if "." in name}
    assert below == DEPENDENCIES.keys()
    assert not list(imported(MODULES["rlhf"]))  # the root may be imported by everybody
    assert list(TopologicalSorter(DEPENDENCIES).static_order())  # raises on a cycle


@pytest.mark.parametrize("package", DEPENDENCIES)
def test_a_package_imports_what_lies_below_it_only(package: str) -> None:
    names = [name for file in package_files(package) for name in imported(file)]
    modules = {module_of(name) for name in names if name.split(".")[0] == "rlhf"}
    assert "rlhf" not in modules, "import from a module, not from the root"
    assert {name.split(".")[1] for name in modules} - {package} == DEPENDENCIES[package]


def test_the_house_in_the_manual_stands_on_its_floors() -> None:
    """CONTRIBUTING.md draws the packages in rows; all arrows point downward."""
    text = (WORKFLOW.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (drawing,) = re.findall(r"## The house\n\n```text\n(.*?)```", text, re.DOTALL)
    rows = [re.match(r"(?:\w+, )*\w+", line)[0].split(", ") for line in drawing.splitlines()]  # type: ignore[index]
    assert rows[:2] == [["rules"], ["scripts"]]
    height = {package: -number for number, row in enumerate(rows) for package in row}
    assert height.keys() - {"rules", "scripts"} == DEPENDENCIES.keys()
    for package, below in DEPENDENCIES.items():
        assert all(height[other] < height[package] for other in below), package


def test_no_module_imports_itself_on_a_detour() -> None:
    graph = {
        name: {module_of(used) for used in imported(file) if used.split(".")[0] == "rlhf"}
        for name, file in MODULES.items()
    }
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) == set(MODULES)


def test_the_library_knows_neither_snakemake_nor_the_scripts() -> None:
    strangers = {"snakemake", "workflow", "scripts", *(script.stem for script in SCRIPTS)}
    assert len(strangers) > 10
    known = {name: top(imported(file)) & strangers for name, file in MODULES.items()}
    assert known == dict.fromkeys(MODULES, set())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_imports_the_library_and_no_other_script(script: Path) -> None:
    names = top(imported(script))
    assert "rlhf" in names
    # Thin on purpose: what needs more than reading a setting belongs into the library.
    assert names - sys.stdlib_module_names - {"rlhf"} <= {"yaml"}
    for name in imported(script):
        assert name.split(".")[0] != "rlhf" or module_of(name) != "rlhf"


def test_rules_import_the_configuration_and_errors_only() -> None:
    pattern = re.compile(r"^\s*(?:from|import)\s+rlhf\.?(\S*)", re.MULTILINE)
    found = {module for file in RULES for module in pattern.findall(file.read_text())}
    assert found == {"config", "errors"}


def test_every_kind_of_stage_has_its_rule_and_script() -> None:
    """`RULES` names the rule that writes below results/KIND/ or resources/, and a script has its rule's name."""
    bodies = dict(
        re.findall(r"^rule (\w+):\n(.*?)(?=^rule |\Z)", "\n".join(map(Path.read_text, RULES)), re.DOTALL | re.M)
    )
    scripts = {script.stem for script in SCRIPTS}
    for kind, rule in KINDS.items():
        outputs = bodies[rule].partition("output:")[2].partition("log:")[0]
        assert re.search(rf'"(results/{kind}|resources/{kind}s)/{{\w+}}', outputs), rule
        assert rule in scripts


def test_modules_are_named_by_the_configuration_in_one_place_only() -> None:
    """Imports by a computed name would escape this file."""
    computed = re.compile(r"importlib\.import_module|__import__|spec_from_file_location|runpy")
    files = [*MODULES.values(), *SCRIPTS]
    assert [file.name for file in files if computed.search(file.read_text())] == ["functions.py"]


def test_the_configuration_loads_pydantic_and_nothing_heavier() -> None:
    # Every submitted job parses the Snakefile again.
    program = (
        "import json, sys; before = set(sys.modules); import rlhf.config;"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(WORKFLOW)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    light = {"yaml", "cython_runtime"}  # Snakemake has read the configuration with it
    light |= {"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}
    packages = {name for name in top(iter(loaded)) if not name.startswith("_")}
    assert packages - sys.stdlib_module_names - {"rlhf"} <= light
    parts = {name.split(".")[1] for name in loaded if name.startswith("rlhf.")}
    assert parts == {"config", "errors", "files", "phases", "records"}
