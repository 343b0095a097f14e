"""The stand-in as a fixture, and programs that meet it in the place of the hub."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from tests.hub.server import Hub
from tests.warm import become

# What the rules put in front of each command, and no token or cache of whoever runs the tests.
RULE = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Done:
    """A program that has ended."""

    status: int
    log: str


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repositories, made once for all test processes; a test that changes some works on a copy."""
    from tests.hub.making import make  # imports torch, which most tests of the workflow do not need

    alone = "PYTEST_XDIST_WORKER" not in os.environ
    shared = (tmp_path_factory.getbasetemp() if alone else tmp_path_factory.getbasetemp().parent) / "hub"
    with FileLock(shared.with_suffix(".lock")):
        if not shared.exists():
            make(shared.with_name("hub-in-making"))
            shared.with_name("hub-in-making").rename(shared)
    return shared


@pytest.fixture(scope="session")
def serving(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """The server on a free port, of a copy that tests of this process may add to."""
    root = tmp_path_factory.mktemp("served") / "hub"
    shutil.copytree(published, root)
    with Hub(root) as hub:
        yield hub


@pytest.fixture
def hub(serving: Hub) -> Iterator[Hub]:
    """The server without faults, and with no request in its log."""
    serving.faults()
    serving.requests.clear()
    yield serving
    serving.faults()


def environment(hub: Hub | None, home: Path, **more: str) -> dict[str, str]:
    """The variables of a program: `hub` is where it finds the hub (None: nowhere), `home` its HF_HOME."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE"))}
    return mine | RULE | {"HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9", "HF_HOME": str(home)} | more


def run_script(
    script: Path,
    arguments: list[str],
    variables: dict[str, str],
    folder: Path,
    during: Callable[[int], None] | None = None,
) -> Done:
    """Run a script in a child of this process, which has imported what takes long; the log is what it prints.

    `during` is called with the child's number while it runs.
    """
    import rlhf.models.cache  # noqa: F401  (so that no child has to)

    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "script.log"
    child = os.fork()
    if child == 0:
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        become([str(script), *arguments], variables, str(folder))
    if during is not None:
        during(child)
    _, ended = os.waitpid(child, 0)
    return Done(os.waitstatus_to_exitcode(ended), log.read_text())
