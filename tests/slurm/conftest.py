"""Tests on a real Slurm, which `cluster.sh` starts in private namespaces on this machine.

Outside of them, a test of this folder is not run but looked up: the first one starts a cluster of the kind that the
tests name by their marker (`@pytest.mark.slurm("accounting")`), runs all tests of that kind in it by a second pytest,
several at a time, and takes over their results. An outer time limit ends all that: a Snakemake that waits for a lost
job waits for ever.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import pytest

from tests.slurm.project import Stub, end
from tests.snakemake import ENVIRONMENT

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
CLUSTER = FOLDER / "cluster.sh"
INSIDE = "RLHF_TEST_CLUSTER"  # kind of the cluster around this process
TOOLS = ("slurmctld", "slurmd", "srun", "munged", "slurmdbd", "mariadbd", "unshare", "ip")
KINDS = {
    "accounting": {"ACCOUNTING": "1"},
    "plain": {"ACCOUNTING": "0"},
    # For tests that kill daemons which others need: one after another.
    "outage": {"ACCOUNTING": "1"},
    "plain outage": {"ACCOUNTING": "0"},
    # As many nodes and as large ones as the largest recipe asks for; nothing runs on them.
    "large": {"ACCOUNTING": "0", "NODES": "8", "CPUS": "96", "GPUS": "8", "MEM_MB": "2500000"},
}
LIMIT_SECONDS = 900
SIDE_BY_SIDE = 6  # jobs mostly wait
Result = tuple[str, str]  # outcome (passed, failed, skipped) and its text


def missing() -> str | None:
    """Why this machine can't have a cluster, after trying to install one; None if it can."""
    if os.geteuid() != 0:
        return "a Slurm cluster is started by root only"
    if [tool for tool in TOOLS if shutil.which(tool) is None]:
        if shutil.which("apt-get") is None:
            return "Slurm is not installed, and there is no apt-get to install it"
        done = subprocess.run([CLUSTER, "install"], capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            return f"the Debian packages of Slurm could not be installed: {done.stderr.strip()[-300:]}"
    probe = subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], capture_output=True, check=False)
    return None if probe.returncode == 0 else "namespaces are not permitted on this machine"


def kind_of(item: pytest.Item) -> str:
    """The cluster that a test runs on."""
    marker = item.get_closest_marker("slurm")
    assert marker is not None
    return str(marker.args[0])


def run_inside(kind: str, tests: list[str], folder: Path) -> dict[str, Result]:
    """Run tests on a cluster; their results by name."""
    report = folder / f"{kind}.xml"
    pytest_command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        str(1 if "outage" in kind else min(SIDE_BY_SIDE, len(tests))),
        "--dist=worksteal",
        f"--junitxml={report}",
    ]
    pytest_command += ["-p", "no:cacheprovider", f"--basetemp={folder / kind}", *tests]
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", str(CLUSTER), "run", *pytest_command],  # ends with this process
        cwd=ROOT,
        env={**ENVIRONMENT, **KINDS[kind], INSIDE: kind},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # and with it, by unshare --kill-child, everything in the namespaces
        output = process.communicate()[0] + f"\nended after {LIMIT_SECONDS} s"
    results = dict(read_report(report)) if report.exists() else {}
    return {test: results.get(test.split("::")[-1], ("failed", output[-6000:])) for test in tests}


def read_report(report: Path) -> Iterator[tuple[str, Result]]:
    """Name of each test and its result, from pytest's JUnit report."""
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        outcome, text = "passed", ""
        for found in case:
            if found.tag in ("failure", "error", "skipped"):
                outcome = "skipped" if found.tag == "skipped" else "failed"
                text = found.text or found.get("message", "")
        yield str(case.get("name")), (outcome, text)


class Clusters:
    """The results of the tests, each kind of cluster started when the first one of its tests is asked for."""

    def __init__(self, items: list[pytest.Item]) -> None:
        self._items = items
        self._results: dict[str, dict[str, Result]] = {}
        self._missing: str | None = None if not items else missing()

    def result(self, item: pytest.Item) -> Result:
        """What became of a test."""
        if self._missing:
            return "skipped", self._missing
        kind = kind_of(item)
        if kind not in self._results:
            tests = [other.nodeid for other in self._items if kind_of(other) == kind]
            with TemporaryDirectory(prefix="slurm-tests-") as folder:
                self._results[kind] = run_inside(kind, tests, Path(folder))
        return self._results[kind][item.nodeid]


CLUSTERS = pytest.StashKey[Clusters]()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Look a test's result up instead of running it, unless this is the inner pytest."""
    if pyfuncitem.get_closest_marker("slurm") is None or INSIDE in os.environ:
        return None
    stash = pyfuncitem.config.stash
    if CLUSTERS not in stash:
        own = [item for item in pyfuncitem.session.items if item.path.is_relative_to(FOLDER)]
        stash[CLUSTERS] = Clusters([item for item in own if item.get_closest_marker("slurm")])
    outcome, text = stash[CLUSTERS].result(pyfuncitem)
    if outcome == "skipped":
        pytest.skip(text)
    if outcome == "failed":
        pytest.fail(text, pytrace=False)
    return True


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    """A small workflow whose only stage is a trainer that counts, run by the real launcher and the real profile."""
    made = Stub(tmp_path)
    yield made
    for process in made.processes:
        end(process)
