"""Caches and token files that were interrupted, and a second controller."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf.config.sources import ModelSettings
from rlhf.config.specification import ResolvedDataset
from rlhf.data.dataset import cache_dataset
from rlhf.data.tokens import tokenize
from rlhf.files import sha256_tree
from rlhf.models.cache import cache_model
from rlhf.runtime.folders import leftovers
from tests.project import tiny_config
from tests.snakemake import ENVIRONMENT, ROOT, snakemake, write_config
from tests.unit.conftest import make_model

GENERATED = {"generator": "rlhf.data.reviews:generate_pairs", "arguments": {"rows": 50, "seed": 0}}
STEPS = ("dataset", "model", "tokens")
# The steps, each in a process that dies when everything is written, and nothing has its name yet.
KILLED_PROCESSES = """
import os, signal, sys
from pathlib import Path
from rlhf.runtime import folders
from tests.faults.test_caches import STEPS, make

folders._replace = lambda path, new: os.kill(os.getpid(), signal.SIGKILL)
for step in STEPS:
    process = os.fork()
    if process == 0:
        make(step, Path(sys.argv[1]))
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL
"""


def make(step: str, work: Path) -> None:
    """A dataset or a model in the cache, or tokens of the ones in `whole`."""
    if step == "dataset":
        cache_dataset(ResolvedDataset(source=GENERATED), work / step, "datasets.x")
    elif step == "model":
        source = {"path": str(work.parent / "base")}
        cache_model(ModelSettings(source=source), work / step, "models.x")
    else:
        tokenize(work.parent / "whole/dataset", work.parent / "base", work / step)


def content(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in sha256_tree(folder).items() if not name.endswith("state.json")}


def test_a_killed_step_leaves_nothing_that_counts_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    make_model(tmp_path / "base", "gpt2")
    for step in STEPS:
        make(step, tmp_path / "whole")
    cut = tmp_path / "cut"
    command = [sys.executable, "-c", KILLED_PROCESSES, str(cut)]
    environment = ENVIRONMENT | {"PYTHONPATH": f"{ROOT / 'workflow'}:{ROOT}"}
    killed = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert killed.returncode == 0, killed.stderr[-3000:]
    for step in STEPS:
        assert not (cut / step).exists()
        (leftover,) = leftovers(cut, step)
        assert content(leftover) == content(tmp_path / "whole" / step)  # it was killed at the last moment
        make(step, cut)
        assert content(cut / step) == content(tmp_path / "whole" / step)
        assert leftovers(cut, step) == []


ROWS = """
import time
from pathlib import Path

def rows():
    Path("started").touch()
    while not Path("go").exists():
        time.sleep(0.05)
    yield from ({"prompt": f"p {i}", "chosen": f"a {i}", "rejected": f"b {i}"} for i in range(50))
"""


@pytest.mark.slow
def test_a_second_controller_is_refused_and_a_killed_one_leaves_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "slow_rows.py").write_text(ROWS)
    config = tiny_config()
    config["datasets"]["reviews"]["source"] = {"generator": "slow_rows:rows"}
    path = write_config(tmp_path, config)
    until = ("--cores", "1", "--configfile", str(path), "--until", "cache_dataset")
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), *until]
    environment = ENVIRONMENT | {"PYTHONPATH": f"{ENVIRONMENT['PYTHONPATH']}:{tmp_path}"}
    first = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "started").exists():
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        second = snakemake(tmp_path, *until)
        assert second.returncode != 0
        assert "Directory cannot be locked" in second.stdout
        assert "--unlock" in second.stdout
        assert "Traceback" not in second.stdout
        assert first.poll() is None  # and it did the first no harm
    finally:
        first.kill()
        first.wait()
        (tmp_path / "go").touch()  # its job goes on by itself
    while not list(tmp_path.glob("resources/datasets/*/report.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert snakemake(tmp_path, *until, "--unlock").returncode == 0
    command.append("--rerun-incomplete")  # Snakemake did not see the job end
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    (folder,) = tmp_path.glob("resources/datasets/*")
    assert sorted(entry.name for entry in folder.iterdir()) == ["arrow", "report.json"]
