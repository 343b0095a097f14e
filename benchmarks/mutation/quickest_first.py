"""A plugin of pytest: files with quick tests first, as mutmut has measured them, so that most mutants die early."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

MEASURED = Path("mutmut-stats.json")  # mutmut runs pytest in the folder of its mutants


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by the time of a file, then of a test: tests of a file stay together, because they share fixtures."""
    measured: dict[str, float] = json.loads(MEASURED.read_text())["duration_by_test"] if MEASURED.exists() else {}
    seconds = {item: measured.get(item.nodeid, 0.0) for item in items}
    files: dict[Path, float] = defaultdict(float)
    for item in items:
        files[item.path] += seconds[item]
    items.sort(key=lambda item: (files[item.path], item.path, seconds[item]))
