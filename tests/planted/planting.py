"""Plants faults in copies of the package, one at a time, and looks whether the tests named with them turn red.

Every fault is tried in a child, forked from a process that has imported torch, transformers and DeepSpeed, but nothing
of `rlhf`: the child puts its copy of the package first on the path and runs pytest.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "workflow/rlhf"
LIST = Path(__file__).with_name("faults.yaml")
# Imported before forking; what is left is the package and the tests.
HEAVY = ("datasets", "hypothesis", "torch", "deepspeed", "peft", "scipy.stats", "transformers", "transformers.trainer")
SECONDS = 1800  # of one fault, which may turn a loop into an endless one; generous, because it then counts as seen
# Of a process group: a child of a test that is in one would look for its peers, or listen at its port.
GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
RED = {int(pytest.ExitCode.TESTS_FAILED), -signal.SIGALRM}


@dataclass(frozen=True)
class Fault:
    """A fault and the tests that must see it.

    Attributes:
        file: path below workflow/rlhf/.
        name: what is wrong.
        was: text that is in the file exactly once.
        now: what it is replaced by.
        matters: what would come of it.
        tests: test files below tests/, or tests in them.
        quick: one of those that every test run plants.
    """

    file: str
    name: str
    was: str
    now: str
    matters: str
    tests: tuple[str, ...]
    quick: bool = False

    def planted(self, text: str) -> str:
        """The text of the file with the fault.

        Raises:
            ValueError: the code has changed, so that the fault is in no place or in several.
        """
        if text.count(self.was) != 1:
            raise ValueError(f"{self.file}: {self.name}: found {text.count(self.was)} times: {self.was}")
        return text.replace(self.was, self.now)

    def plant(self, package: Path) -> None:
        """Put the fault into a copy of the package."""
        file = package / self.file
        file.write_text(self.planted(file.read_text(encoding="utf-8")), encoding="utf-8")


@dataclass(frozen=True)
class Outcome:
    """How the tests of a fault ended, and what they said."""

    fault: Fault | None  # None: nothing was planted
    code: int  # of pytest, or the negative number of the signal that ended it
    output: str

    @property
    def as_expected(self) -> bool:
        """Red with a fault, green without one."""
        return self.code == 0 if self.fault is None else self.code in RED


def read_faults(file: Path = LIST) -> list[Fault]:
    """All faults of the list.

    Raises:
        ValueError: a file has two sections, of which YAML would keep the last alone.
    """
    text = file.read_text(encoding="utf-8")
    sections = Counter(re.findall(r"^(\S+\.py):$", text, re.MULTILINE))
    twice = [path for path, count in sections.items() if count > 1]
    if twice:
        raise ValueError(f"{file}: two sections of {', '.join(twice)}")
    content = yaml.safe_load(text)
    return [
        Fault(path, **(entry | {"tests": tuple(entry["tests"])}))
        for path, entries in content.items()
        for entry in entries
    ]


def try_faults(faults: Iterable[Fault], jobs: int = 1) -> Iterator[Outcome]:
    """Plant each fault and run its tests; before all, the tests without a fault, which must be green."""
    faults = list(faults)
    if any(name.split(".")[0] == "rlhf" for name in sys.modules):
        raise RuntimeError("rlhf is imported already; children would test that instead of their copy")
    _import_heavy()
    tests = sorted({test for fault in faults for test in fault.tests})
    (unharmed,) = _forked([(None, tuple(tests))], jobs)
    yield unharmed
    if unharmed.as_expected:
        yield from _forked([(fault, fault.tests) for fault in faults], jobs)


def _import_heavy() -> None:
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # settled while DeepSpeed is imported
    for name in HEAVY:
        importlib.import_module(name)


def _forked(work: list[tuple[Fault | None, tuple[str, ...]]], jobs: int) -> Iterator[Outcome]:
    """Outcomes as they come, `jobs` children at a time."""
    running: dict[int, tuple[Fault | None, Path]] = {}
    waiting = list(reversed(work))
    while waiting or running:
        while waiting and len(running) < jobs:
            fault, tests = waiting.pop()
            folder = Path(tempfile.mkdtemp(prefix="planted-"))
            child = os.fork()
            if not child:
                _run(fault, tests, folder)
            running[child] = fault, folder
        child, status = os.wait()
        fault, folder = running.pop(child)
        output = (folder / "output").read_text(encoding="utf-8", errors="replace")
        shutil.rmtree(folder)
        yield Outcome(fault, os.waitstatus_to_exitcode(status), output)


def _run(fault: Fault | None, tests: tuple[str, ...], folder: Path) -> None:
    """In a child: the tests against a copy of the package; ends the process."""
    code = int(pytest.ExitCode.INTERNAL_ERROR)
    try:
        with (folder / "output").open("w", encoding="utf-8") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        package = folder / "rlhf"
        shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
        if fault is not None:
            fault.plant(package)
        sys.path.insert(0, str(folder))
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        for name in GROUP:
            os.environ.pop(name, None)
        os.environ["CI"] = "true"  # Hypothesis draws the same examples each time, without a deadline
        sys.dont_write_bytecode = True
        signal.alarm(SECONDS if fault is not None else 0)
        paths = [str(ROOT / "tests" / test) for test in tests]
        options = ["-x", "-q", "-p", "no:cacheprovider", "-n", "0", "--rootdir", str(ROOT)]
        code = int(pytest.main([*options, f"--basetemp={folder / 'tests'}", *paths]))
        sys.stdout.flush()
    finally:
        os._exit(code)
