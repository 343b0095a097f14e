"""Predicted against measured memory: which numbers meet, and what is remarked."""

from __future__ import annotations

import copy
import csv
import io
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from rlhf.memory.parts import ALL_KINDS
from rlhf.records.experiment import ExperimentRun
from rlhf.reporting.collect import Experiment, StageFiles
from rlhf.reporting.memory import (
    COLOURS,
    COMPARISON_COLUMNS,
    COMPARISON_CSV,
    KINDS,
    comparison_rows,
    largest_rows,
    memory,
    memory_text,
    size,
)
from rlhf.reporting.tables import to_csv, to_markdown

GIB, MIB = 2**30, 2**20
Row = dict[str, Any]


def part(phase: str, name: str, libraries: int | None = None, **kinds: int) -> Row:
    rows = [{"model": "policy", "kind": kind, "bytes": amount} for kind, amount in kinds.items()]
    total = sum(kinds.values())
    peak = None if libraries is None else libraries + total
    return {"phase": phase, "part": name, "allocated": total, "peak_rss": peak, "rows": rows}


def gpu_plan() -> Row:
    return {
        "expected_allocated": 10 * GIB,
        "expected_device": 12 * GIB,
        "upper_device": 13 * GIB,
        "peak": {"phase": "train", "part": "backward"},
        "device": {"name": "l4", "capacity": 22 * GIB},
        "verdict": "fits",
        "decision": "accept",
        "execution": {"zero_stage": 2, "per_device_train_batch_size": 8, "mem_mb": 1},
        "adaptations": [],
        "advice": [],
        "remedy": None,
        "host": {"node": 10 * GIB},
        "resources": {"mem_mb": 12_000},
        "phases": [
            part("load", "load", weights=3 * GIB),
            part("train", "backward", weights=3 * GIB, activations=7 * GIB),
            part("train", "step", weights=3 * GIB, optimizer=6 * GIB),
        ],
    }


def cpu_plan() -> Row:
    libraries = 512 * MIB
    phases = [part("load", "load", libraries, weights=88 * MIB), part("train", "step", libraries, optimizer=188 * MIB)]
    numbers = {"expected_device": None, "upper_device": None, "device": None, "verdict": "not judged"}
    return {**gpu_plan(), **numbers, "phases": phases, "host": {"node": 700 * MIB}, "resources": {"mem_mb": 800}}


def process(host: str = "a", **phases: Row) -> Row:
    entries = [{"name": name, "peak_rss": 5 * GIB, **figures} for name, figures in phases.items()]
    return {"rank": 0, "host": host, "phases": entries, "peak_rss": max(entry["peak_rss"] for entry in entries)}


def gpu_process(host: str = "a", **train: int) -> Row:
    load = {"peak_allocated": 3 * GIB, "peak_device": 4 * GIB, "alloc_retries": 0}
    return process(
        host, load=load, train={"peak_allocated": 10 * GIB, "peak_device": 12 * GIB, "alloc_retries": 0} | train
    )


def experiment(plan: Row | None, *processes: Row, device: str = "cuda", manifest: Row | None = None) -> Experiment:
    files = StageFiles(
        "sft",
        "a-1",
        Path("results/sft/a-1"),
        manifest=manifest,
        plan=plan,
        memory={"device": device, "processes": list(processes)},
    )
    return Experiment("x", [ExperimentRun({}, 1, {"sft": "a-1"})], {("sft", "a-1"): files}, Path())


def rows_of(*arguments: Any, **options: Any) -> dict[tuple[str, str], Row]:
    return {(row["phase"], row["measure"]): row for row in comparison_rows(experiment(*arguments, **options))}


def test_kinds_are_those_of_the_plan() -> None:
    assert (*ALL_KINDS, "libraries") == KINDS
    assert tuple(COLOURS) == KINDS
    assert len(set(COLOURS.values())) == len(KINDS)


def test_the_largest_part_of_a_phase_meets_the_largest_process() -> None:
    rows = rows_of(gpu_plan(), gpu_process(), gpu_process(peak_allocated=8 * GIB))
    train = rows["train", "tensors"]
    assert (train["part"], train["predicted"], train["measured"]) == ("backward", 10 * GIB, 10 * GIB)
    assert (train["predicted_weights"], train["predicted_activations"]) == (3 * GIB, 7 * GIB)
    assert sum(value for key, value in train.items() if key.startswith("predicted_")) == train["predicted"]
    assert train["error"] == 0 and "remarks" not in train
    device = rows["all", "device"]
    assert (device["predicted"], device["measured"], device["upper"], device["covered"]) == (
        12 * GIB,
        12 * GIB,
        13 * GIB,
        True,
    )
    assert "predicted" not in rows["train", "resident set"]


def test_on_the_cpu_resident_memory_is_compared_libraries_included() -> None:
    measured = process(load={"peak_rss": 600 * MIB}, train={"peak_rss": 1000 * MIB})
    rows = rows_of(cpu_plan(), measured, device="cpu")
    assert rows.keys() == {("load", "resident set"), ("train", "resident set"), ("all", "host")}
    assert rows["load", "resident set"]["error"] == 0
    train = rows["train", "resident set"]
    assert (train["predicted_libraries"], train["predicted_optimizer"]) == (512 * MIB, 188 * MIB)
    assert train["error"] == pytest.approx(0.7 - 1)
    assert train["remarks"] == "the prediction is 30% below what was measured"
    host = rows["all", "host"]
    assert (host["covered"], host["upper"]) == (False, 800_000_000)
    assert "above the bound by 237 MiB" in host["remarks"]  # 1000 MiB are 1048.576 MB


def test_the_processes_of_a_node_are_summed() -> None:
    two = rows_of(gpu_plan(), gpu_process(), gpu_process(), gpu_process("b"))["all", "host"]
    assert (two["measured"], two["covered"]) == (10 * GIB, True)


@pytest.mark.parametrize(
    ("plan", "device"), [(None, "cuda"), (cpu_plan(), "cuda"), (gpu_plan(), "cpu")], ids=["none", "cpu", "gpu"]
)
def test_without_a_plan_for_what_ran_there_are_measurements_only(plan: Row | None, device: str) -> None:
    measured = gpu_process() if device == "cuda" else process(train={})
    rows = rows_of(plan, measured, device=device)
    assert rows["train", "resident set"]["measured"] == 5 * GIB
    if plan is None or device == "cpu":
        assert not any("predicted" in row for row in rows.values())
    else:
        assert not any("predicted" in row for row in rows.values() if row["measure"] != "resident set")


def test_measurements_of_an_older_version_have_no_device_row() -> None:
    old = process(train={"peak_allocated": 10 * GIB})
    assert ("all", "device") not in rows_of(gpu_plan(), old)


@pytest.mark.parametrize(("measured", "remarked"), [(9.2, False), (9.0, True), (10.9, False), (11.2, True)])
def test_a_prediction_is_remarked_beyond_ten_percent(measured: float, remarked: bool) -> None:
    row = rows_of(gpu_plan(), gpu_process(peak_allocated=int(measured * GIB)))["train", "tensors"]
    assert row["error"] == pytest.approx(10 / measured - 1, rel=1e-6)
    assert ("remarks" in row) == remarked


def test_retries_are_remarked_where_they_happened() -> None:
    rows = rows_of(gpu_plan(), gpu_process(alloc_retries=2), gpu_process(alloc_retries=1))
    assert "emptied its cache 3 time(s)" in rows["train", "tensors"]["remarks"]
    assert "remarks" not in rows["load", "tensors"]


def test_a_device_above_the_bound_is_remarked() -> None:
    row = rows_of(gpu_plan(), gpu_process(peak_device=14 * GIB))["all", "device"]
    assert row["covered"] is False
    assert row["remarks"].endswith("above the bound by 1.00 GiB")


@pytest.mark.parametrize(
    ("manifest", "text"),
    [
        ({"gradient_checkpointing_effective": False}, "gradient checkpointing had no effect"),
        (
            {"training": {"actor": {}, "critic": {"gradient_checkpointing_effective": False}}},
            "critic gradient checkpointing had no effect",
        ),
        ({"gradient_checkpointing_effective": True}, None),
        ({}, None),
    ],
)
def test_checkpointing_without_effect_is_remarked(manifest: Row, text: str | None) -> None:
    row = rows_of(None, gpu_process(), manifest=manifest)["all", "host"]
    assert row.get("remarks") == text


def test_steps_and_verdicts_of_the_plan_are_named() -> None:
    host = process(load={}, train={})
    steps = [{"name": "offload", "saves": 3 * GIB}, {"name": "zero_stage 3", "saves": 512 * MIB}]
    adapted = copy.deepcopy(gpu_plan()) | {"decision": "adapt", "adaptations": steps}
    text = rows_of(adapted, host, host)["all", "host"]["remarks"]
    assert text == "adapted to fit: offload (saves 3.00 GiB), zero_stage 3 (saves 512 MiB)"
    misfit = gpu_plan() | {"verdict": "does not fit", "upper_device": 30 * GIB, "advice": steps[:1], "remedy": "an X"}
    text = rows_of(misfit, host, host)["all", "host"]["remarks"]
    assert text == (
        "planned as not fitting l4 (30.00 GiB of 22.00 GiB); would help: offload (saves 3.00 GiB); not enough: an X"
    )


def test_a_stage_that_ran_otherwise_than_planned_says_so() -> None:
    host = process(load={}, train={})
    run = {"zero_stage": 2, "per_device_train_batch_size": 4, "mem_mb": 2}
    text = rows_of(gpu_plan(), host, host, manifest={"spec": {"execution": run}})["all", "host"]["remarks"]
    assert text == "ran otherwise than planned: per_device_train_batch_size 4 in place of 8"


def test_the_index_counts_and_lists() -> None:
    host = process(load={}, train={})
    good = memory_text(experiment(gpu_plan(), host, host))
    assert good == (
        "1 predictions were compared with what was measured: 0.0% off on average, 0.0% at most; there is nothing to "
        "remark.\n"
    )
    bad = memory_text(experiment(gpu_plan(), gpu_process(peak_allocated=5 * GIB)))
    assert "100.0% at most; 2 remark(s)" in bad
    assert "the prediction is 100% above what was measured" in bad


def test_the_csv_is_exact_and_the_table_is_for_people() -> None:
    rows = comparison_rows(experiment(gpu_plan(), gpu_process(), gpu_process()))
    written = list(csv.DictReader(io.StringIO(to_csv(rows, COMPARISON_CSV))))
    train = next(row for row in written if (row["phase"], row["measure"]) == ("train", "tensors"))
    assert (train["predicted"], train["predicted_activations"], train["upper"]) == (str(10 * GIB), str(7 * GIB), "")
    table = to_markdown(rows, COMPARISON_COLUMNS)
    assert "10.00 GiB" in table and "+0.0%" in table and "remarks" not in table


@pytest.mark.parametrize(("amount", "text"), [(3 * GIB // 2, "1.50 GiB"), (300 * MIB, "300 MiB"), (2048, "2 KiB")])
def test_sizes_for_people(amount: int, text: str) -> None:
    assert size(amount) == text


def test_the_figure_takes_the_stage_that_measured_most() -> None:
    rows = comparison_rows(experiment(gpu_plan(), gpu_process()))
    more = [{**row, "id": "b-1", "measured": 2 * row["measured"]} for row in rows if row["phase"] == "load"]
    found = largest_rows([*rows, *more], "tensors")
    assert [(place, row["id"]) for place, row in found.items()] == [(("sft", "load"), "b-1"), (("sft", "train"), "a-1")]


def test_the_figure_stacks_kinds_beside_what_was_measured() -> None:
    svg = memory(experiment(gpu_plan(), gpu_process()))
    assert ElementTree.fromstring(svg) is not None
    for label in ("predicted weights", "predicted activations", "measured", "sft: train"):
        assert f"<!-- {label} -->" in svg, label
    assert "<!-- predicted logits -->" not in svg
    without = memory(experiment(None, gpu_process()))
    assert "<!-- measured -->" in without and "predicted" not in without
