"""Checkpoints are complete or ignored, and never those of another stage."""

import json
import random
import shutil
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlhf.config.stages import TrainingExecution
from rlhf.errors import Interrupted, PeerFailed, UserError
from rlhf.runtime.interruption import Interruption
from rlhf.training import checkpoints as module
from rlhf.training.checkpoints import Checkpoints
from rlhf.training.random_state import RandomState
from tests.unit.ranks import Ranks


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
    "file nobody hashed": lambda folder: (folder / "number/other.txt").write_text("7"),
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


def test_another_format_is_set_aside_too(make, tmp_path, monkeypatch, caplog):
    run(make(), 2)
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    assert make().checkpoints.restore() is None
    assert "belongs to another version of this workflow" in caplog.text
    assert len(list(tmp_path.glob("checkpoints-of-another-version-of-this-workflow-*/*"))) >= 2


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


# Several ranks


class Files:
    """A part of which each rank writes two files."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def save(self, folder: Path) -> None:
        for name in self.names(self._ranks.rank()):
            (folder / name).write_text(name)

    def load(self, folder: Path) -> None:
        pass

    @staticmethod
    def names(rank: int) -> list[str]:
        return [f"{rank}-{letter}.txt" for letter in "ab"]


def shared(folder: Path, ranks: Ranks, number: int) -> SimpleNamespace:
    """Checkpoints of one rank among several, made in its thread."""
    identity = {"specification": "a", "topology": {"processes": number}}
    execution = TrainingExecution(checkpoint_steps=1)
    interruption, lease = Interruption(), SimpleNamespace(require=lambda: None)
    made = Checkpoints(folder / "checkpoints", identity, {"files": Files(ranks)}, execution, interruption, lease)
    return SimpleNamespace(checkpoints=made, interruption=interruption)


@pytest.mark.parametrize("lag", [0.0, 0.001, 0.003, 0.01])
def test_every_file_is_hashed_and_flushed_by_exactly_one_rank_whoever_is_first(tmp_path, group, monkeypatch, lag):
    """In each of fifteen checkpoints of eight ranks, whose hashing begins a little later on each."""
    number, steps, seen = 8, 15, {"fsync": Counter(), "sha256_file": Counter()}
    ranks = Ranks(monkeypatch, number, lag)
    for name, counter in seen.items():
        original = getattr(module, name)

        def counted(path, original=original, counter=counter):
            if path.is_file() and path.parent.name in ("files", "random"):
                counter["/".join(path.parts[-3:])] += 1
            return original(path)

        monkeypatch.setattr(module, name, counted)

    def train(rank: int) -> None:
        made = shared(tmp_path, ranks, number)
        for step in range(steps + 1):
            made.checkpoints.boundary({"step": step})
        made.checkpoints.finish()

    assert ranks.run(train) == [None] * number
    files = [f"files/{name}" for rank in range(number) for name in Files.names(rank)]
    files += [f"random/rank-{rank}.json" for rank in range(number)]
    once = dict.fromkeys((f"{step:06d}-step-{step:09d}/{file}" for step in range(1, steps + 1) for file in files), 1)
    assert seen == {"fsync": once, "sha256_file": once}
    restored = ranks.run(lambda rank: shared(tmp_path, ranks, number).checkpoints.restore())
    assert restored == [{"step": steps}] * number


def test_no_checkpoint_is_removed_while_a_slower_rank_hashes_the_newest(tmp_path, group, monkeypatch):
    ranks, last = Ranks(monkeypatch, 2), "000002-step-000000002"
    original = module.sha256_file

    def slowly(path):
        time.sleep(0.2 if ranks.rank() == 1 and last in path.parts else 0)
        return original(path)

    monkeypatch.setattr(module, "sha256_file", slowly)

    def train(rank: int) -> str:
        made = shared(tmp_path, ranks, 2)
        made.checkpoints.boundary({"step": 1})
        made.checkpoints.boundary({"step": 2})
        made.interruption.reason = "SIGTERM"
        with pytest.raises(Interrupted) as stopped:
            made.checkpoints.boundary({"step": 3})
        return str(stopped.value)

    told = "SIGTERM: stopped after step 3, saved step 3; the same command goes on from there"
    assert ranks.run(train) == [told, told]
    kept = folders(tmp_path)
    assert kept[-2:] == [last, "000003-step-000000003"]
    shutil.rmtree(tmp_path / "checkpoints" / kept[-1])
    assert ranks.run(lambda rank: shared(tmp_path, ranks, 2).checkpoints.restore()) == [{"step": 2}, {"step": 2}]


@pytest.mark.parametrize("broken", [0, 1])
def test_a_rank_that_cannot_hash_stops_all_with_its_message(tmp_path, group, monkeypatch, broken):
    ranks, original = Ranks(monkeypatch, 2), module.sha256_file

    def fail(path):
        if ranks.rank() == broken:
            raise OSError(28, "No space left on device")
        return original(path)

    monkeypatch.setattr(module, "sha256_file", fail)

    def train(rank: int) -> None:
        made = shared(tmp_path, ranks, 2)
        for step in (1, 2):
            made.checkpoints.boundary({"step": step})

    found = ranks.run(train)
    assert isinstance(found[broken], OSError)
    assert isinstance(found[1 - broken], PeerFailed)
    assert str(found[1 - broken]) == f"process {broken} has failed: OSError: [Errno 28] No space left on device"
