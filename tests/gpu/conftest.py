"""What the tests on a device share.

Without a CUDA device they are skipped by name. RLHF_GPU_TESTS=cpu runs them all the same, the CPU in the place of the
device: that finds nothing out, but shows that the tests themselves work (`python -m benchmarks.gpu --tiny`).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.gpu.runs import REHEARSAL, Runs


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device that is compared with the CPU."""
    if REHEARSAL:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


@pytest.fixture(scope="session")
def runs(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Small stages on the CPU and on the device, which run in processes of their own."""
    started = Runs(tmp_path_factory.mktemp("runs"), device.type)
    yield started
    started.close()


@pytest.fixture(scope="session", autouse=True)
def begun(request: pytest.FixtureRequest) -> None:
    """The stages run while other tests do."""
    if any("runs" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("runs")
