"""Checkpoints are complete or ignored, and never those of another stage."""

import json
import random
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlhf.config.stages import TrainingExecution
from rlhf.errors import Interrupted, UserError
from rlhf.runtime.interruption import Interruption
from rlhf.training import checkpoints as module
from rlhf.training.checkpoints import Checkpoints
from rlhf.training.random_state import RandomState


class Number:
    """A part whose state is one number."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def save(self, folder: Path) -> None:
        (folder / "number.txt").write_text(str(self.value))

    def load(self, folder: Path) -> None:
        self.value = int((folder / "number.txt").read_text())


@pytest.fixture
def make(tmp_path, group):
    """Checkpoints around a number, as a new process would make them."""

    def build(every=1, minutes=None, specification="a", zero_stage=0, processes=1):
        number, interruption = Number(), Interruption()
        lease = SimpleNamespace(require=lambda: None)
        identity = {
            "specification": specification,
            "topology": {"processes": processes, "zero_stage": zero_stage},
        }
        execution = TrainingExecution(checkpoint_steps=every, checkpoint_minutes=minutes)
        made = Checkpoints(tmp_path / "checkpoints", identity, {"number": number}, execution, interruption, lease)
        return SimpleNamespace(checkpoints=made, number=number, interruption=interruption)

    return build


def run(made, steps, first=0):
    """Boundaries of a loop whose number is ten times its step."""
    for step in range(first, steps + 1):
        made.number.value = 10 * step
        made.checkpoints.boundary({"step": step})
    made.checkpoints.finish()


def folders(tmp_path):
    return sorted(path.name for path in (tmp_path / "checkpoints").iterdir())


def test_the_last_two_are_kept_and_the_newest_is_loaded(make, tmp_path):
    run(make(), 5)
    assert folders(tmp_path)[-2:] == ["000004-step-000000004", "000005-step-000000005"]
    assert len(folders(tmp_path)) <= 3  # the third goes when the next one is written
    again = make()
    assert again.checkpoints.restore() == {"step": 5}
    assert again.number.value == 50
    assert again.checkpoints.restored_step == 5


def test_nothing_is_restored_where_nothing_was_saved(make):
    assert make().checkpoints.restore() is None


def truncate(folder: Path) -> None:
    (folder / "number/number.txt").write_text("")


def flip(folder: Path) -> None:
    file = folder / "random/rank-0.json"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def alter_state(folder: Path) -> None:
    record = folder / "rank-0.json"
    record.write_text(record.read_text().replace('"step": 3', '"step": 2'))


DAMAGES = {
    "truncated": truncate,
    "flipped": flip,
    "missing file": lambda folder: (folder / "number/number.txt").unlink(),
    "missing rank": lambda folder: (folder / "rank-0.json").unlink(),
    "broken record": lambda folder: (folder / "rank-0.json").write_text("{"),
    "altered state": alter_state,
    "foreign record": lambda folder: (folder / "rank-0.json").write_text('{"files": {}}'),
    "more ranks than files": lambda folder: shutil.copy(folder / "rank-0.json", folder / "rank-1.json"),
}


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_a_broken_checkpoint_falls_back_to_the_one_before_with_a_warning(make, tmp_path, caplog, damage):
    run(make(), 3)
    DAMAGES[damage](tmp_path / "checkpoints" / folders(tmp_path)[-1])
    again = make()
    assert again.checkpoints.restore() == {"step": 2}
    assert again.number.value == 20
    assert "incomplete or damaged" in caplog.text


def test_all_broken_means_starting_anew(make, tmp_path):
    run(make(), 3)
    for name in folders(tmp_path):
        truncate(tmp_path / "checkpoints" / name)
    assert make().checkpoints.restore() is None


def test_the_state_of_another_specification_is_set_aside(make, tmp_path, caplog):
    run(make(), 2)
    assert make(specification="b").checkpoints.restore() is None
    assert "another specification" in caplog.text
    assert len(list(tmp_path.glob("checkpoints-of-another-specification-*/*"))) >= 2
    assert not (tmp_path / "checkpoints").exists()


def test_another_format_is_set_aside_too(make, monkeypatch):
    run(make(), 2)
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    assert make().checkpoints.restore() is None


def test_another_zero_stage_is_refused_and_loses_nothing(make, tmp_path):
    run(make(), 2)
    before = folders(tmp_path)
    with pytest.raises(UserError, match=r"processes 1, zero stage 0.*zero stage 3.*run the stage as before"):
        make(zero_stage=3).checkpoints.restore()
    assert folders(tmp_path) == before


def test_by_time(make, tmp_path, monkeypatch):
    made = make(every=None, minutes=1.0)
    run(made, 2)
    assert not (tmp_path / "checkpoints").exists()
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 61)
    run(made, 3, first=3)
    assert folders(tmp_path) == ["000001-step-000000003"]


def test_a_stop_saves_what_is_not_saved_yet(make, tmp_path):
    made = make(every=None)
    made.number.value = 70
    made.interruption.reason = "SIGTERM"
    with pytest.raises(Interrupted, match=r"SIGTERM: stopped after step 7, saved step 7"):
        made.checkpoints.boundary({"step": 7})
    again = make()
    assert again.checkpoints.restore() == {"step": 7}
    again.interruption.reason = "SIGTERM"
    with pytest.raises(Interrupted):
        again.checkpoints.boundary({"step": 7})
    assert folders(tmp_path) == ["000001-step-000000007"]  # nothing new, nothing written


def test_a_stop_before_the_first_step_has_nothing_to_save(make, tmp_path):
    made = make()
    made.interruption.reason = "SIGINT"
    with pytest.raises(Interrupted):
        made.checkpoints.boundary({"step": 0})
    assert not (tmp_path / "checkpoints").exists()


def test_an_abandoned_step_leaves_the_state_of_its_beginning(make):
    made = make(every=None)
    run(made, 4)
    torch.manual_seed(1)
    made.checkpoints.boundary({"step": 4})
    expected = torch.get_rng_state()
    torch.rand(10)  # the step draws
    made.checkpoints.interrupt_point()
    made.interruption.reason = "SIGTERM"
    with pytest.raises(Interrupted):
        made.checkpoints.interrupt_point()
    assert make().checkpoints.restore() == {"step": 4}
    assert torch.equal(torch.get_rng_state(), expected)


def test_a_full_disk_costs_the_checkpoint_not_the_stage(make, tmp_path, monkeypatch, caplog):
    made = make()
    run(made, 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    run(made, 4, first=3)
    assert made.checkpoints.cost.skipped == 2
    assert "no checkpoint" in caplog.text
    assert folders(tmp_path)[-1] == "000002-step-000000002"
    monkeypatch.undo()
    assert make().checkpoints.restore() == {"step": 2}


def test_an_error_beside_the_training_is_not_lost(make, monkeypatch):
    made = make()

    def fail(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "sha256_file", fail)
    with pytest.raises(OSError, match="No space left"):
        run(made, 1)


def test_the_time_limit_stops_a_stage_before_it_is_reached(make):
    made = make(every=None)
    made.checkpoints._interruption = Interruption(limit_seconds=30.0)
    made.checkpoints._step_seconds = 25.0
    with pytest.raises(Interrupted, match="time limit"):
        made.checkpoints.boundary({"step": 3})


def test_all_generators_are_restored(tmp_path, group):
    states = RandomState()
    random.seed(3)
    random.gauss(0, 1)
    np.random.seed(4)
    np.random.standard_normal()
    torch.manual_seed(5)
    states.capture()
    expected = [random.random(), random.gauss(0, 1), *np.random.standard_normal(3), *torch.randn(3).tolist()]
    states.save(tmp_path)
    assert json.loads((tmp_path / "rank-0.json").read_text())["torch"]
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    RandomState().load(tmp_path)
    assert [random.random(), random.gauss(0, 1), *np.random.standard_normal(3), *torch.randn(3).tolist()] == expected
