"""A damaged stage is found, and made again alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.files import sha256_file, sha256_tree
from tests.project import Project
from tests.snakemake import ENVIRONMENT, dry_run, leaks, snakemake


def verify(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlhf.commands.verify", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


@pytest.mark.slow
def test_damaged_models_are_made_again_and_nothing_after_them(finished: Project, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    shutil.copytree(finished.folder, folder)
    project = Project(folder, finished.config)
    trained = project.results("sft")
    cached = folder / "resources/models" / project.plan.runs[0].stages["policy"]
    weights = [stage / "model/model.safetensors" for stage in (trained, cached)]
    before = list(map(sha256_file, weights))
    untouched = ("results/reward", "results/ppo", "results/evaluate_ppo", "results/baseline", "results/tokens")
    others = {name: sha256_tree(folder / name) for name in untouched}
    assert dry_run(folder, project.config_file) == {}

    for file in weights:
        flip_a_byte(file)
    found = verify(folder, "tiny")
    assert found.returncode == 2
    for stage in (trained, cached):
        assert f"{stage.relative_to(folder)}: model/model.safetensors has changed\n" in found.stdout
    assert "2 of 4 stages are as they were made" in found.stdout
    assert dry_run(folder, project.config_file) == {}  # age is no reason, so nothing happens unless it is asked for

    assert verify(folder, "--discard").returncode == 0
    expected = {"cache_model": 1, "train_sft": 1, "summarise": 1, "all": 1}
    assert dry_run(folder, project.config_file) == expected
    result = snakemake(folder, "--cores", "2", "--show-failed-logs", "--configfile", str(project.config_file))
    assert result.returncode == 0, result.stdout[-4000:]
    assert list(map(sha256_file, weights)) == before
    assert {name: sha256_tree(folder / name) for name in untouched} == others
    assert verify(folder, "tiny").stdout == "4 of 4 stages are as they were made\n"
    assert dry_run(folder, project.config_file) == {}


def test_no_secret_of_the_environment_is_left_by_a_run(finished: Project) -> None:
    assert leaks(finished.folder) == []
