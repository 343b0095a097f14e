"""The environment: lock, package, conda file, Makefile and profile agree with each other and with the code."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def lock_lines() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def lock() -> dict[str, str]:
    """Canonical name -> version."""
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lock_lines())}


def direct(group: str | None = None) -> list[Requirement]:
    return [
        Requirement(text) for text in (PROJECT["optional-dependencies"][group] if group else PROJECT["dependencies"])
    ]


def imported_modules(folder: Path) -> set[str]:
    """Top-level names of all absolute imports below a folder."""
    found: set[str] = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.split(".")[0])
    return found


def test_the_lock_pins_every_package_once_and_exactly() -> None:
    for line in lock_lines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line), line
    assert len(lock()) == len(lock_lines())


def test_the_lock_names_no_host_and_no_file() -> None:
    text = (ROOT / "requirements.txt").read_text()
    assert not re.search(r"https?:|file:|--(extra-)?index-url|--find-links|@", text)


@pytest.mark.parametrize("group", [None, "dev"])
def test_direct_dependencies_are_pinned_as_in_the_lock(group: str | None) -> None:
    pinned = lock()
    for requirement in direct(group):
        assert str(requirement.specifier) == f"=={pinned[canonicalize_name(requirement.name)]}", requirement.name


def test_packages_that_are_needed_without_being_imported_are_in_the_lock() -> None:
    # setuptools: torch and deepspeed compile with it; the profile submits with the Slurm plugin.
    assert {"setuptools", "ninja", "snakemake-executor-plugin-slurm"} <= lock().keys()


def test_what_the_code_imports_is_a_direct_dependency() -> None:
    declared = {canonicalize_name(requirement.name) for requirement in direct()}
    installed = packages_distributions()
    modules = imported_modules(ROOT / "workflow") - sys.stdlib_module_names - {"rlhf"}
    missing = {
        module
        for module in modules
        if not {canonicalize_name(name) for name in installed.get(module, [module])} & declared
    }
    assert missing == set()


def test_the_conda_environment_installs_the_lock_and_the_project() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    packages = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (nested,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert environment["name"] == PROJECT["name"]
    assert nested == ["--requirement requirements.txt", "--editable ."]
    assert "pip" in packages
    (python,) = [entry for entry in packages if entry.startswith("python=")]
    assert python.removeprefix("python=") in SpecifierSet(PROJECT["requires-python"])


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["title"], citation["version"]) == (PROJECT["name"], PROJECT["version"])
    assert citation["license"] == PROJECT["license"]
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_console_scripts_can_be_imported() -> None:
    for name, target in PROJECT["scripts"].items():
        module, function = target.split(":")
        program = f"import {module}; assert callable({module}.{function})"
        subprocess.run([sys.executable, "-c", program], check=True)
        installed = entry_points(group="console_scripts", name=name)
        assert [point.value for point in installed] in ([], [target])


def test_each_command_is_one_file_and_can_be_started_without_being_installed() -> None:
    files = {file.stem for file in (ROOT / "workflow/rlhf/commands").glob("*.py")} - {"__init__"}
    assert PROJECT["scripts"] == {f"rlhf-{name}": f"rlhf.commands.{name}:main" for name in files}
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow")}
    for name in files - {"memory"}:  # it loads torch; the tests of planning call it
        command = [sys.executable, "-m", f"rlhf.commands.{name}", "--help"]
        done = subprocess.run(command, env=environment, text=True, capture_output=True, check=True)
        assert done.stdout.startswith(f"usage: rlhf-{name} ")


def test_make_without_a_target_lists_all_targets() -> None:
    output = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, text=True, capture_output=True, check=True
    ).stdout
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {line.split()[0] for line in output.splitlines()} == set(phony.split())


def test_make_clean_removes_what_runs_leave_and_keeps_the_projects_own_measurements(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    files = subprocess.run(["git", "ls-files", "benchmarks"], cwd=ROOT, text=True, capture_output=True, check=True)
    kept = {tmp_path / name for name in files.stdout.split()}
    for file in kept | {tmp_path / "benchmarks/sft/id.jsonl", tmp_path / "results/sft/id/manifest.json"}:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True)
    assert {file for file in tmp_path.rglob("*") if file.is_file()} == kept | {tmp_path / "Makefile"}


def test_make_refuses_an_old_python(tmp_path: Path) -> None:
    # A Python that says no to every check stands for an old one; a venv of its own keeps the real one out of it.
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\nexec " + sys.executable + " -c 'import sys; sys.version_info = (3, 10)\n'\"$2\"\n")
    old.chmod(0o755)
    command = ["make", "setup", f"PYTHON={old}", f"VENV={tmp_path}/venv"]
    result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert result.returncode != 0
    assert "Python 3.11 or newer is needed" in result.stderr
    assert not (tmp_path / "venv").exists()


def rule_names() -> set[str]:
    rules = "\n".join(file.read_text() for file in (ROOT / "workflow/rules").glob("*.smk"))
    return set(re.findall(r"^rule (\w+):", rules, re.MULTILINE))


def test_the_profile_uses_options_that_exist() -> None:
    profile = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())
    command = [sys.executable, "-m", "snakemake", "--help"]
    options = set(re.findall(r"--([a-z][a-z-]+)", subprocess.run(command, text=True, capture_output=True).stdout))
    assert profile.keys() <= options


def test_the_profile_sets_resources_of_every_rule_that_may_use_a_gpu() -> None:
    profile = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())
    expected = {name for name in rule_names() if name.startswith(("train_", "sample_", "evaluate_"))}
    assert profile["set-resources"].keys() == expected
    for name in expected:
        assert ("--signal=TERM@300" in profile["set-resources"][name]["slurm_extra"]) == name.startswith("train_")


def test_retries_are_in_the_profile_and_in_no_rule() -> None:
    # Nested Snakemakes of a Slurm job multiply the retries of a rule.
    assert yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())["retries"] == 3
    for file in [ROOT / "workflow/Snakefile", *(ROOT / "workflow/rules").glob("*.smk")]:
        assert not re.search(r"^\s*retries:", file.read_text(), re.MULTILINE), file.name
