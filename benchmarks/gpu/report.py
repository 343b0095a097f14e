"""The results as Markdown."""

from __future__ import annotations

from typing import Any

GIB = 2**30
Found = dict[str, Any]
HOW_COUNTED = """\
Tokens are useful ones: prompts and answers without padding; in a pair the prompt counts twice. MFU: operations of the
matrix products that these tokens need (`benchmarks/gpu/arithmetic.py`: causal attention by half, output layer where
logits are needed, training three times the forward pass) by the card's dense bf16 peak. First steps are left out."""


def markdown(result: Found) -> str:
    """The whole page."""
    parts: Found = result["parts"]
    sections = [
        _head(result),
        _states(parts),
        _correctness(parts.get("correctness", {})),
        _memory(parts),
        _speed(parts),
        _phases(parts),
        _failures(parts),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(result: Found) -> str:
    machine, code = result["machine"], result["code"]
    lines = [f"# GPU: {machine.get('card') or 'none, a rehearsal on the CPU'}", ""]
    lines.append(f"{result['started']}, {result.get('seconds', 0):.0f} s, code {code.get('commit') or code['hash']}")
    if machine:
        versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
        lines += ["", f"Python {machine['python']}, {versions}"]
    if machine.get("card"):
        lines.append(f"Driver {machine['driver']}, CUDA {machine['cuda']}, {_gib(machine['memory'])} GiB")
    ceilings = result["parts"].get("ceilings", {})
    if "matmul" in ceilings:
        rate, copied = ceilings["matmul"] / 1e12, ceilings["copy"] / 1e12
        lines.append(f"Measured: bf16 matrix product {rate:.0f} TFLOP/s, copy {copied:.2f} TB/s")
    return "\n".join(lines)


def _states(parts: Found) -> str:
    rows = [
        [name, part["status"], part.get("message") or part.get("note") or "", f"{part['seconds']:.0f}"]
        for name, part in parts.items()
    ]
    return "## Parts\n\n" + _table(["part", "status", "remark", "s"], rows)


def _correctness(part: Found) -> str:
    if not part.get("tests"):
        return ""
    rows = []
    for test in part["tests"]:
        name = test["test"].removeprefix("tests/gpu/").replace("::", ": ")
        measured = ", ".join(f"{key} {_short(value)}" for key, value in test["measured"].items())
        first = (test["message"].strip().splitlines() or [""])[-1] if test["outcome"] != "passed" else ""
        rows.append([name, test["outcome"], measured or first[:120], f"{test['seconds']:.1f}"])
    note = f"{part['note']}\n\n" if "note" in part else ""
    return "## Right on the device\n\n" + note + _table(["test", "outcome", "measured", "s"], rows)


def _memory(parts: Found) -> str:
    found = {name: part["memory"] for name, part in parts.items() if "memory" in part}
    if not found:
        return ""
    figure = next(iter(found.values()))["figure"]
    what = "largest sum of tensors on the device" if figure == "peak_allocated" else "resident memory of the process"
    rows = []
    for name, memory in found.items():
        for phase in memory["phases"]:
            rows.append(
                [name, phase["phase"], phase["part"] or "", *_compared(phase["planned"], phase["measured"])],
            )
    text = f"## Memory by its plan\n\nGiB, by phase: {what}.\n\n"
    text += _table(["stage", "phase", "largest part", "planned", "measured", "planned / measured"], rows)
    if figure != "peak_allocated":
        return text + "\n\nNot measured: memory of a device, because there is none."
    whole = [
        [
            name,
            *_compared(memory["expected_allocated"], memory["peak"]),
            _gib(memory["peak_reserved"]),
            *_compared(memory["expected_device"], memory["peak_device"]),
            _gib(memory["upper_device"]),
            "yes" if memory["peak_device"] <= memory["upper_device"] else "NO",
            str(memory["alloc_retries"]),
        ]
        for name, memory in found.items()
    ]
    heads = ["stage", "planned tensors", "measured", "ratio", "reserved", "planned device", "measured", "ratio"]
    return text + "\n\nIn all, GiB:\n\n" + _table([*heads, "upper bound", "holds", "retries"], whole)


def _speed(parts: Found) -> str:
    rows = []
    for name, part in parts.items():
        speed = part.get("speed", {})
        if "seconds_per_step" in speed:
            mfu = f"{speed['mfu']:.1%}" if "mfu" in speed else ""
            last = ", ".join(f"{key} {_short(value)}" for key, value in speed.get("last", {}).items())
            peak = part.get("memory", {}).get("peak") or speed.get("peak_allocated")
            rows.append(
                [
                    name,
                    f"{speed['tokens_per_second']:,.0f}",
                    f"{speed['seconds_per_step']:.3f}",
                    f"{speed['flops_per_second'] / 1e12:.3g}",
                    mfu,
                    _gib(peak) if peak else "",
                    last,
                ]
            )
    if not rows:
        return ""
    heads = ["stage", "tokens/s", "s per step", "TFLOP/s", "MFU", "peak GiB", "last step"]
    return f"## Speed\n\n{HOW_COUNTED}\n\n" + _table(heads, rows)


def _phases(parts: Found) -> str:
    rows = []
    for name, part in parts.items():
        speed = part.get("speed", {})
        for phase, figures in speed.get("phases", {}).items():
            drawn = f"{speed['generated_per_second']:,.0f}" if phase == "generate" else ""
            mfu = f"{figures['mfu']:.1%}" if "mfu" in figures else ""
            rows.append([name, phase, f"{figures['seconds']:.2f}", f"{figures['share']:.1%}", mfu, drawn])
        if name == "plain-generation" and speed:
            rows.append([name, "generate", f"{speed['seconds']:.2f}", "", "", f"{speed['generated_per_second']:,.0f}"])
    if not rows:
        return ""
    heads = ["stage", "phase", "s", "share", "MFU", "generated tokens/s"]
    return "## Phases of PPO\n\n" + _table(heads, rows)


def _failures(parts: Found) -> str:
    shown = {name: part["details"] for name, part in parts.items() if part.get("details")}
    shown |= {
        test["test"]: test["message"]
        for test in parts.get("correctness", {}).get("tests", [])
        if test["outcome"] == "failed"
    }
    return "\n\n".join(f"## {name}\n\n```\n{text.strip()[-3000:]}\n```" for name, text in shown.items())


def _compared(planned: int | None, measured: int) -> list[str]:
    if planned is None:
        return ["", _gib(measured), ""]
    return [_gib(planned), _gib(measured), f"{planned / measured:.3f}"]


def _gib(amount: float) -> str:
    return f"{amount / GIB:.2f}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)
