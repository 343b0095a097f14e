"""Replay published memory measurements through the closed forms, and write how far off they are.

    python benchmarks/memory/validate.py [published.csv] [--output results.json]

Allocated peaks are compared with the expected allocation, reserved ones with that and the allocator's slack, readings
of the device with the expected device memory. Where a source only says that a run fitted or did not, the verdict of the
upper bound is compared.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
from collections import defaultdict
from dataclasses import fields
from pathlib import Path
from typing import Any

from programs import NotPredicted, Prediction, Row, predict

from rlhf.memory.devices import GIB, MIB, USABLE, DeviceMemory, device_memory, slack

HERE = Path(__file__).parent
CONTEXTS = {"V100-16G": 1343 * MIB, "L4": 226 * MIB, "A100": 501 * MIB}  # the V100 rows are of CUDA 11.2
ALLOCATED, RESERVED = ("peak_allocated", "peak_active"), ("peak_reserved",)
DEVICE = ("nvml_used", "nvidia_smi", "device_used")
NUMERIC = (*ALLOCATED, *RESERVED, *DEVICE)


def read_rows(path: Path) -> list[tuple[Row, dict[str, str]]]:
    """Rows with the fields that predictions may use, and the raw ones."""
    rows = []
    with path.open(encoding="utf-8", newline="") as stream:
        for raw in csv.DictReader(stream):
            raw = {**raw, "checkpointing": raw["gradient_checkpointing"]}
            values: dict[str, Any] = {}
            for field in fields(Row):
                text = raw[field.name]
                values[field.name] = _integer(text) if "int" in str(field.type) else text
            rows.append((Row(**values), raw))
    return rows


def _integer(text: str) -> int | None:
    """A number, or None where the source gives none."""
    return int(float(text)) if re.fullmatch(r"[\d.]+(e\d+)?", text) else None


def on_device(row: Row, found: Prediction) -> DeviceMemory:
    """The three numbers of a row."""
    context = next((value for name, value in CONTEXTS.items() if name in row.gpu), 512 * MIB)
    # The 16-bit states of ZeRO-3 in PPO are few large blocks that stay.
    ppo = row.phase.startswith("ppo")
    share = min(slack([row.zero_stage or 0], generates=False), 0.10 if ppo else 1.0)
    communicators = 0 if (row.world_size or 1) == 1 else 1
    return device_memory(int(found.allocated), share, context, communicators, int(found.logits) if found.varies else 0)


def expected(kind: str, row: Row, found: Prediction, memory: DeviceMemory) -> float:
    """What the measurement of a kind should read."""
    if kind in ALLOCATED:
        return found.allocated
    repeated = found.logits if found.varies else 0.0
    if kind in RESERVED:
        return found.allocated * (1.05 if row.zero_stage == 0 else 1.10) + repeated
    return memory.expected_device + repeated


def capacity(raw: dict[str, str]) -> float:
    """Bytes of the device that a verdict is about."""
    size = re.search(r"(\d+)G\b", raw["gpu"])
    return float(size.group(1)) * GIB if size else float(raw["measured_gb"]) * 1e9


def replay(path: Path) -> dict[str, Any]:
    """All rows of a file, and the summary by kind of measurement."""
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    for row, raw in read_rows(path):
        try:
            found = predict(row)
        except NotPredicted as reason:
            skipped.append({"id": row.id, "measure_kind": raw["measure_kind"], "reason": str(reason)})
            continue
        memory = on_device(row, found)
        measured, kind = float(raw["measured_gb"]) * 1e9, raw["measure_kind"]
        entry = {"id": row.id, "measure_kind": kind, "relation": raw["relation"], "measured": round(measured)}
        if raw["relation"] == "=":
            value = expected(kind, row, found, memory)
            entry |= {"predicted": round(value), "error": value / measured - 1, "upper": memory.upper_device}
        else:
            entry |= {"predicted": memory.expected_device, "upper": memory.upper_device}
            entry["verdict"] = "fits" if memory.upper_device <= USABLE * capacity(raw) else "does not fit"
        rows.append(entry)
    return {"summary": summary(rows), "rows": rows, "not_predicted": skipped}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Errors by kind of measurement, how often the upper bound was too low, and the confusion of verdicts."""
    errors: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if "error" in row:
            kind = row["measure_kind"]
            errors["allocated peak" if kind in ALLOCATED else kind].append(row["error"])
    numeric = [row for row in rows if "error" in row and row["measure_kind"] in NUMERIC]
    low = [row["id"] for row in numeric if row["upper"] < row["measured"]]
    confusion: dict[str, int] = defaultdict(int)
    for row in rows:
        if "verdict" in row:
            truth = "ran" if row["relation"] == "<" else "out of memory"
            confusion[f"{truth}, predicted: {row['verdict']}"] += 1
    return {
        "errors": {
            kind: {
                "rows": len(values),
                "mean": statistics.mean(map(abs, values)),
                "median": statistics.median(map(abs, values)),
                "worst": max(values, key=abs),
                "signed_mean": statistics.mean(values),
            }
            for kind, values in errors.items()
        },
        "upper_bound_too_low": {"rows": len(numeric), "too_low": low},
        "verdicts": dict(confusion),
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["| measured | rows | mean error | median | worst |", "|---|---|---|---|---|"]
    for kind, e in result["summary"]["errors"].items():
        lines.append(f"| {kind} | {e['rows']} | {e['mean']:.1%} | {e['median']:.1%} | {e['worst']:+.1%} |")
    bound = result["summary"]["upper_bound_too_low"]
    lines += ["", f"Upper bound too low: {len(bound['too_low'])} of {bound['rows']} numeric rows {bound['too_low']}."]
    lines += [f"- {name}: {count}" for name, count in result["summary"]["verdicts"].items()]
    lines += ["", f"Not predicted, because the row says too little: {len(result['not_predicted'])}."]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("rows", nargs="?", type=Path, default=HERE / "published.csv")
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    args = parser.parse_args()
    result = replay(args.rows)
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))  # noqa: T201


if __name__ == "__main__":
    main()
