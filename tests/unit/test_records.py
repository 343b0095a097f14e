"""The files that stages leave: what comes back, what is refused, and that types and writers agree."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypedDict, get_type_hints

import pytest

from rlhf.errors import UserError
from rlhf.files import TAIL_BYTES, sha256_file
from rlhf.memory.measure import MemoryMonitor, PhasePeak, failure_report, memory_report
from rlhf.records.attempts import FailureRecord, Holder, MemorySteps, out_of_memory_failures, read_holder
from rlhf.records.benchmark import measured, read_benchmark
from rlhf.records.checks import ChecksReport, read_checks
from rlhf.records.evaluation import EVALUATION, read_evaluation, write_evaluation
from rlhf.records.experiment import ExperimentRun, read_provenance, read_runs, runs_text
from rlhf.records.manifest import MANIFEST, changes, is_whole, read_manifest, read_model_manifest
from rlhf.records.memory import MEMORY, MemoryReport, PhaseMemory, read_memory
from rlhf.records.metrics import MetricsLine, append_metrics, last_lines, read_metrics
from rlhf.records.plan import read_plan
from rlhf.records.progress import Progress, read_progress
from rlhf.records.samples import read_baseline_samples, read_sample_pairs
from rlhf.reporting.checks import Check, report
from rlhf.reporting.inequalities import INEQUALITIES
from rlhf.runtime.attempts import Attempt
from rlhf.runtime.lease import StateLease
from rlhf.runtime.progress import StageMetrics
from tests.records import problems

READERS: dict[str, Callable[[Path], Any]] = {
    "manifest.json": lambda file: read_manifest(file.parent),
    "model/manifest.json": read_model_manifest,
    "memory.json": lambda file: read_memory(file.parent),
    "memory_plan.json": read_plan,
    "evaluation.json": lambda file: read_evaluation(file.parent),
    "checks.json": read_checks,
    "stages.json": read_provenance,
}
LINES: dict[str, Callable[[Path], Any]] = {
    "metrics.jsonl": read_metrics,
    "baseline/samples.jsonl": read_baseline_samples,
    "samples.jsonl": read_sample_pairs,
    "benchmark.jsonl": read_benchmark,
}


def write(file: Path, content: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("content", ["", '{"a": ', "[]", "3"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    file = write(tmp_path / name, content)
    with pytest.raises(UserError, match=rf"{file.name}: not (valid JSON|a JSON object).*run snakemake again"):
        READERS[name](file)


@pytest.mark.parametrize("name", READERS)
def test_a_missing_file_is_named_with_what_makes_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"{name}: file not found; run the step that makes it"):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("name", LINES)
def test_a_damaged_line_is_named(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, '{"step": 1, "phase": "train", "time": 0.5}\n{"step": ')
    with pytest.raises(UserError, match=rf"{file.name}: line 2: not valid JSON"):
        LINES[name](file)


# Metrics


def test_metrics_come_back_as_they_were_measured(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = [MetricsLine(0, "eval", 0.25, {"loss": 3.5}), MetricsLine(1, "train", 1.5, {"loss": 3.0, "tokens": 640})]
    for line in lines:
        append_metrics(file, line)
    assert read_metrics(file) == lines
    assert json.loads(file.read_text().splitlines()[1]) == {
        "step": 1,
        "phase": "train",
        "time": 1.5,
        "loss": 3.0,
        "tokens": 640,
    }
    assert lines[1].numbers == {"step": 1, "time": 1.5, "loss": 3.0, "tokens": 640}


@pytest.mark.parametrize("missing", ["step", "phase", "time"])
def test_a_line_without_its_place_is_refused(tmp_path: Path, missing: str) -> None:
    row = {"step": 1, "phase": "train", "time": 0.5, "loss": 3.0}
    del row[missing]
    file = write(tmp_path / "metrics.jsonl", row)
    with pytest.raises(UserError, match=rf"metrics\.jsonl: a line has no '{missing}'"):
        read_metrics(file)


def test_the_last_lines_of_a_long_file_are_found_while_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert last_lines(file) == {}
    rows = [{"step": step, "phase": "train", "time": 1.0 * step, "note": step} for step in range(5000)]
    rows.insert(4000, {"step": 4000, "phase": "eval", "time": 1.0, "loss": 2.0})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    assert len(text) > TAIL_BYTES
    file.write_text(text + '{"step": 5000, "pha')
    last = last_lines(file)
    assert (last["train"].step, last["eval"].values) == (4999, {"loss": 2.0})


# Manifests


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    for name in ("model/weights", "metrics.jsonl"):
        write(tmp_path / name, name)
    outputs = {name: sha256_file(tmp_path / name) for name in ("model/weights", "metrics.jsonl")}
    write(tmp_path / MANIFEST, {"outputs": outputs})
    return tmp_path


def test_a_whole_stage_has_no_changes(stage: Path) -> None:
    write(stage / "spec.yaml", "not listed")
    assert changes(stage) == ((), ())
    assert is_whole(stage)


def test_changed_and_missing_files_are_told_apart(stage: Path) -> None:
    write(stage / "metrics.jsonl", "edited")
    (stage / "model/weights").unlink()
    assert changes(stage) == (("model/weights",), ("metrics.jsonl",))
    assert not is_whole(stage)


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"outputs": []}'])
def test_a_stage_with_a_damaged_manifest_is_not_whole(stage: Path, manifest: str) -> None:
    write(stage / MANIFEST, manifest)
    with pytest.raises(UserError, match=MANIFEST):
        changes(stage)
    assert not is_whole(stage)


# What a state folder tells


def test_failures_by_device_memory_are_counted(tmp_path: Path) -> None:
    assert out_of_memory_failures(tmp_path) == 0
    write(tmp_path / "failures/rank-1.json", {"cause": "user_error"})
    assert out_of_memory_failures(tmp_path) == 0
    write(tmp_path / "failures/rank-0.json", {"cause": "out_of_device_memory"})
    assert out_of_memory_failures(tmp_path) == 1  # two ranks are one attempt
    write(tmp_path / "memory_steps.json", {"failures": 2})
    assert out_of_memory_failures(tmp_path) == 3


def test_a_damaged_count_is_named(tmp_path: Path) -> None:
    write(tmp_path / "memory_steps.json", '{"failures"')
    with pytest.raises(UserError, match=r"memory_steps\.json: not valid JSON"):
        out_of_memory_failures(tmp_path)


def test_what_is_being_written_counts_as_not_known(tmp_path: Path) -> None:
    assert read_progress(tmp_path) is None
    assert read_holder(tmp_path) == {}
    write(tmp_path / "progress.json", '{"step"')
    write(tmp_path / "holder.json", '{"host"')
    assert read_progress(tmp_path) == {}
    assert read_holder(tmp_path) == {}


# Other files


def test_what_was_not_measured_is_left_out_of_an_evaluation(tmp_path: Path) -> None:
    write_evaluation(tmp_path, {"stage": "evaluate_ppo", "win_rate": 0.0, "win_rate_se": None})
    assert json.loads((tmp_path / EVALUATION).read_text()) == {"stage": "evaluate_ppo", "win_rate": 0.0}


def test_the_last_attempt_is_benchmarked(tmp_path: Path) -> None:
    assert read_benchmark(tmp_path / "none.jsonl") is None
    found = read_benchmark(write(tmp_path / "rows.jsonl", '{"s": 1.0}\n{"s": 2.0, "max_rss": "NA"}\n'))
    assert found == {"s": 2.0, "max_rss": "NA"}
    assert (measured(found["s"]), measured(found["max_rss"]), measured(found.get("cpu_time"))) == (2.0, None, None)


def test_runs_come_back(tmp_path: Path) -> None:
    runs = [ExperimentRun({"ppo.kl_coefficient": 0.1}, seed, {"sft": f"a-{seed}", "policy": "m-1"}) for seed in (1, 2)]
    assert read_runs(write(tmp_path / "runs.json", runs_text(runs))) == runs
    assert runs[0].stage("policy") == ("model", "m-1")


# Types and writers


def test_a_measured_phase_is_written_with_all_that_its_type_knows() -> None:
    fields = {field.name for field in dataclasses.fields(PhasePeak)}
    assert fields == get_type_hints(PhaseMemory).keys()


def test_what_is_measured_is_of_its_type(tmp_path: Path) -> None:
    monitor = MemoryMonitor()
    with monitor.phase("load"):
        pass
    process = monitor.stop()
    assert problems(memory_report([process], "cpu"), MemoryReport) == []
    message = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 39.38 GiB"
    failed = failure_report(process, "cuda", "out_of_device_memory", None, message)
    assert problems(failed, MemoryReport) == []
    assert problems(read_memory(write(tmp_path / MEMORY, failed).parent), MemoryReport) == []


def test_what_a_running_stage_says_is_of_its_type(tmp_path: Path) -> None:
    with StageMetrics(tmp_path, "sft", "tiny-12345678", 4) as metrics:
        assert problems(read_progress(tmp_path), Progress) == []
        metrics.record(1, "train", loss=3.5, tokens_per_second=10.0)
    found = read_progress(tmp_path)
    assert found is not None and found["status"] == "done"
    assert problems(found, Progress) == []
    assert found.keys() == get_type_hints(Progress).keys()


def test_why_an_attempt_failed_is_of_its_type(tmp_path: Path) -> None:
    with pytest.raises(ValueError), Attempt(tmp_path):
        raise ValueError("x")
    assert problems(json.loads((tmp_path / "failures/rank-0.json").read_text()), FailureRecord) == []
    assert problems(json.loads((tmp_path / "memory_steps.json").read_text()), MemorySteps) == []


def test_who_holds_a_lease_is_of_its_type(tmp_path: Path) -> None:
    lease = StateLease(tmp_path)
    lease.acquire()
    lease.release()
    assert problems(read_holder(tmp_path), Holder) == []
    assert read_holder(tmp_path).keys() == get_type_hints(Holder).keys()


def test_what_is_checked_is_of_its_type() -> None:
    checks = [Check(line, 1.0, value, False) for line in INEQUALITIES for value in (None, 2.0)]
    assert problems(report(checks, "tiny-12345678"), ChecksReport) == []


class Example(TypedDict, total=False):
    number: float
    words: list[str]
    choice: Literal["a", "b"] | None


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"number": 1, "words": ["a"], "choice": None}, []),
        ({"numbr": 1}, [": 'numbr' is not known"]),
        ({"number": "1"}, ["['number']: '1' is no <class 'float'>"]),
        ({"number": True}, ["['number']: True is no <class 'float'>"]),
        ({"words": ["a", 2]}, ["['words'][1]: 2 is no <class 'str'>"]),
        ({"choice": "c"}, ["['choice']: 'c' is none of ('a', 'b')"]),
        ([], [": [] is no object"]),
    ],
)
def test_a_value_of_another_type_is_found(value: Any, found: list[str]) -> None:
    assert problems(value, Example) == found
