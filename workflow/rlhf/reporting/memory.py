"""Predicted against measured memory of each stage and phase, and what deserves a remark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from rlhf.phases import RULES
from rlhf.records.manifest import EngineFacts, Manifest
from rlhf.records.memory import PhaseMemory
from rlhf.records.plan import MemoryPlan, PartMemory, PlannedStep
from rlhf.reporting.collect import Experiment, StageFiles
from rlhf.reporting.style import NEUTRAL, PALETTE, SETTINGS, empty_figure, legend_below, panels, to_svg
from rlhf.reporting.tables import Column, Row, to_markdown

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
UNITS = (("GiB", 2**30), ("MiB", 2**20))
COLOURS = dict(zip(KINDS, (*PALETTE, "#8C6D31", "#C8C8C8"), strict=True))
HEIGHT = 0.38  # of a bar; a phase has the height 1


def size(amount: float) -> str:
    """An amount of bytes as people read it, for example `1.50 GiB`."""
    for unit, bytes_ in UNITS:
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
    """One row per stage, phase and measure, then one per stage for its device and its host; in bytes.

    What was not predicted (no plan, or another device than planned for) or not measured is left out.
    """
    stages = [stage for stage in experiment.in_order() if stage.memory]
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
    phases: dict[str, list[PhaseMemory]] = {}
    for process in stage.processes:
        for phase in process["phases"]:
            phases.setdefault(phase["name"], []).append(phase)
    tensors = [
        _tensors_row(stage.plan, name, entries)
        for name, entries in phases.items()
        if any("peak_allocated" in entry for entry in entries)
    ]
    resident = [
        _resident_row(stage.plan, name, entries)
        for name, entries in phases.items()
        if any("peak_rss" in entry for entry in entries)
    ]
    return [*tensors, *resident, *_device_row(stage.plan, phases), _host_row(stage)]


def _tensors_row(plan: MemoryPlan | None, phase: str, entries: list[PhaseMemory]) -> Row:
    row: Row = {"phase": phase, "measure": TENSORS}
    row["measured"] = max(entry.get("peak_allocated", 0) for entry in entries)
    largest = _largest_part(plan, phase)
    if plan is not None and largest is not None and plan["expected_device"] is not None:
        row |= {"part": largest["part"], "predicted": largest["allocated"], **_kinds(largest)}
    retries = sum(entry.get("alloc_retries", 0) for entry in entries)
    return _judged(row, [f"the allocator emptied its cache {retries} time(s): at the ceiling"] if retries else [])


def _resident_row(plan: MemoryPlan | None, phase: str, entries: list[PhaseMemory]) -> Row:
    """A plan for GPUs has no resident set by phase."""
    row: Row = {"phase": phase, "measure": RESIDENT, "measured": max(entry.get("peak_rss", 0) for entry in entries)}
    largest = _largest_part(plan, phase)
    if plan is not None and largest is not None and plan["expected_device"] is None:
        peak = largest["peak_rss"] or 0
        libraries = {"predicted_libraries": peak - largest["allocated"]}
        row |= {"part": largest["part"], "predicted": peak, **_kinds(largest), **libraries}
    return _judged(row, [])


def _largest_part(plan: MemoryPlan | None, phase: str) -> PartMemory | None:
    parts = [part for part in plan["phases"] if part["phase"] == phase] if plan is not None else []
    return max(parts, key=lambda part: part["allocated"], default=None)


def _kinds(part: PartMemory) -> dict[str, int]:
    sums: dict[str, int] = {}
    for entry in part["rows"]:
        key = f"predicted_{entry['kind']}"
        sums[key] = sums.get(key, 0) + entry["bytes"]
    return sums


def _device_row(plan: MemoryPlan | None, phases: dict[str, list[PhaseMemory]]) -> list[Row]:
    found = [entry["peak_device"] for entries in phases.values() for entry in entries if "peak_device" in entry]
    if not found:
        return []
    row: Row = {"phase": WHOLE, "measure": DEVICE, "measured": max(found)}
    if plan is not None and plan["expected_device"] is not None:
        row |= {"part": plan["peak"]["part"], "predicted": plan["expected_device"], "upper": plan["upper_device"]}
    return [_judged(row, [])]


def _host_row(stage: StageFiles) -> Row:
    nodes: dict[str, int] = {}
    for process in stage.processes:
        nodes[process["host"]] = nodes.get(process["host"], 0) + process["peak_rss"]
    row: Row = {"phase": WHOLE, "measure": HOST, "measured": max(nodes.values())}
    plan, memory = stage.plan, stage.memory
    if plan is not None and memory is not None and (plan["expected_device"] is None) == (memory["device"] == "cpu"):
        row |= {"predicted": plan["host"]["node"], "upper": plan["resources"]["mem_mb"] * 1_000_000}
    return _judged(row, [*_checkpointing(stage.manifest or {}), *_plan_remarks(stage)])


def _judged(row: Row, remarks: list[str]) -> Row:
    """Add to a row how far the prediction is off, whether the bound holds, and remarks; where there are any."""
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


def _checkpointing(manifest: Manifest) -> list[str]:
    """A stage of one engine notes it for itself, and PPO for each of its engines."""
    engines: dict[str, EngineFacts] = {"": manifest, **manifest.get("training", {})}
    return [
        f"{name} gradient checkpointing had no effect".lstrip()
        for name, facts in engines.items()
        if facts.get("gradient_checkpointing_effective") is False
    ]


def _plan_remarks(stage: StageFiles) -> list[str]:
    plan = stage.plan
    if plan is None:
        return []
    remarks = _changes(plan["execution"], stage.execution if stage.manifest else {})
    if plan["adaptations"]:
        remarks.append(f"adapted to fit: {_steps(plan['adaptations'])}")
    device, upper = plan["device"], plan["upper_device"]
    if plan["verdict"] == "does not fit" and device is not None and upper is not None:
        text = f"planned as not fitting {device['name']} ({size(upper)} of {size(device['capacity'])})"
        advice = f"; would help: {_steps(plan['advice'])}" if plan["advice"] else ""
        remarks.append(text + advice + (f"; not enough: {plan['remedy']}" if plan["remedy"] else ""))
    return remarks


def _changes(planned: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """What is otherwise than planned: a stage that ran out of memory is tried again with less."""
    changed = [
        f"{key} {run[key]} in place of {value}"
        for key, value in planned.items()
        if any(name in key for name in NEEDED) and key in run and run[key] != value
    ]
    return [f"ran otherwise than planned: {', '.join(changed)}"] if changed else []


def _steps(steps: list[PlannedStep]) -> str:
    return ", ".join(f"{step['name']} (saves {size(step['saves'])})" for step in steps)


def largest_rows(rows: list[Row], measure: str) -> dict[tuple[str, str], Row]:
    """(stage kind, phase) -> the row that measured most, over all stages of the kind; phases in order of time."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        place = (row["stage"], row["phase"])
        if row["measure"] == measure and row["measured"] > found.get(place, {"measured": -1})["measured"]:
            found[place] = row
    return dict(sorted(found.items(), key=lambda item: list(RULES).index(item[0][0])))


def memory(experiment: Experiment) -> str:
    """SVG of the peak of each phase, predicted by kind and measured: on the device, and in host memory."""
    rows = comparison_rows(experiment)
    found = [
        (title, places)
        for measure, title in ((TENSORS, "Device memory"), (RESIDENT, "Host memory (resident set)"))
        if (places := largest_rows(rows, measure))
    ]
    if not found:
        return to_svg(empty_figure("no memory was measured"))
    longest = max(len(places) for _, places in found)
    used = [kind for kind in KINDS if any(f"predicted_{kind}" in row for _, places in found for row in places.values())]
    with mpl.rc_context({**SETTINGS, "axes.grid.axis": "x"}):
        figure, axes = panels(len(found), columns=2, width=6.4, height=0.7 + 0.42 * longest)
        for axis, (title, places) in zip(axes, found, strict=True):
            _draw_bars(axis, places)
            axis.set_title(f"{title}: largest peak of a process")
        handles = [Patch(color=NEUTRAL, label="measured")]
        handles += [Patch(color=COLOURS[kind], label=f"predicted {kind.replace('_', ' ')}") for kind in used]
        legend_below(figure, handles, 3 * len(found))
        return to_svg(figure)


def _draw_bars(axis: Axes, places: dict[tuple[str, str], Row]) -> None:
    """Two horizontal bars per phase, with a gap between stages: the prediction in stacks above what was measured."""
    largest = max(max(row["measured"], row.get("predicted", 0)) for row in places.values())
    unit, bytes_ = next((entry for entry in UNITS if largest >= entry[1]), UNITS[-1])
    shown = "%.3g" if unit == "GiB" else "%.0f"
    stages = list(dict.fromkeys(stage for stage, _ in places))
    heights = [row + 0.5 * stages.index(stage) for row, (stage, _) in enumerate(places)]
    for height, row in zip(heights, places.values(), strict=True):
        start, bar = 0.0, None
        for kind in KINDS:
            amount = row.get(f"predicted_{kind}", 0) / bytes_
            if amount:
                bar = axis.barh(height - HEIGHT / 2, amount, left=start, color=COLOURS[kind], height=HEIGHT)
                start += amount
        if bar is not None:
            axis.bar_label(bar, labels=[shown % start], padding=3)
    values = [row["measured"] / bytes_ for row in places.values()]
    below = [HEIGHT / 2 if "predicted" in row else 0.0 for row in places.values()]
    bars = axis.barh(np.add(heights, below), values, color=NEUTRAL, height=HEIGHT)
    axis.bar_label(bars, fmt=shown, padding=3)
    axis.set_yticks(heights, [f"{stage}: {phase}" for stage, phase in places])
    axis.invert_yaxis()
    axis.margins(x=0.1, y=0.01)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel(f"peak ({unit})")
