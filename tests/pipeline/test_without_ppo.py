"""The example of experiments that end before PPO, run by the real rules: what is made, shown, and shared."""

from __future__ import annotations

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf.files import read_json
from tests.project import Project
from tests.snakemake import ROOT, dry_run, snakemake, write_config

EXAMPLE = yaml.safe_load((ROOT / "config/examples/without-ppo.yaml").read_text())
ASKED = ("sft-and-reward", "reward-only")


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The example with fewer rows after a complete run of two of its experiments."""
    folder = tmp_path_factory.mktemp("ended")
    EXAMPLE["datasets"]["reviews"]["source"]["arguments"]["rows"] = 500
    project = Project(folder, {**EXAMPLE, "experiments": {name: EXAMPLE["experiments"][name] for name in ASKED}})
    write_config(folder, project.config)
    result = snakemake(folder, "--cores", "2", "--configfile", str(project.config_file))
    assert result.returncode == 0, result.stdout[-8000:]
    (folder / "output.txt").write_text(result.stdout)
    return project


def made(project: Project) -> set[str]:
    return {
        f"{place.parent.name}/{place.name}"
        for kind in ("sft", "reward", "ppo", "evaluate_*", "baseline")
        for place in project.folder.glob(f"results/{kind}/*")
    }


@pytest.mark.slow
def test_the_phases_asked_for_are_run_once_and_nothing_else_is(ended: Project) -> None:
    both, alone = ended.plan.runs
    assert both.stages["reward"] == alone.stages["reward"]
    kinds = ("sft", "evaluate_sft", "reward", "evaluate_reward")
    assert made(ended) == {f"{kind}/{both.stages[kind]}" for kind in kinds}
    assert dry_run(ended.folder, ended.config_file) == {}
    assert AutoModelForCausalLM.from_pretrained(ended.results("sft") / "model").config.model_type == "gpt2"
    scores = AutoModelForSequenceClassification.from_pretrained(ended.results("reward") / "model")
    assert scores.config.num_labels == 1


@pytest.mark.slow
def test_the_end_and_the_tables_name_what_there_is(ended: Project) -> None:
    both, _ = ended.plan.runs
    lines = [line.split("  ")[-1] for line in (ended.folder / "output.txt").read_text().splitlines()]
    models = [line for line in lines if line.endswith("/model") and line.startswith("results/")]
    sft, reward = (f"results/{kind}/{both.stages[kind]}/model" for kind in ("sft", "reward"))
    assert models == [sft, reward, reward]
    for name, links in (("sft-and-reward", {sft, reward}), ("reward-only", {reward})):
        folder = ended.folder / "results/experiments" / name
        linked = {(folder / part.split(")")[0]).resolve() for part in (folder / "index.md").read_text().split("](")[1:]}
        assert all(place.exists() for place in linked)
        assert {place.relative_to(ended.folder.resolve()).as_posix() for place in linked if place.is_dir()} == links
        roles = read_json(folder / "stages.json")["runs"][0]["stages"]
        assert not {"ppo", "baseline", "evaluate_ppo"} & roles.keys() and ("sft" in roles) == (name == ASKED[0])


@pytest.mark.slow
def test_a_shorter_experiment_needs_no_training_again(ended: Project) -> None:
    shorter = {**ended.config["experiments"]["sft-and-reward"], "phases": ["sft"]}
    del shorter["reward_model"]
    config = {**ended.config, "experiments": {**ended.config["experiments"], "shorter": shorter}}
    assert set(dry_run(ended.folder, write_config(ended.folder, config, "more.yaml"))) == {
        *("write_runs", "summarise", "all")
    }
