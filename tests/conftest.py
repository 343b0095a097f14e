"""What all tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.project import finished  # noqa: F401  (a fixture)

ROOT = Path(__file__).resolve().parents[1]

# Programs started by tests (python, snakemake, deepspeed) are those of this environment, activated or not.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
# One thread for each test process: more of them, beside each other on few cores, make small models many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def group() -> Iterator[None]:
    """A process group of one, as a training script has it."""
    from rlhf.training.distributed import processes  # imports torch, which most tests of the workflow do not need

    with processes():
        yield


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
