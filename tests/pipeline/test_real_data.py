"""The documented example on real preferences, instructions and a real pretrained model, where they are at hand.

The texts are partly offensive: no test prints them.
"""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf.config import Fingerprints, resolve
from rlhf.files import read_json, read_jsonl
from tests.project import Project
from tests.snakemake import ROOT, dry_run, snakemake, write_config

FILES = {
    "preferences.jsonl.gz": "preference/hh-rlhf_harmless-base_test.jsonl.gz",
    "instructions.jsonl": "sft/self-instruct_seed_tasks.jsonl",
    "model": "models/stories260K/hf",
}
SHORTER: dict[str, dict[str, Any]] = {
    "sft": {"num_train_epochs": 1, "max_seq_len": 256},
    "reward": {"max_seq_len": 256},
    "ppo": {"iterations": 3, "max_prompt_seq_len": 128, "max_answer_seq_len": 32},
}


def example(folder: Path, shared_data: Callable[[str], Path]) -> dict[str, Any]:
    """The example's configuration, its files put in place."""
    (folder / "data").mkdir()
    for name, source in FILES.items():
        (folder / "data" / name).symlink_to(shared_data(source))
    return yaml.safe_load((ROOT / "config/examples/local-files.yaml").read_text())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, shared_data: Callable[[str], Path]) -> Project:
    """The example after a complete run, with fewer steps and shorter texts."""
    folder = tmp_path_factory.mktemp("real")
    config = example(folder, shared_data)
    for section, settings in SHORTER.items():
        config["experiments"]["local"][section] |= settings
    project = Project(folder, config)
    result = snakemake(folder, "--cores", "2", "--configfile", str(write_config(folder, config)))
    assert result.returncode == 0, result.stdout[-4000:]
    return project


def plan_of(project: Project) -> Any:
    """The plan, whose paths are relative to the project's folder."""
    fingerprints = Fingerprints(project.folder / "fingerprints.json")
    return resolve(project.config, lambda path, key: fingerprints.of(str(project.folder / path), key))


def results(project: Project, kind: str) -> Path:
    return project.folder / "results" / kind / plan_of(project).runs[0].stages[kind]


def report(project: Project, label: str) -> dict[str, Any]:
    (folder,) = (project.folder / "resources/datasets").glob(f"{label}-*")
    return read_json(folder / "report.json")["splits"]


@pytest.mark.slow
def test_every_quirk_of_the_preferences_is_counted(real: Project) -> None:
    splits = report(real, "preferences")
    assert splits["train"]["rows_read"] == 2312
    bad = {reason: entry["count"] for reason, entry in splits["train"]["bad_rows"].items()}
    assert bad == {"prompt differs": 5, "empty answer: chosen": 4}
    assert splits["train"]["rows_kept"] + splits["eval"]["rows_kept"] == 2312 - 9
    assert splits["train"]["repeated_prompts"] + splits["eval"]["repeated_prompts"] == 2
    assert splits["eval"]["seen_in_train"] == 0
    left_out = {row for entry in splits["train"]["bad_rows"].values() for row in entry["first_rows"]}
    with gzip.open(real.folder / "data/preferences.jsonl.gz", "rt", encoding="utf-8") as stream:
        plain = [all(text.isascii() for text in json.loads(line).values()) for line in stream]
    expected = sum(not ascii_only for row, ascii_only in enumerate(plain) if row not in left_out)
    assert splits["train"]["non_ascii_rows"] + splits["eval"]["non_ascii_rows"] == expected == 1900


@pytest.mark.slow
def test_the_reports_hold_no_text(real: Project) -> None:
    for file in (real.folder / "resources/datasets").glob("*/report.json"):
        text = file.read_text()
        assert "Human:" not in text and "Assistant:" not in text


@pytest.mark.slow
def test_instructions_serve_sft_only(real: Project) -> None:
    assert (
        report(real, "instructions")["train"]["without_rejected"] == report(real, "instructions")["train"]["rows_kept"]
    )
    (split,) = (real.folder / "results/split").glob("instructions-*")
    rows = read_json(split / "rows/split.json")["rows"]
    assert rows["train.sft"] == 149 and rows["eval.sft"] == 26
    assert rows["train.reward"] == rows["train.ppo"] == rows["eval.reward"] == rows["eval.ppo"] == 0


@pytest.mark.slow
def test_the_reward_model_learns(real: Project) -> None:
    losses = [row["loss"] for row in read_jsonl(results(real, "reward") / "metrics.jsonl") if row["phase"] == "train"]
    epoch = len(losses) // 3
    assert sum(losses[-epoch:]) < sum(losses[:epoch])
    unseen = read_json(results(real, "evaluate_reward") / "evaluation.json")
    assert unseen["pairs"] > 100
    assert 0 < unseen["accuracy_low"] < unseen["accuracy"] < unseen["accuracy_high"] < 1


@pytest.mark.slow
def test_sft_learns_to_answer_and_to_end(real: Project) -> None:
    losses = [row["loss"] for row in read_jsonl(results(real, "sft") / "metrics.jsonl") if row["phase"] == "eval"]
    assert losses[-1] < losses[0]
    assert read_json(results(real, "evaluate_ppo") / "evaluation.json")["eos_share"] > 0


@pytest.mark.slow
def test_an_edited_file_reruns_what_depends_on_it_and_a_touched_one_does_not(real: Project) -> None:
    config = real.config_file
    assert dry_run(real.folder, config) == {}
    instructions = real.folder / "data/instructions.jsonl"
    rows = instructions.read_text()
    instructions.unlink()
    instructions.write_text(rows)
    assert dry_run(real.folder, config) == {}
    instructions.write_text(rows.split("\n", 1)[1])
    jobs = set(dry_run(real.folder, config))
    instructions.write_text(rows)
    assert {"cache_dataset", "tokenize_dataset", "split_dataset", "train_sft", "train_ppo", "summarise"} <= jobs
    assert "cache_model" not in jobs
