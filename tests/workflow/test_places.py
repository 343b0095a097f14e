"""The workflow from other places: as a module, in the layout of snakedeploy, included, and run in another folder."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project import tiny_config
from tests.snakemake import ENVIRONMENT, ROOT, snakemake, write_config

# What `snakedeploy deploy-workflow` writes to workflow/Snakefile, and the handlers that README.md names.
DEPLOYED = """
configfile: "config/config.yaml"

module rlhf_workflow:
    snakefile:
        {snakefile}
    config:
        config

use rule * from rlhf_workflow{names}

onstart:
    rlhf_workflow.onstart()

onsuccess:
    rlhf_workflow.onsuccess()

onerror:
    rlhf_workflow.onerror()
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Snakemake in a folder, which finds the folder's own Snakefile."""
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def jobs(output: str) -> dict[str, int]:
    """Rule -> number of jobs, from the first table of a run's output."""
    table = output.split("Job stats:")[1].split("total")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)}


def deploy(folder: Path, snakefile: str, names: str = "") -> None:
    """A project that uses the workflow as a module."""
    for place in ("workflow", "config"):
        (folder / place).mkdir(parents=True)
    (folder / "workflow/Snakefile").write_text(DEPLOYED.format(snakefile=snakefile, names=names))
    write_config(folder / "config", tiny_config())


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """The jobs of the same configuration, run from the repository's Snakefile."""
    folder = tmp_path_factory.mktemp("direct")
    config = write_config(folder, tiny_config())
    result = snakemake(folder, "--dry-run", "--configfile", str(config))
    assert result.returncode == 0, result.stdout
    return jobs(result.stdout)


@pytest.mark.parametrize("file", ["Snakefile", "workflow/Snakefile"])
def test_a_module_has_the_same_jobs_and_its_rules_run(tmp_path: Path, expected: dict[str, int], file: str) -> None:
    deploy(tmp_path, f'"{ROOT / file}"')
    planned = run(tmp_path, "--dry-run")
    assert planned.returncode == 0, planned.stdout[-3000:]
    assert jobs(planned.stdout) == expected
    if file == "Snakefile":
        return
    made = run(tmp_path, "--until", "cache_dataset")
    assert made.returncode == 0, made.stdout[-3000:]
    assert len(list(tmp_path.glob("resources/datasets/*/report.json"))) == 1
    assert "Not made yet: tiny" in made.stdout  # the closing message, by the handler


def test_the_layout_of_snakedeploy_takes_the_workflow_from_a_repository(
    tmp_path: Path, expected: dict[str, int]
) -> None:
    """Snakemake reads the rules from the repository, file by file; the scripts are those of the installation."""
    repository = tmp_path / "repository"
    for name in ("Snakefile", "workflow"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        repository.mkdir(exist_ok=True)
        copy(ROOT / name, repository / name)
    commit = ("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "--message", "a")
    for command in (("init", "--quiet"), ("add", "--all"), commit, ("tag", "v1")):
        subprocess.run(["git", "-C", str(repository), *command], check=True)
    project = tmp_path / "project"
    deploy(project, f'gitfile("{repository}", path="workflow/Snakefile", tag="v1")', " as rlhf_*")
    planned = run(project, "--dry-run")
    assert planned.returncode == 0, planned.stdout[-3000:]
    assert jobs(planned.stdout) == {f"rlhf_{name}": count for name, count in expected.items()}
    made = run(project, "--until", "rlhf_write_runs")
    assert made.returncode == 0, made.stdout[-3000:]
    assert (project / "results/experiments/tiny/runs.json").exists()


def test_an_including_snakefile_brings_its_own_configuration(tmp_path: Path, expected: dict[str, int]) -> None:
    write_config(tmp_path, tiny_config(), "mine.yaml")
    (tmp_path / "Snakefile").write_text(
        f'configfile: "mine.yaml"\n\ninclude: "{ROOT / "workflow/Snakefile"}"\n\nworkflow.default_target = "all"\n'
    )
    planned = run(tmp_path, "--dry-run")
    assert planned.returncode == 0, planned.stdout[-3000:]
    assert jobs(planned.stdout) == expected


def test_another_folder_needs_a_configuration_or_is_told_so(tmp_path: Path, expected: dict[str, int]) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "work").mkdir()
    config = write_config(tmp_path / "elsewhere", tiny_config())
    snakefile = ("--snakefile", str(ROOT / "Snakefile"), "--dry-run")
    refused = run(tmp_path / "elsewhere", *snakefile)
    assert refused.returncode == 1
    assert "no configuration:" in refused.stdout
    assert "--configfile" in refused.stdout
    assert "Traceback" not in refused.stdout
    given = run(tmp_path / "elsewhere", *snakefile, "--directory", str(tmp_path / "work"), "--configfile", config.name)
    assert given.returncode == 0, given.stdout[-3000:]
    assert jobs(given.stdout) == expected
    (tmp_path / "work/config").mkdir()
    write_config(tmp_path / "work/config", tiny_config())
    assert jobs(run(tmp_path / "work", *snakefile).stdout) == expected
