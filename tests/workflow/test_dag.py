"""The DAG from dry runs: what is shared, what is refused, and how quickly."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlhf.config import Fingerprints, resolve
from tests.snakemake import ENVIRONMENT, ROOT, dry_run, snakemake, write_config

DEFAULT = yaml.safe_load((ROOT / "config/config.yaml").read_text())
STAND_IN_MODEL = {
    "linear_modules": ["model.decoder.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj"],
    "max_positions": 2048,
}
CONFIGURATIONS = sorted((ROOT / "config/recipes").glob("*.yaml"))


@pytest.fixture
def default() -> dict:
    return copy.deepcopy(DEFAULT)


def test_the_default_shares_stages_between_settings(tmp_path):
    """Two seeds and two KL coefficients: one dataset, two SFT and reward models, four PPO runs."""
    jobs = dry_run(tmp_path, ROOT / "config/config.yaml")
    expected = {
        "cache_dataset": 1,
        "cache_model": 1,
        "tokenize_dataset": 1,
        "split_dataset": 1,
        "train_sft": 2,
        "train_reward": 2,
        "train_ppo": 4,
        "check_ppo": 4,
        "check_rows": 2 + 2,  # before each SFT and each reward model
        "evaluate_sft": 2,
        "evaluate_reward": 2,
        "sample_baseline": 2,
        "evaluate_ppo": 4,
        "summarise": 1,
    }
    assert {rule: count for rule, count in jobs.items() if rule in expected} == expected


def test_memory_plans_need_models_and_no_training(tmp_path, default):
    default["defaults"]["memory"] = {"gpu": "l4", "on_misfit": "refuse"}
    jobs = dry_run(tmp_path, write_config(tmp_path, default), "--cores", "1", "memory_plans")
    assert jobs["plan_memory"] == (2 + 2 + 4) + (2 + 2 + 2 + 4)  # training, evaluation
    assert jobs["cache_model"] == 1
    assert "check_rows" not in jobs
    assert not [rule for rule in jobs if rule.startswith(("train", "tokenize"))]


def test_the_default_is_used_without_configfile_and_leaves_no_trace(tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text((ROOT / "config/config.yaml").read_text())
    result = snakemake(tmp_path, "--dry-run")
    assert result.returncode == 0, result.stdout
    assert "train_ppo" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".snakemake") == ["config"]


def test_a_configfile_stands_alone(tmp_path, default):
    default["experiments"] = {"other": {"seeds": [5]}}
    jobs = dry_run(tmp_path, write_config(tmp_path, default))
    assert jobs["train_ppo"] == 1
    assert jobs["summarise"] == 1


@pytest.mark.parametrize("recipe", CONFIGURATIONS, ids=lambda path: path.stem)
def test_recipes_pass_a_dry_run_on_cached_data(tmp_path, recipe):
    """What a hub provides stands in the cache already; the rest of the DAG follows."""
    plan = resolve(yaml.safe_load(recipe.read_text()), Fingerprints(tmp_path / "fingerprints.json").of)
    for stage in plan.of_kind("dataset"):
        (tmp_path / "resources/datasets" / stage.id / "arrow").mkdir(parents=True)
        (tmp_path / "resources/datasets" / stage.id / "report.json").write_text("{}")
    for stage in plan.of_kind("model"):
        (tmp_path / "resources/models" / stage.id / "model").mkdir(parents=True)
        (tmp_path / "resources/models" / stage.id / "manifest.json").write_text(json.dumps(STAND_IN_MODEL))
    jobs = dry_run(tmp_path, recipe)
    assert "cache_dataset" not in jobs
    assert "cache_model" not in jobs
    assert jobs["train_sft"] == jobs["train_reward"] == jobs["train_ppo"] == jobs["check_ppo"] == 1


def test_the_slurm_profile_submits_every_stage(tmp_path):
    profile = ("--profile", ROOT / "profiles/slurm")
    jobs = dry_run(tmp_path, ROOT / "config/config.yaml", *map(str, profile))
    assert jobs["train_ppo"] == 4
    assert jobs["all"] == 1


def test_recipes_exist():
    assert len(CONFIGURATIONS) >= 6


def test_parsing_needs_no_torch(tmp_path):
    """Every submitted job parses the Snakefile again."""
    code = (
        "import sys; from snakemake.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'deepspeed', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    arguments = ["--snakefile", ROOT / "Snakefile", "--directory", tmp_path, "--dry-run", "--quiet", "--configfile"]
    command = [sys.executable, "-c", code, *arguments, ROOT / "config/config.yaml"]
    result = subprocess.run(list(map(str, command)), env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def refuse(directory: Path, config: dict, *fragments: str) -> None:
    """A dry run of this configuration fails with one message, without a Python traceback."""
    result = snakemake(directory, "--dry-run", "--configfile", str(write_config(directory, config)))
    assert result.returncode != 0
    assert "Traceback" not in result.stdout
    for fragment in fragments:
        assert fragment in result.stdout, result.stdout


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path, default):
    default["experiments"]["reviews"]["ppo"] = {"kl_coeficient": 0.1}
    refuse(
        tmp_path, default, "experiments.reviews.ppo", "unknown key 'kl_coeficient'", "did you mean 'kl_coefficient'?"
    )


def test_a_missing_file_is_named_before_anything_runs(tmp_path, default):
    default["datasets"]["mine"] = {"source": {"path": "nowhere/pairs.jsonl"}}
    default["experiments"]["reviews"]["data_path"] = ["mine"]
    refuse(tmp_path, default, "datasets.mine.source.path", "nowhere/pairs.jsonl")


def test_an_undefined_dataset_is_named(tmp_path, default):
    default["defaults"]["data_path"] = ["review"]
    refuse(tmp_path, default, "experiments.reviews.data_path", "did you mean 'reviews'?")


def test_no_experiment_is_an_error(tmp_path, default):
    default["experiments"] = {}
    refuse(tmp_path, default, "experiments: none is defined")


def test_the_workflow_lints(tmp_path):
    """The linter finds two things, both on purpose: one environment for all rules, and scripts beside the Snakefile."""
    result = snakemake(tmp_path, "--lint", "text", "--configfile", str(ROOT / "config/config.yaml"))
    findings = [line.strip() for line in result.stdout.splitlines() if line.strip().startswith("* ")]
    assert set(findings) == {
        "* Specify a conda environment or container for each rule.:",
        "* Shell command directly uses variable SCRIPTS from outside of the rule:",
    }, result.stdout
