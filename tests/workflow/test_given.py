"""What the user gives, as Snakemake hands it on: --config, configuration files with repeated or reordered keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.project import TINY, tiny_config
from tests.snakemake import dry_run, snakemake, write_config


def in_reverse(value: Any) -> Any:
    """The same, with the keys of all dictionaries in the reverse order."""
    if isinstance(value, dict):
        return {key: in_reverse(value[key]) for key in reversed(value)}
    return [in_reverse(item) for item in value] if isinstance(value, list) else value


def test_nested_numbers_of_the_command_line_count(tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_config())
    given = "experiments={tiny: {seeds: [1, 2, 3], ppo: {kl_coefficient: 0.3, actor: {learning_rate: 1e-5}}}}"
    assert dry_run(tmp_path, config, "--config", given)["train_ppo"] == 3
    file = tiny_config()
    file["experiments"]["tiny"] = {"seeds": [1, 2, 3], "ppo": {"kl_coefficient": 0.3, "actor": {"learning_rate": 1e-5}}}
    plans = [snakemake(tmp_path, "--summary", "--configfile", "config.yaml", "--config", given)]
    plans.append(snakemake(tmp_path, "--summary", "--configfile", str(write_config(tmp_path, file, "file.yaml"))))
    first, second = (sorted(line for line in plan.stdout.splitlines() if "results/" in line) for plan in plans)
    assert first
    assert first == second


def test_an_experiment_without_ppo_can_be_given_on_the_command_line(tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_config())
    given = "experiments={tiny: {phases: [sft], data_split: '10,0,0'}}"
    jobs = dry_run(tmp_path, config, "--config", given)
    made = {"train_sft": 1, "evaluate_sft": 1, "plan_memory": 2, "split_dataset": 1, "summarise": 1}
    assert {name: jobs[name] for name in made} == made
    assert not [name for name in jobs if "ppo" in name or "reward" in name or name == "sample_baseline"]


def test_a_repeated_key_is_refused_in_every_file(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text(f"{TINY}  tiny: {{seeds: [2]}}\n")
    more = write_config(tmp_path, {"defaults": {"seeds": [3]}}, "more.yaml")
    for files in (["twice.yaml"], ["twice.yaml", more.name], [more.name, "twice.yaml"]):
        result = snakemake(tmp_path, "--dry-run", "--configfile", *files)
        assert result.returncode == 1
        last = len(TINY.splitlines()) + 1
        assert f"twice.yaml: line {last}: 'experiments.tiny' stands there again, after line {last - 1}" in result.stdout
        assert "Traceback" not in result.stdout


def test_another_order_of_keys_makes_nothing_again(tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_config())
    made = snakemake(tmp_path, "--cores", "1", "--configfile", str(config), "--until", "write_spec", "write_runs")
    assert made.returncode == 0, made.stdout[-3000:]
    reverse = tmp_path / "reverse.yaml"
    reverse.write_text(yaml.safe_dump(in_reverse(tiny_config()), sort_keys=False))
    assert dry_run(tmp_path, reverse, "--until", "write_spec", "write_runs") == {}
