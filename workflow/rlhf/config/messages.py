"""What the workflow says when it ends: where things are, or what went wrong."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from pathlib import Path

from rlhf.config.plan import Plan, Run
from rlhf.phases import PHASES, STARTS_FROM, PhaseName
from rlhf.records.attempts import read_failures
from rlhf.records.plan import StagePlan, read_plan
from rlhf.records.progress import read_progress

FAILED_LOGS = re.compile(r"^\s*log: (.+) \(check log file", re.MULTILINE)
SHOWN_LINES = 5
GIB = 2**30
MODELS: dict[PhaseName, str] = {"sft": "SFT model", "reward": "reward model", "ppo": "policy"}


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
            for phase in _final_phases(run):
                model = Path(f"results/{phase}/{run.stages[phase]}/model")
                if run.experiment == name and model.exists():
                    point = "".join(f", {key} {value}" for key, value in run.point.items())
                    lines.append(f"    {MODELS[phase]}, seed {run.seed}{point}  {model}")
    parts = []
    if lines:
        parts += ["", "Where things are:", *lines, "  report: snakemake --report results/report.html"]
    if missing:
        parts += ["", f"Not made yet: {', '.join(missing)}. `snakemake -n` says what is missing."]
    return "\n".join(parts)


def plans_message(plan: Plan) -> str:
    """What each training stage needs by its memory plan, and where the plan is."""
    lines = []
    for kind in PHASES:
        for stage in plan.of_kind(kind):
            file = Path(f"results/{kind}/{stage.id}/memory_plan.json")
            if file.exists():
                lines.append(f"  {kind} {stage.id}: {_needs(read_plan(file))}  {file}")
    return "\n".join(["", "What the training stages need (docs/memory.md explains the plans):", *lines])


def _needs(plan: StagePlan) -> str:
    parts = [] if plan["upper_device"] is None else [f"up to {plan['upper_device'] / GIB:.2f} GiB of a GPU"]
    parts.append(f"{plan['host']['node'] / GIB:.2f} GiB of host memory per node")
    device = "" if plan["device"] is None else f" ({plan['device']['name']})"
    return f"{', '.join(parts)}; {plan['verdict']}{device}"


def _final_phases(run: Run) -> list[PhaseName]:
    """The phases of a run whose models no later one of its phases goes on from."""
    phases = [phase for phase in PHASES if phase in run.stages]
    return [phase for phase in phases if not any(phase in STARTS_FROM.get(later, ()) for later in phases)]


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
    """Why a step failed: its own account, that of its first failing process, or the last lines of its log."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    state = Path("state", *log.with_suffix("").parts[1:])
    reason = _first_failure(state) or _last_words(lines) or _killed(state) or lines[-SHOWN_LINES:]
    return "\n".join([f"{log}:", *(f"  {line}" for line in reason)])


def _last_words(lines: list[str]) -> list[str]:
    """The last message of a script at the end of a log, with its indented lines."""
    starts = [number for number, line in enumerate(lines) if line.startswith(("error: ", "interrupted: "))]
    if not starts:
        return []
    first, *rest = lines[starts[-1] :]
    return [first, *itertools.takewhile(lambda line: line.startswith("  "), rest)]


def _first_failure(state: Path) -> list[str]:
    """What the process said that failed first; the others fail because it is gone."""
    failures = read_failures(state)
    if not failures:
        return []
    first = min(failures, key=lambda failure: (failure["cause"] == "lost_process", failure["time"]))
    process = f" (process {first['rank']} on {first['host']})" if len(failures) > 1 else ""
    return [f"error: {first['message']}{process}"]


def _killed(state: Path) -> list[str]:
    """What is known of a process that was killed without a word."""
    progress = read_progress(state)
    if not progress or progress["status"] != "running":
        return []
    return [
        f"error: the process was killed without a word after step {progress['step']} of {progress['total_steps']}; "
        f"it had used up to {progress['peak_rss'] >> 20} MiB of host memory.",
        "  The kernel does that where memory is short (raise `mem_mb` in the stage's `execution`), a scheduler at its "
        "limits. The same command goes on from the last checkpoint.",
    ]
