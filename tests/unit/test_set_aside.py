"""Results that were set aside come back whole, or not at all."""

import shutil
from pathlib import Path

import pytest

from rlhf.config.finished import remove_recorded_states
from rlhf.files import sha256_tree, write_json
from rlhf.runtime import finished
from rlhf.runtime.finished import bring_back, set_aside
from tests.specifications import specification

SPEC = specification("sft", {"learning_rate": 1.5}, {"threads": 2}, id="a-12345678")


@pytest.fixture
def places(tmp_path) -> tuple[Path, Path]:
    """Results and state of a stage that has just been finished."""
    output, state = tmp_path / "results/sft/a-12345678", tmp_path / "state/sft/a-12345678"
    (output / "model").mkdir(parents=True)
    (state / "checkpoints/000001-step-000000001").mkdir(parents=True)
    (state / "progress.json").write_text("{}")
    (state / "lease").write_text("held")
    (output / "model/model.safetensors").write_text("weights")
    (output / "metrics.jsonl").write_text("metrics")
    write_json(output / "manifest.json", {"spec": SPEC.model_dump(mode="json"), "outputs": sha256_tree(output)})
    (output / "spec.yaml").write_text("of Snakemake")
    return output, state


def lose(output: Path) -> None:
    """What Snakemake does to the outputs of a failed job."""
    shutil.rmtree(output / "model")
    (output / "metrics.jsonl").unlink()
    (output / "manifest.json").unlink()


def test_lost_results_come_back(places):
    output, state = places
    before = sha256_tree(output)
    set_aside(output, state)
    assert sorted(path.name for path in state.iterdir()) == ["finished", "lease"]
    assert (state / "finished/metrics.jsonl").stat().st_ino == (output / "metrics.jsonl").stat().st_ino
    lose(output)
    (output / "model").mkdir()
    (output / "model/stale.safetensors").write_text("of another attempt")
    assert bring_back(output, state, specification("sft", {"learning_rate": 1.5}, {"threads": 4}, id="a-12345678"))
    assert sha256_tree(output) == before


def damage(state: Path) -> None:
    (state / "finished/model/model.safetensors").write_text("other")


LOSSES = {
    "damaged": damage,
    "incomplete": lambda state: (state / "finished/metrics.jsonl").unlink(),
    "without manifest": lambda state: (state / "finished/manifest.json").unlink(),
    "none": lambda state: shutil.rmtree(state / "finished"),
}


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_what_is_not_whole_does_not_come_back(places, loss):
    output, state = places
    set_aside(output, state)
    lose(output)
    LOSSES[loss](state)
    assert not bring_back(output, state, SPEC)
    assert not (output / "manifest.json").exists()


def test_nor_does_what_belongs_to_another_specification(places):
    output, state = places
    set_aside(output, state)
    lose(output)
    assert not bring_back(output, state, specification("sft", {"learning_rate": 2.5}, {"threads": 2}, id="a-12345678"))


def test_without_hard_links_nothing_is_set_aside(places, monkeypatch):
    def refuse(*arguments):
        raise OSError("not supported")

    output, state = places
    monkeypatch.setattr(finished.os, "link", refuse)
    set_aside(output, state)
    assert [path.name for path in state.iterdir()] == ["lease"]
    assert (output / "manifest.json").exists()


def test_what_is_recorded_need_not_be_set_aside(places, tmp_path):
    output, state = places
    set_aside(output, state)
    running = tmp_path / "state/ppo/b-12345678/checkpoints"
    running.mkdir(parents=True)
    manifest = (output / "manifest.json").rename(tmp_path / "manifest.json")
    remove_recorded_states(tmp_path)
    assert state.exists()
    manifest.rename(output / "manifest.json")
    remove_recorded_states(tmp_path)
    assert not state.exists()
    assert running.exists()
    assert (output / "model/model.safetensors").read_text() == "weights"
