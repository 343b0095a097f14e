"""A process knows who started it, and notices when they are gone."""

import subprocess
import sys
import textwrap

import pytest

CHILD = """
    import time
    from rlhf.runtime.interruption import Interruption
    from rlhf.runtime.starters import starters
    found = starters()
    print(*[process.pid for process in found], flush=True)
    interruption = Interruption(starters=found)
    for _ in range(40 if found else 1):
        interruption.look_for_starters()
        if interruption.reason is not None:
            break
        time.sleep(0.25)
    print(interruption.reason, flush=True)
"""
STARTER = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, *sys.argv[1:]]).returncode)"


def chain(tmp_path, *names: str) -> subprocess.Popen:
    """Programs of these names that start each other, and at last the child."""
    paths = []
    for name in names:
        (tmp_path / name).write_text(STARTER)
        paths.append(str(tmp_path / name))
    command = [sys.executable, *paths, "-c", textwrap.dedent(CHILD)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("names", [("snakemake",), ("snakemake", "deepspeed")])
def test_the_end_of_the_first_starter_is_noticed(tmp_path, names):
    process = chain(tmp_path, *names)
    pids = process.stdout.readline().split()
    assert len(pids) == len(names) and pids[-1] == str(process.pid)
    process.kill()
    process.wait()
    assert process.stdout.readline() == "the process that started this one is gone\n"


def test_what_a_person_started_may_outlive_the_shell(tmp_path):
    """Also where Snakemake is further up: it started the shell, not the stage."""
    process = chain(tmp_path, "snakemake", "shell")
    assert process.stdout.readline() == "\n"
    assert process.stdout.readline() == "None\n"
    assert process.wait(30) == 0
