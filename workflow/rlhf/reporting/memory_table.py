"""Predicted against measured memory of each stage and phase, and what deserves a remark."""

from __future__ import annotations

from typing import Any

from rlhf.reporting.collect import TRAINED, Experiment, Row, StageFiles
from rlhf.reporting.tables import Column, to_markdown

KINDS = ("weights", "gradients", "optimizer", "activations", "logits", "kv_cache", "buffers", "libraries")
TENSORS, RESIDENT, DEVICE, HOST = "tensors", "resident set", "device", "host"
WHOLE = "all"  # in place of a phase
TOLERANCE = 0.10
# In the names of those keys of `execution` on which memory depends.
NEEDED = ("nodes", "gpus_per_node", "batch_size", "zero_stage", "offload", "gradient_checkpointing", "deepspeed_config")
COMPARISON_NOTE = (
    "Largest process of each phase. Measured as tensors: what the allocator gave out on the device. Resident set: host "
    "memory of the process. Device: what the driver counts, context and other processes included. Host: sum over the "
    "processes of a node. Error: predicted / measured - 1, negative where the prediction is too low. Bound: the upper "
    "bound of the device; of the host, what the plan asks the scheduler for."
)


def size(amount: float) -> str:
    """Bytes for people."""
    for unit, bytes_ in (("GiB", 2**30), ("MiB", 2**20)):
        if amount >= bytes_:
            return f"{amount / bytes_:.2f} {unit}" if unit == "GiB" else f"{amount / bytes_:.0f} {unit}"
    return f"{amount / 2**10:.0f} KiB"


COMPARISON_COLUMNS = (
    Column("stage", "stage"),
    Column("id", "ID"),
    Column("phase", "phase"),
    Column("measure", "measured as"),
    Column("part", "predicted peak in"),
    Column("predicted", "predicted", size),
    Column("measured", "measured", size),
    Column("error", "error", lambda value: f"{value:+.1%}"),
    Column("upper", "bound", size),
    Column("covered", "within bound", lambda value: "yes" if value else "no"),
    Column("remarks", "remarks"),
)
REMARK_KEYS = ("stage", "id", "phase", "measure", "remarks")
COMPARISON_CSV = (*(column.key for column in COMPARISON_COLUMNS), *(f"predicted_{kind}" for kind in KINDS))


def comparison_rows(experiment: Experiment) -> list[Row]:
    """One row per training stage, phase and measure, then one per stage for its device and its host; in bytes.

    What was not predicted (no plan, or another device than planned for) or not measured is left out.
    """
    stages = [stage for stage in experiment.in_order() if stage.kind in TRAINED and stage.memory]
    return [{"stage": stage.kind, "id": stage.id, **row} for stage in stages for row in _rows(stage)]


def memory_text(experiment: Experiment) -> str:
    """For the index: how far predictions were off, and the rows with a remark."""
    rows = comparison_rows(experiment)
    errors = [abs(row["error"]) for row in rows if "error" in row]
    text = f"{len(errors)} predictions were compared with what was measured"
    if errors:
        text += f": {sum(errors) / len(errors):.1%} off on average, {max(errors):.1%} at most"
    remarked = [row for row in rows if "remarks" in row]
    if not remarked:
        return f"{text}; there is nothing to remark.\n"
    columns = [column for column in COMPARISON_COLUMNS if column.key in REMARK_KEYS]
    return f"{text}; {len(remarked)} remark(s):\n\n{to_markdown(remarked, columns)}"


def _rows(stage: StageFiles) -> list[Row]:
    processes = (stage.memory or {})["processes"]
    phases: dict[str, list[Row]] = {}
    for process in processes:
        for phase in process["phases"]:
            phases.setdefault(phase["name"], []).append(phase)
    rows = [
        _phase_row(stage.plan, name, measure, entries)
        for measure, key in ((TENSORS, "peak_allocated"), (RESIDENT, "peak_rss"))
        for name, entries in phases.items()
        if any(key in entry for entry in entries)
    ]
    return [*rows, *_device_row(stage.plan, phases), _host_row(stage, processes)]


def _phase_row(plan: Row | None, phase: str, measure: str, entries: list[Row]) -> Row:
    measured, predicted = ("peak_allocated", "allocated") if measure == TENSORS else ("peak_rss", "peak_rss")
    row = {"phase": phase, "measure": measure, "measured": max(entry.get(measured, 0) for entry in entries)}
    # A plan for GPUs has no resident set by phase, and one for the CPU no device.
    on_cpu = plan is not None and plan["expected_device"] is None
    parts = [part for part in (plan or {}).get("phases", []) if part["phase"] == phase]
    if parts and on_cpu == (measure == RESIDENT):
        largest = max(parts, key=lambda part: part["allocated"])
        row |= {"part": largest["part"], "predicted": largest[predicted], **_kinds(largest, measure)}
    retries = sum(entry.get("alloc_retries", 0) for entry in entries) if measure == TENSORS else 0
    return _judged(row, [f"the allocator emptied its cache {retries} time(s): at the ceiling"] if retries else [])


def _kinds(part: Row, measure: str) -> dict[str, int]:
    sums: dict[str, int] = {}
    for entry in part["rows"]:
        key = f"predicted_{entry['kind']}"
        sums[key] = sums.get(key, 0) + entry["bytes"]
    return sums | ({"predicted_libraries": part["peak_rss"] - part["allocated"]} if measure == RESIDENT else {})


def _device_row(plan: Row | None, phases: dict[str, list[Row]]) -> list[Row]:
    found = [entry["peak_device"] for entries in phases.values() for entry in entries if "peak_device" in entry]
    if not found:
        return []
    row = {"phase": WHOLE, "measure": DEVICE, "measured": max(found)}
    if plan is not None and plan["expected_device"] is not None:
        row |= {"part": plan["peak"]["part"], "predicted": plan["expected_device"], "upper": plan["upper_device"]}
    return [_judged(row, [])]


def _host_row(stage: StageFiles, processes: list[Row]) -> Row:
    nodes: dict[str, int] = {}
    for process in processes:
        nodes[process["host"]] = nodes.get(process["host"], 0) + process["peak_rss"]
    row: Row = {"phase": WHOLE, "measure": HOST, "measured": max(nodes.values())}
    if stage.plan is not None and (stage.plan["expected_device"] is None) == ((stage.memory or {})["device"] == "cpu"):
        row |= {"predicted": stage.plan["host"]["node"], "upper": stage.plan["resources"]["mem_mb"] * 1_000_000}
    return _judged(row, [*_checkpointing(stage.manifest or {}), *_plan_remarks(stage)])


def _judged(row: Row, remarks: list[str]) -> Row:
    """Add error, cover and remarks, as far as there are any."""
    if "predicted" in row:
        row["error"] = row["predicted"] / row["measured"] - 1
        if abs(row["error"]) > TOLERANCE:
            way = "above" if row["error"] > 0 else "below"
            remarks = [*remarks, f"the prediction is {abs(row['error']):.0%} {way} what was measured"]
    if "upper" in row:
        row["covered"] = row["measured"] <= row["upper"]
        if not row["covered"]:
            remarks = [*remarks, f"above the bound by {size(row['measured'] - row['upper'])}"]
    return row | ({"remarks": "; ".join(remarks)} if remarks else {})


def _checkpointing(manifest: Row) -> list[str]:
    """PPO notes it for each of its engines."""
    engines: dict[str, Any] = {"": manifest, **manifest.get("training", {})}
    return [
        f"{name} gradient checkpointing had no effect".lstrip()
        for name, facts in engines.items()
        if facts.get("gradient_checkpointing_effective") is False
    ]


def _plan_remarks(stage: StageFiles) -> list[str]:
    plan = stage.plan
    if plan is None:
        return []
    remarks = _changes(plan["execution"], (stage.manifest or {}).get("spec", {}).get("execution", {}))
    if plan["adaptations"]:
        remarks.append(f"adapted to fit: {_steps(plan['adaptations'])}")
    if plan["verdict"] == "does not fit":
        device = plan["device"]
        text = f"planned as not fitting {device['name']} ({size(plan['upper_device'])} of {size(device['capacity'])})"
        advice = f"; would help: {_steps(plan['advice'])}" if plan["advice"] else ""
        remarks.append(text + advice + (f"; not enough: {plan['remedy']}" if plan["remedy"] else ""))
    return remarks


def _changes(planned: Row, run: Row) -> list[str]:
    """A stage that ran out of memory goes on in another way than was planned."""
    changed = [
        f"{key} {run[key]} in place of {value}"
        for key, value in planned.items()
        if any(name in key for name in NEEDED) and key in run and run[key] != value
    ]
    return [f"ran otherwise than planned: {', '.join(changed)}"] if changed else []


def _steps(steps: list[Row]) -> str:
    return ", ".join(f"{step['name']} (saves {size(step['saves'])})" for step in steps)
