"""The list of planted faults is about the code as it is, and some of them are planted in every run of the tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.planted.planting import PACKAGE, ROOT, Fault, read_faults

FAULTS = read_faults()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.file}: {fault.name}")
def test_a_fault_fits_the_code(fault: Fault) -> None:
    """Its text is in the file exactly once, and what it becomes is another program."""
    text = (PACKAGE / fault.file).read_text(encoding="utf-8")
    planted = fault.planted(text)
    assert planted != text
    compile(planted, fault.file, "exec")
    assert fault.tests
    for test in fault.tests:
        assert (ROOT / "tests" / test.partition("::")[0]).is_file(), test


def test_faults_have_names_of_their_own() -> None:
    assert [name for name, count in Counter(fault.name for fault in FAULTS).items() if count > 1] == []


def test_a_fault_that_is_nowhere_or_in_two_places_is_refused(tmp_path: Path) -> None:
    fault = Fault("a.py", "a name", "x = 1", "x = 2", "", ())
    assert fault.planted("x = 1\n") == "x = 2\n"
    for text in ("x = 3\n", "x = 1\nx = 1\n"):
        with pytest.raises(ValueError, match=r"a\.py: a name: found \d times"):
            fault.planted(text)


def test_a_file_with_two_sections_is_refused(tmp_path: Path) -> None:
    section = "a.py:\n  - {name: a name, was: x, now: y, matters: much, tests: []}\n"
    (tmp_path / "faults.yaml").write_text(section)
    assert [fault.name for fault in read_faults(tmp_path / "faults.yaml")] == ["a name"]
    (tmp_path / "faults.yaml").write_text(2 * section)
    with pytest.raises(ValueError, match=r"two sections of a\.py"):
        read_faults(tmp_path / "faults.yaml")


@pytest.mark.slow
def test_some_faults_are_planted_and_seen() -> None:
    """One or two of every part; all of them are tried with `make planted`. The surroundings are those of a test that is
    in a process group, whose port is taken."""
    quick = [fault for fault in FAULTS if fault.quick]
    assert {fault.file.split("/")[0] for fault in quick} == {"ppo", "training", "data", "models", "evaluation"}
    command = [sys.executable, "-m", "tests.planted", "--quick", "--jobs", "1"]
    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        group["MASTER_PORT"] = str(taken.getsockname()[1])
        result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, env=os.environ | group)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == f"{len(quick)} faults, 0 not as expected"
