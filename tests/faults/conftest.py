"""Stages of the small project, to be broken."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.stages import SMALL, Outcome, StageRun
from tests.project import Project


@pytest.fixture
def stage_run(finished: Project, group: None, tmp_path: Path) -> Callable[..., StageRun]:
    """Makes a run of a stage with changed settings, in a folder of its own."""

    def make(kind: str, settings: dict[str, Any] | None = None, **execution: Any) -> StageRun:
        folder = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        return StageRun(finished, kind, folder, SMALL[kind] | (settings or {}), execution)

    return make


@pytest.fixture(scope="session")
def uninterrupted() -> dict[str, Outcome]:
    """Results of runs that nothing broke, by what they were run with."""
    return {}


@pytest.fixture
def expected(stage_run, uninterrupted) -> Callable[..., Outcome]:
    """The result of a stage that nothing breaks."""

    def result(kind: str, settings: dict[str, Any] | None = None, **execution: Any) -> Outcome:
        key = repr((kind, settings, execution))
        if key not in uninterrupted:
            uninterrupted[key] = stage_run(kind, settings, **execution).start()
        return uninterrupted[key]

    return result
