"""What was asked for is there in the end, or the end is no success; also after the main process was killed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import stand_in
from tests.project import Project, tiny_config
from tests.snakemake import ROOT, snakemake, write_config

ALIVE = ("rerun-incomplete", "keep-going", "retries", "latency-wait")  # settings of the Slurm profile


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """PATH with the stand-in for what the rules run."""
    folder = stand_in.install(tmp_path_factory.mktemp("programs") / "bin")
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


class Workflow:
    """A project whose stages take no time."""

    def __init__(self, folder: Path, programs: str) -> None:
        self.project = Project(folder, tiny_config())
        self.folder = folder
        self._programs = programs
        write_config(folder, self.project.config)

    def run(self, *arguments: str, kill: str = "") -> subprocess.CompletedProcess[str]:
        return snakemake(
            self.folder,
            *("--cores", "2", "--scheduler", "greedy", "--configfile", "config.yaml", *arguments),
            environment={"PATH": self._programs, "STAND_IN_KILLS": kill},
        )

    def killed_at(self, script: str, *arguments: str) -> None:
        """A run whose Snakemake is killed when this script has written its outputs."""
        (self.folder / "kill").touch()
        assert self.run(*arguments, kill=script).returncode == -9
        (self.folder / "kill").unlink()
        assert list((self.folder / ".snakemake/incomplete").iterdir())
        assert self.run("--unlock").returncode == 0

    def id(self, kind: str) -> str:
        return self.project.plan.runs[0].stages[kind]

    def tokens(self) -> Path:
        return self.folder / "results/tokens" / self.project.plan.of_kind("tokens")[0].id

    def products_missing(self) -> list[str]:
        return [file for file in self.project.plan.products() if not (self.folder / file).exists()]


@pytest.fixture
def workflow(tmp_path: Path, programs: str) -> Workflow:
    return Workflow(tmp_path, programs)


@pytest.mark.parametrize("script", ["cache_dataset", "tokenize_dataset"])
def test_the_next_run_makes_everything_when_snakemake_was_killed_after_a_stage(workflow: Workflow, script: str) -> None:
    workflow.killed_at(script)
    result = workflow.run("--rerun-incomplete")
    assert result.returncode == 0, result.stdout[-3000:]
    assert workflow.products_missing() == []


def test_so_it_does_with_the_settings_of_the_slurm_profile(workflow: Workflow) -> None:
    settings: dict[str, Any] = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())
    profile = workflow.folder / "profile"
    profile.mkdir()
    (profile / "config.yaml").write_text(yaml.safe_dump({name: settings[name] for name in ALIVE}))
    workflow.killed_at("tokenize_dataset", "--profile", "profile")
    result = workflow.run("--profile", "profile")
    assert result.returncode == 0, result.stdout[-3000:]
    assert workflow.products_missing() == []


def test_until_a_rule_makes_what_the_rule_makes(workflow: Workflow) -> None:
    workflow.killed_at("tokenize_dataset")
    result = workflow.run("--rerun-incomplete", "--until", "train_reward")
    assert result.returncode == 0, result.stdout[-3000:]
    assert (workflow.folder / "results/reward" / workflow.id("reward") / "manifest.json").exists()
    assert not (workflow.folder / "results/ppo").joinpath(workflow.id("ppo"), "manifest.json").exists()


@pytest.mark.parametrize("by", ["target", "until"])
def test_a_named_file_is_made_or_missed(workflow: Workflow, by: str) -> None:
    """Snakemake overlooks what comes after the incomplete stage: an error, and the same command makes it."""
    wanted = f"results/sft/{workflow.id('sft')}/model"
    arguments = ("--rerun-incomplete", *(("--until",) if by == "until" else ()), wanted)
    workflow.killed_at("tokenize_dataset")
    first = workflow.run(*arguments)
    assert (first.returncode == 0) == (workflow.folder / wanted).exists(), first.stdout[-3000:]
    if first.returncode:
        assert f"not made, though asked for: {wanted}" in first.stdout
        assert "Traceback" not in first.stdout
    assert workflow.run(*arguments).returncode == 0
    assert (workflow.folder / wanted).exists()


def test_a_forced_stage_does_not_hide_what_is_missing(workflow: Workflow) -> None:
    assert workflow.run("--until", "tokenize_dataset").returncode == 0
    result = workflow.run("--forcerun", "tokenize_dataset")
    assert result.returncode == 0, result.stdout[-3000:]
    assert workflow.products_missing() == []


def test_until_asks_for_a_result_that_no_later_stage_needs(workflow: Workflow) -> None:
    assert workflow.run().returncode == 0
    tokens = workflow.tokens()
    shutil.rmtree(tokens)
    assert "Nothing to be done" in workflow.run().stdout
    assert workflow.run("--until", "tokenize_dataset").returncode == 0
    assert tokens.exists()
    assert "Nothing to be done" in workflow.run().stdout


@pytest.mark.parametrize("target", [(), ("--rerun-incomplete", "results/experiments/tiny/index.md")])
def test_until_a_rule_that_no_target_needs_is_no_success(workflow: Workflow, target: tuple[str, ...]) -> None:
    """Snakemake says that there is nothing to be done, and runs no hook."""
    assert workflow.run().returncode == 0
    until = (*target, "--until", "train_sft")
    result = workflow.run(*until)
    assert result.returncode == 0 and "Nothing to be done" in result.stdout
    lost = f"results/sft/{workflow.id('sft')}/model"
    shutil.rmtree(workflow.folder / lost)
    for option in ("--no-hooks", "--printshellcmds"):
        result = workflow.run(*until, option)
        assert result.returncode == 1, result.stdout[-3000:]
        assert f"not made, though asked for: {lost}. Snakemake saw nothing to do" in result.stdout
        assert "Traceback" not in result.stdout
    assert workflow.run("--rerun-incomplete", lost).returncode == 0  # the remedy
    assert (workflow.folder / lost).exists()


def test_batches_make_everything(workflow: Workflow) -> None:
    for batch in ("1/2", "2/2"):
        result = workflow.run("--batch", f"all={batch}")
        assert result.returncode == 0, result.stdout[-3000:]
    assert workflow.products_missing() == []
