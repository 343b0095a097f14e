"""What tests of whole runs share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.snakemake import ENVIRONMENT
from tests.warm import warm_python


@pytest.fixture(scope="package", autouse=True)
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Rules call a Python that has imported what takes long; elsewhere (faults, Slurm) they call their own."""
    before = ENVIRONMENT["PATH"]
    with warm_python(tmp_path_factory.mktemp("warm") / "bin", ENVIRONMENT | {"OMP_NUM_THREADS": "1"}) as programs:
        ENVIRONMENT["PATH"] = f"{programs}{os.pathsep}{before}"
        yield
        ENVIRONMENT["PATH"] = before
