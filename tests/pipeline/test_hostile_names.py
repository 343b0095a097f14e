"""Names and texts that a careless shell command would run."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from tests.project import tiny_config
from tests.snakemake import leaks, snakemake, write_config
from tests.unit.conftest import make_model

COMMAND = "$(touch PWNED2) `touch PWNED3` ;touch PWNED4; 'x' \"y\" %s \\ é"
TEMPLATE = (
    "{# " + COMMAND + " {id} #}"
    "{% for message in messages %}{{ message.role }} : {{ message.content }} {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def test_names_and_texts_are_never_commands(tmp_path: Path) -> None:
    """A data file, a model folder and a chat template, through all steps before training."""
    file = f"-a b;touch PWNED {COMMAND}.jsonl"
    rows = [{"prompt": f"w{3 + index % 40} w5", "chosen": "w6", "rejected": "w7"} for index in range(40)]
    (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_model(tmp_path / f"m {COMMAND}", "gpt2")
    config = tiny_config()
    config["datasets"]["mine"] = {"source": {"path": file}, "chat_template": TEMPLATE}
    config["models"]["mine"] = {"source": {"path": f"m {COMMAND}"}}
    config["defaults"] |= {"data_path": ["mine"], "policy": "mine", "reward_model": "mine"}
    path = write_config(tmp_path, config)
    before = {entry.name for entry in tmp_path.iterdir()}
    until = ("--until", "tokenize_dataset", "split_dataset")
    result = snakemake(tmp_path, "--cores", "2", "--show-failed-logs", "--configfile", str(path), *until)
    assert result.returncode == 0, result.stdout[-4000:]
    made = {entry.name for entry in tmp_path.iterdir()} - before
    assert made == {".snakemake", "benchmarks", "logs", "resources", "results"}
    assert not list(tmp_path.rglob("PWNED*"))
    (tokens,) = tmp_path.glob("results/tokens/*/tokens.json")
    assert json.loads(tokens.read_text())["chat_template"] == TEMPLATE
    (spec,) = tmp_path.glob("results/dataset/*/spec.yaml")
    assert yaml.safe_load(spec.read_text())["settings"]["source"]["path"] == file
    assert leaks(tmp_path) == []
