"""What the workflow says when it ends: where things are, or what went wrong."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from pathlib import Path

from rlhf.config.plan import Plan

FAILED_LOGS = re.compile(r"^\s*log: (.+) \(check log file", re.MULTILINE)
SHOWN_LINES = 5


def closing_message(plan: Plan) -> str:
    """Where the models, the tables and the report of a finished workflow are, and which experiments lack theirs."""
    lines, missing = [], []
    for name in dict.fromkeys(run.experiment for run in plan.runs):
        index = Path(f"results/experiments/{name}/index.md")
        if not index.exists():
            missing.append(name)
            continue
        lines.append(f"  {name}: tables and figures  {index}")
        for run in plan.runs:
            model = Path(f"results/ppo/{run.stages['ppo']}/model")
            if run.experiment == name and model.exists():
                point = "".join(f", {key} {value}" for key, value in run.point.items())
                lines.append(f"    policy, seed {run.seed}{point}  {model}")
    parts = []
    if lines:
        parts += ["", "Where things are:", *lines, "  report: snakemake --report results/report.html"]
    if missing:
        parts += ["", f"Not made yet: {', '.join(missing)}. `snakemake -n` says what is missing."]
    return "\n".join(parts)


def failure_message(snakemake_logs: Iterable[str]) -> str:
    """What the failed steps said, and what to do.

    Args:
        snakemake_logs: Snakemake's own logs of this run.
    """
    text = "\n".join(Path(log).read_text(encoding="utf-8", errors="replace") for log in snakemake_logs)
    # On a cluster a failed step has two logs in one line: its own and the scheduler's.
    logs = dict.fromkeys(log for found in FAILED_LOGS.findall(text) for log in found.split(", "))
    parts = [_said(Path(log)) for log in logs if Path(log).exists()]
    advice = "What had finished is kept: mend the cause and run the same command again. `rlhf-status` shows all stages."
    return "\n".join(["", *parts, advice])


def _said(log: Path) -> str:
    """The user error at the end of a log with its indented lines, or the log's last lines."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    shown = lines[-SHOWN_LINES:]
    if starts:
        first, *rest = lines[starts[-1] :]
        shown = [first, *itertools.takewhile(lambda line: line.startswith("  "), rest)]
    return "\n".join([f"{log}:", *(f"  {line}" for line in shown)])
