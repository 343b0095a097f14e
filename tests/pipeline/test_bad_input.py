"""Mistakes that only show when data or a model is read: one clear message, before anything is trained."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.project import tiny_config
from tests.snakemake import leaks, snakemake, write_config
from tests.unit.conftest import make_model


def fails_before_training(folder: Path, config: dict[str, Any], *fragments: str) -> None:
    """The workflow stops with all fragments in one message; no training step has left anything."""
    path = write_config(folder, config)
    result = snakemake(folder, "--cores", "2", "--configfile", str(path))
    assert result.returncode != 0
    message = [line for line in result.stdout.splitlines() if line.strip().startswith("error: ")]
    assert message, result.stdout
    for fragment in fragments:
        assert fragment in message[-1], result.stdout
    assert "Traceback" not in result.stdout
    assert not (folder / "logs/sft").exists()
    assert leaks(folder) == []


def with_dataset(file: Path, rows: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tiny_config()
    config["datasets"]["mine"] = {"source": {"path": file.name}, **settings}
    config["defaults"]["data_path"] = ["mine"]
    return config


ROWS = [{"prompt": f"p {i}", "good": f"a {i}", "bad": f"b {i}"} for i in range(50)]


def test_a_column_that_does_not_exist(tmp_path):
    config = with_dataset(tmp_path / "mine.jsonl", ROWS, columns={"chosen": "god", "rejected": "bad"})
    fails_before_training(tmp_path, config, "datasets.mine.columns.chosen", "'god'", "did you mean 'good'?")


def test_an_empty_dataset(tmp_path):
    config = with_dataset(tmp_path / "mine.jsonl", [])
    fails_before_training(tmp_path, config, "datasets.mine", "no row")


def test_too_many_unusable_rows(tmp_path):
    rows = [row | {"good": ""} if index % 5 == 0 else row for index, row in enumerate(ROWS)]
    config = with_dataset(tmp_path / "mine.jsonl", rows, columns={"chosen": "good", "rejected": "bad"})
    fails_before_training(tmp_path, config, "datasets.mine", "20.0%", "10 x empty answer", "max_bad_share")


@pytest.mark.parametrize("missing", ["tokenizer", "weights"])
def test_a_model_folder_without_a_part(tmp_path, missing):
    folder = make_model(tmp_path / "base", "gpt2")
    for file in folder.glob("tokenizer*" if missing == "tokenizer" else "*.safetensors"):
        file.unlink()
    config = tiny_config()
    config["models"]["mine"] = {"source": {"path": "base"}}
    config["defaults"] |= {"policy": "mine", "reward_model": "mine"}
    fails_before_training(tmp_path, config, "models.mine.source.path", "'base'", missing[:5])


def test_a_lora_pattern_of_ppo_is_checked_before_sft(tmp_path):
    config = tiny_config()
    config["defaults"]["ppo"]["actor"] |= {"lora_dim": 4, "lora_module_name": "decoder.layers."}
    place = "experiments.tiny.ppo.actor.lora_module_name"
    fails_before_training(tmp_path, config, place, "matches no linear module of models.tiny", "transformer.h.0")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("ppo.max_prompt_seq_len", "ppo.max_prompt_seq_len: 2 excludes all"),
        ("reward.max_seq_len", "reward.max_seq_len: 2 excludes all"),
    ],
)
def test_a_limit_that_leaves_nothing_is_known_before_sft(tmp_path, key, said):
    config = tiny_config()
    stage, name = key.split(".")
    config["defaults"][stage][name] = 2
    fails_before_training(tmp_path, config, said, "rows; raise it")
    assert not (tmp_path / "logs/reward").exists()


def test_sequences_longer_than_the_model_are_refused(tmp_path):
    config = tiny_config()
    config["defaults"]["sft"]["max_seq_len"] = 100
    fails_before_training(tmp_path, config, "experiments.tiny.sft.max_seq_len", "100 tokens", "64 positions")
