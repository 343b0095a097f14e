"""What every stage runs in: seeds, live metrics, exit codes and the manifest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import math
import os
import random
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.files import read_json, read_jsonl, sha256_tree
from rlhf.runtime.manifest import code_hash, seal, utc_now
from rlhf.runtime.progress import StageMetrics, format_seconds
from rlhf.runtime.seeds import derive_seed, seed_everything
from tests.specifications import specification

# Seeds


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [  # `printf '1234\000shuffle\000%d' 0 | sha256sum`: half of the first 16 hex digits
        ((1234,), 132350005829300398),
        ((1234, "shuffle", 0), 3696241711929891856),
        ((1234, "shuffle", 1), 3059281674043949720),
        ((0, "policy"), 1897729529794451103),
    ],
)
def test_a_seed_is_the_same_on_every_machine_and_in_every_version(arguments: Any, expected: int) -> None:
    assert derive_seed(*arguments) == expected


def test_other_seeds_and_names_give_other_seeds() -> None:
    arguments = [(seed, name, index) for seed in range(20) for name in ("shuffle", "head") for index in range(50)]
    arguments += [(0,), (0, "shuffle"), (0, "shuf", "fle"), (0, "head", 0, 0), (1, "0", "head")]
    derived = {derive_seed(*each) for each in arguments}
    assert len(derived) == len(arguments)


def test_seeds_fill_the_range_that_generators_accept() -> None:
    derived = np.array([derive_seed(1234, "noise", index) for index in range(2000)])
    assert derived.min() >= 0
    assert derived.max() < 2**63
    share = derived / 2**63
    assert abs(share.mean() - 0.5) < 0.03  # standard error 0.0065
    assert abs(np.corrcoef(share[:-1], share[1:])[0, 1]) < 0.1
    torch.Generator().manual_seed(int(derived.max()))
    np.random.default_rng(int(derived.max()))


def test_seeding_reaches_python_numpy_and_torch() -> None:
    def draws(seed: int) -> tuple[float, float, float]:
        seed_everything(seed)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    first, again, other = draws(2**40 + 1), draws(2**40 + 1), draws(2**40 + 2)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


# Metrics and progress


class Clock:
    """A clock that stands still until it is told the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        fake = SimpleNamespace(monotonic=lambda: self.now, time=lambda: 1e9 + self.now)
        monkeypatch.setattr("rlhf.runtime.progress.time", fake)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def progress(folder: Path) -> dict[str, Any]:
    return read_json(folder / "progress.json")


def test_a_stage_that_has_started_says_so(tmp_path: Path, clock: Clock) -> None:
    StageMetrics(tmp_path / "state", "sft", "tiny-12345678", 8)
    shown = progress(tmp_path / "state")
    assert (shown["stage"], shown["id"], shown["status"]) == ("sft", "tiny-12345678", "running")
    assert (shown["step"], shown["total_steps"], shown["eta_seconds"]) == (0, 8, None)
    assert (shown["pid"], shown["updated"]) == (os.getpid(), 1e9 + 1000)
    assert (tmp_path / "state/metrics.jsonl").read_text() == ""


def test_each_record_is_a_line_and_the_end_is_done(tmp_path: Path, clock: Clock) -> None:
    with StageMetrics(tmp_path, "sft", "tiny", 2) as metrics:
        metrics.record(0, "eval", loss=3.0)
        assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 1  # readers follow it while it grows
        clock.now += 4.5
        metrics.record(1, "train", loss=2.0, tokens_per_second=70.0)
    assert read_jsonl(tmp_path / "metrics.jsonl") == [
        {"step": 0, "phase": "eval", "time": 0.0, "loss": 3.0},
        {"step": 1, "phase": "train", "time": 4.5, "loss": 2.0, "tokens_per_second": 70.0},
    ]
    shown = progress(tmp_path)
    assert (shown["status"], shown["step"], shown["phase"], shown["speed"]) == ("done", 1, "train", 70.0)
    assert shown["metrics"]["loss"] == 2.0


def test_an_exception_ends_as_failed_and_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no memory"), StageMetrics(tmp_path, "sft", "tiny", 2) as metrics:
        metrics.record(1, "train", loss=1.0)
        raise RuntimeError("no memory")
    assert progress(tmp_path)["status"] == "failed"
    assert progress(tmp_path)["step"] == 1


def test_a_new_attempt_starts_with_empty_metrics(tmp_path: Path) -> None:
    for _ in range(2):
        with StageMetrics(tmp_path, "sft", "tiny", 1) as metrics:
            metrics.record(1, "train", loss=1.0)
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("enabled", [True, False])
def test_a_metric_that_is_not_finite_stops_every_process(tmp_path: Path, value: float, enabled: bool) -> None:
    metrics = StageMetrics(tmp_path, "reward", "tiny-12345678", 9, enabled=enabled)
    with pytest.raises(FloatingPointError, match="reward tiny-12345678: loss is not finite at step 3") as error:
        metrics.record(3, "train", accuracy=0.5, loss=value)
    assert "accuracy" not in str(error.value)
    assert "smaller learning rate" in str(error.value)


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    with StageMetrics(tmp_path / "state", "sft", "tiny", 2, enabled=False) as metrics:
        metrics.record(1, "train", loss=1.0)
    with pytest.raises(RuntimeError), StageMetrics(tmp_path / "state", "sft", "tiny", 2, enabled=False):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("step", "seconds", "eta"),
    [(1, 30.0, 270.0), (4, 30.0, 45.0), (5, 2.5, 2.5), (10, 100.0, 0.0), (12, 120.0, 0.0), (0, 30.0, None)],
)
def test_the_eta_is_the_time_per_step_times_the_steps_left(
    tmp_path: Path, clock: Clock, step: int, seconds: float, eta: float | None
) -> None:
    metrics = StageMetrics(tmp_path, "sft", "tiny", 10)
    clock.now += seconds
    metrics.record(step, "train", loss=1.0)
    assert progress(tmp_path)["eta_seconds"] == (None if eta is None else pytest.approx(eta))


def test_progress_is_written_once_a_second_and_the_log_every_ten(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rlhf")
    metrics = StageMetrics(tmp_path, "sft", "tiny", 1000)
    steps = set()
    for step in range(1, 121):  # four records a second for half a minute
        metrics.record(step, "train", loss=1.0)
        steps.add(progress(tmp_path)["step"])
        clock.now += 0.25
    assert steps == set(range(1, 121, 4))
    assert [line.split()[2] for line in caplog.messages] == ["1/1000", "41/1000", "81/1000"]


def test_the_log_shows_step_share_time_left_and_numbers(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rlhf")
    metrics = StageMetrics(tmp_path, "sft", "tiny", 200)
    clock.now += 60
    metrics.record(50, "train", loss=1.23456)
    metrics.record(50, "eval", loss=2.0)
    assert caplog.messages == ["train step 50/200 (25%)  ETA 3:00  loss 1.235", "eval  step 50/200 (25%)  loss 2"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (123, "2:03"), (3599.6, "1:00:00"), (93784, "26:03:04")]
)
def test_seconds_are_shown_as_a_clock_does(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


# Scripts


def run(body: str, rank: int = 0) -> subprocess.CompletedProcess[str]:
    program = f"""
from rlhf.errors import UserError
from rlhf.runtime.logging import get_logger, run_script

def main():
    {body}

run_script(main)
print("run_script came back")
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "workflow"), "RANK": str(rank)}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)


def test_a_script_that_ends_well_exits_with_0() -> None:
    done = run("print('result')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "result\n", "")


def test_a_users_mistake_is_one_line_and_exit_code_2() -> None:
    done = run("raise UserError('sft.learning_rate: -1 is not positive')")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: sft.learning_rate: -1 is not positive\n"


def test_any_other_error_keeps_its_traceback_and_exit_code_1() -> None:
    done = run("raise RuntimeError('a fault')")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback (most recent call last)" in done.stderr
    assert "RuntimeError: a fault" in done.stderr


def test_rank_0_logs_and_other_ranks_warn_only() -> None:
    body = "log = get_logger('rlhf.x'); log.info('fine'); log.warning('odd'); get_logger('noisy').info('chat')"
    first, other = run(body).stderr.splitlines(), run(body, rank=3).stderr.splitlines()
    assert [line.split(maxsplit=2)[2] for line in first] == ["INFO fine", "WARNING odd"]
    assert [line.split(maxsplit=2)[2] for line in other] == ["WARNING [rank 3] odd"]


# Manifest


def make_workflow(folder: Path) -> Path:
    for name, text in {"rlhf/a.py": "A = 1\n", "rlhf/sub/b.py": "B = 1\n", "scripts/train.py": "import rlhf\n"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("file", ["rlhf/a.py", "rlhf/sub/b.py", "scripts/train.py", "rlhf/sub/new.py"])
def test_the_code_hash_changes_with_every_source_file(tmp_path: Path, file: str) -> None:
    workflow = make_workflow(tmp_path)
    before = code_hash(workflow)
    (workflow / file).write_text("C = 2\n")
    assert code_hash(workflow) != before


def test_the_code_hash_changes_with_a_name(tmp_path: Path) -> None:
    workflow = make_workflow(tmp_path)
    before = code_hash(workflow)
    (workflow / "rlhf/a.py").rename(workflow / "rlhf/c.py")
    assert code_hash(workflow) != before


@pytest.mark.parametrize("file", ["rlhf/__pycache__/a.cpython-312.pyc", "rlhf/note.txt", "rules/sft.smk", "log.py"])
def test_the_code_hash_covers_nothing_else(tmp_path: Path, file: str) -> None:
    workflow = make_workflow(tmp_path / "one")
    before = code_hash(workflow)
    (workflow / file).parent.mkdir(exist_ok=True)
    (workflow / file).write_bytes(b"\x00")
    assert code_hash(workflow) == before
    assert code_hash(make_workflow(tmp_path / "two")) == before


SPEC = specification("sft", {"learning_rate": 0.1}, id="tiny-12345678", seed=7)


def test_a_manifest_lists_the_outputs_with_their_hashes_and_not_itself(tmp_path: Path) -> None:
    files = {"model/model.safetensors": b"\x00\x01", "metrics.jsonl": b"{}\n", "model/manifest.json": b"{}"}
    for name, content in {**files, "spec.yaml": b"seed: 7\n"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    expected = {name: "sha256:" + hashlib.sha256(content).hexdigest() for name, content in files.items()}
    for _ in range(2):  # the second time its own predecessor is there
        seal(tmp_path, utc_now(), SPEC, {})
        assert read_json(tmp_path / "manifest.json")["outputs"] == expected
    assert sha256_tree(tmp_path).keys() == {*files, "manifest.json", "spec.yaml"}


def test_a_manifest_says_what_was_made_from_what_by_which_code(tmp_path: Path) -> None:
    started = utc_now() - timedelta(seconds=90)
    seal(tmp_path, started, SPEC, {"tokens": "sha256:1"}, device="cpu", world_size=2)
    manifest = read_json(tmp_path / "manifest.json")
    assert (manifest["stage"], manifest["id"], manifest["seed"]) == ("sft", "tiny-12345678", 7)
    assert manifest["spec"] == SPEC.model_dump(mode="json")
    assert manifest["spec"]["settings"]["learning_rate"] == 0.1
    assert manifest["inputs"] == {"tokens": "sha256:1"}
    assert (manifest["device"], manifest["world_size"]) == ("cpu", 2)
    assert 90 <= manifest["wall_seconds"] < 150
    assert manifest["started"] == started.isoformat()
    assert manifest["started"].endswith("+00:00")
    assert manifest["code"]["hash"] == code_hash()
    assert manifest["packages"]["torch"] == torch.__version__
    assert manifest["command"] == sys.argv


def test_records_say_on_which_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given, gpus in (("", None), ("2,3", "2,3")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        seal(tmp_path, utc_now(), SPEC, {})
        assert read_json(tmp_path / "manifest.json").get("gpus") == gpus
        StageMetrics(tmp_path / "state", "sft", "tiny-12345678", 8)
        assert progress(tmp_path / "state")["gpus"] == given


def test_a_stage_run_by_hand_needs_no_snakemake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.metadata.version

    def version(name: str) -> str:
        if name == "snakemake":
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    seal(tmp_path, utc_now(), SPEC, {})
    packages = read_json(tmp_path / "manifest.json")["packages"]
    assert "snakemake" not in packages
    assert packages["torch"] == torch.__version__
