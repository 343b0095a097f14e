"""Results that are whole lose Snakemake's mark; others keep it."""

import json
from pathlib import Path

import pytest
from snakemake.persistence.file import FilePersistence

from rlhf.config.finished import MARKS, accept_finished
from rlhf.files import sha256_file

FILES = ("model/model.safetensors", "metrics.jsonl", "manifest.json")


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def mark_of(output: str) -> Path:
    """Where Snakemake itself marks an output."""
    MARKS.mkdir(parents=True, exist_ok=True)
    store = FilePersistence.__new__(FilePersistence)
    store._max_len = None
    return Path(store._record_path(str(MARKS), output))


def make(folder: str) -> list[Path]:
    """A finished stage whose outputs are marked; returns the marks."""
    place = Path(folder)
    (place / "model").mkdir(parents=True)
    for name in FILES[:2]:
        (place / name).write_text(name)
    outputs = {name: sha256_file(place / name) for name in FILES[:2]}
    (place / "manifest.json").write_text(json.dumps({"outputs": outputs}))
    marks = [mark_of(f"{folder}/{name}") for name in ("model", *FILES[1:])]
    for mark in marks:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text("{}")
    return marks


@pytest.mark.parametrize("id", ["a-12345678", "a" * 200 + "-12345678"])  # the second is cut into folders
def test_a_whole_result_is_accepted(id):
    marks = make(f"results/ppo/{id}")
    assert accept_finished() == [f"results/ppo/{id}"]
    assert not any(mark.exists() for mark in marks)
    assert accept_finished() == []


DAMAGES = {
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "half a manifest": lambda folder: (folder / "manifest.json").write_text('{"outp'),
    "no outputs named": lambda folder: (folder / "manifest.json").write_text("{}"),
    "changed": lambda folder: (folder / "model/model.safetensors").write_text("x"),
    "missing": lambda folder: (folder / "metrics.jsonl").unlink(),
}


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_a_damaged_one_is_not(damage):
    marks = make("results/sft/a-12345678")
    DAMAGES[damage](Path("results/sft/a-12345678"))
    assert accept_finished() == []
    assert all(mark.exists() for mark in marks)


@pytest.mark.parametrize("folder", ["results/tokens/a-12345678", "results/evaluate_ppo/a-12345678", "elsewhere/sft/a"])
def test_other_rules_are_left_alone(folder):
    marks = make(folder)
    assert accept_finished() == []
    assert all(mark.exists() for mark in marks)


def test_without_marks_there_is_nothing_to_do():
    assert accept_finished() == []
