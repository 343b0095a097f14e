"""What all tests share."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from tests.hub.fixture import hub, published, serving  # noqa: F401  (fixtures)
from tests.project import finished  # noqa: F401  (a fixture)

ROOT = Path(__file__).resolve().parents[1]

# Programs started by tests (python, snakemake, deepspeed) are those of this environment, activated or not.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
# One thread for each test process: more of them, beside each other on few cores, make small models many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """See no GPU, as most machines have none; but those tests do that are of GPUs, where only they are asked for."""
    if not any("gpu" in word for word in (*config.args, config.getoption("markexpr"))):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


class ByFile(LoadFileScheduling):
    """Gives a file's tests to one process, as they share fixtures; and so all those on Slurm, whose clusters each serve
    the tests of several files."""

    def _split_scope(self, nodeid: str) -> str:
        return "slurm" if nodeid.startswith("tests/slurm/") else str(super()._split_scope(nodeid))


@pytest.hookimpl(optionalhook=True)  # `-p no:xdist`
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile | None:
    """With `--dist loadfile`, as `make test` has it."""
    return ByFile(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests on Slurm: they are the longest that one process has to run, and mostly wait."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/slurm/"))


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The repository."""
    return ROOT


# Of DeepSpeed, made in this process since the last test; held by nothing here, as what frees one early is tested.
ENGINES: weakref.WeakSet[Any] = weakref.WeakSet()


@pytest.fixture(scope="session")
def group() -> Iterator[None]:
    """A process group of one, as a training script has it."""
    import deepspeed  # imports torch, which most tests of the workflow do not need

    from rlhf.training.distributed import processes

    def initialize(*args: Any, **kwargs: Any) -> Any:
        made = original(*args, **kwargs)
        ENGINES.add(made[0])
        return made

    original, deepspeed.initialize = deepspeed.initialize, initialize
    with processes():
        yield
    deepspeed.initialize = original


@pytest.fixture(autouse=True)
def engines_end() -> Iterator[None]:
    """End engines with their test, as the end of a process does: each one of ZeRO-3 keeps gigabytes reserved, until the
    system refuses to fork so large a process."""
    yield
    while ENGINES:
        ENGINES.pop().destroy()


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Path of a file or folder of the test data that is not part of the repository.

    It lies in `shared/data`, inside the repository or beside it; a test that misses it is skipped by name.
    """

    def find(name: str) -> Path:
        for folder in (ROOT, ROOT.parent):
            if (folder / "shared/data" / name).exists():
                return folder / "shared/data" / name
        pytest.skip(f"shared/data/{name} is not on this machine")

    return find
