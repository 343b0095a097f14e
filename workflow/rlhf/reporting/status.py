"""`rlhf-status`: what is running, what is done, what failed, in one table on the terminal.

Running stages are found by the progress.json in their state folder, finished ones by their manifest.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlhf.errors import UserError
from rlhf.runtime.logging import run_script
from rlhf.runtime.progress import format_seconds

STALLED_AFTER_SECONDS = 120.0
TAIL_BYTES = 65536
PIPE_WIDTH = 160
STAGE_ORDER = ("sft", "evaluate_sft", "reward", "evaluate_reward", "baseline", "ppo", "evaluate_ppo")
KEY_METRICS = {
    "sft": ("loss", "perplexity"),
    "evaluate_sft": ("loss", "perplexity"),
    "reward": ("loss", "accuracy"),
    "evaluate_reward": ("accuracy", "gold_accuracy"),
    "baseline": ("score_mean", "gold_mean"),
    "ppo": ("score", "kl", "gold"),
    "evaluate_ppo": ("win_rate", "gold_win_rate", "kl"),
}
STYLES = {"running": "cyan", "done": "green", "failed": "bold red", "stalled": "bold yellow", "unreadable": "red"}


@dataclass(frozen=True)
class StageStatus:
    """One line of the table. Fields that are not known are None."""

    stage: str
    id: str
    status: str
    step: int | None = None
    total_steps: int | None = None
    speed: float | None = None
    seconds: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    note: str = ""


def read_status(root: Path, now: float | None = None) -> list[StageStatus]:
    """The state of every stage of a project, in the order of the workflow.

    Args:
        root: project folder with state/, results/ and logs/.
        now: Unix time; unset takes the clock.

    Returns:
        One entry per stage. A stage with a manifest is done, unless it has been started again since.
    """
    present = time.time() if now is None else now
    found: dict[tuple[str, str], StageStatus] = {}
    finished_at: dict[tuple[str, str], float] = {}
    for file in root.glob("results/*/*/manifest.json"):
        manifest = _read(file)
        if manifest is not None:
            place = (file.parent.parent.name, file.parent.name)
            found[place] = _finished(file, manifest)
            finished_at[place] = _timestamp(manifest.get("finished"))
    for file in root.glob("state/*/*/progress.json"):
        progress = _read(file)
        place = (file.parent.parent.name, file.parent.name)
        if progress is not None and not _is_older(progress, finished_at.get(place)):
            found[place] = _started(root, *place, progress, present)
    return sorted(found.values(), key=lambda entry: (_rank(entry.stage), entry.id))


def _rank(stage: str) -> int:
    return STAGE_ORDER.index(stage) if stage in STAGE_ORDER else len(STAGE_ORDER)


def _read(path: Path) -> dict[str, Any] | None:
    """Content of a JSON file; None if it vanished meanwhile, empty if it is broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _timestamp(text: str | None) -> float:
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def _is_older(progress: dict[str, Any], finished: float | None) -> bool:
    """Whether a progress file is a leftover of the run whose manifest was written at `finished`."""
    return finished is not None and (progress.get("status") == "done" or progress.get("updated", 0.0) <= finished)


def _finished(manifest_file: Path, manifest: dict[str, Any]) -> StageStatus:
    folder = manifest_file.parent
    stage, identifier = folder.parent.name, folder.name
    if not manifest:
        return StageStatus(stage, identifier, "unreadable", note=f"{manifest_file} is not valid JSON")
    metrics = _read(folder / "evaluation.json") or _last_lines(folder / "metrics.jsonl")
    return StageStatus(stage, identifier, "done", seconds=manifest.get("wall_seconds"), metrics=metrics)


def _last_lines(path: Path) -> dict[str, Any]:
    """The last training metrics, overlaid with the last ones on unseen data; only the end of the file is read."""
    last: dict[str, dict[str, Any]] = {}
    for line in _tail(path):
        try:
            row = json.loads(line)
        except ValueError:  # the first line of the tail is cut
            continue
        if isinstance(row, dict):
            last[row.get("phase", "train")] = row
    return {**last.get("train", {}), **last.get("eval", {})}


def _tail(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return stream.read().decode("utf-8", errors="replace").splitlines()


def _started(root: Path, stage: str, identifier: str, progress: dict[str, Any], now: float) -> StageStatus:
    if not progress:
        return StageStatus(stage, identifier, "unreadable", note=f"state/{stage}/{identifier}/progress.json is broken")
    status, note = _judge(progress, now)
    if status in ("failed", "stalled"):
        note = "; ".join(part for part in (note, _log_note(root, stage, identifier)) if part)
    return StageStatus(
        stage,
        identifier,
        status,
        step=progress.get("step"),
        total_steps=progress.get("total_steps"),
        speed=progress.get("speed") if status == "running" else None,
        seconds=progress.get("eta_seconds") if status == "running" else None,
        metrics=progress.get("metrics") or {},
        note=note,
    )


def _judge(progress: dict[str, Any], now: float) -> tuple[str, str]:
    """(status, why): a stage that says it runs is stalled if its process is gone or it has been silent too long."""
    status = progress.get("status", "running")
    if status != "running":
        return status, ""
    if progress.get("host") == socket.gethostname() and not _is_alive(progress.get("pid")):
        return "stalled", f"process {progress.get('pid')} is gone"
    silent = now - progress.get("updated", now)
    if silent > STALLED_AFTER_SECONDS:
        return "stalled", f"no news for {format_seconds(silent)} from {progress.get('host')}"
    return "running", ""


def _is_alive(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists and belongs to another user
        return True
    return True


def _log_note(root: Path, stage: str, identifier: str) -> str:
    """The last line of the stage's log and where to read on."""
    log = root / "logs" / stage / f"{identifier}.log"
    lines = [line.strip() for line in _tail(log) if line.strip()]
    return f"{lines[-1]} (see logs/{stage}/{identifier}.log)" if lines else ""


def render(entries: Sequence[StageStatus], root: Path) -> RenderableType:
    """The table, with what is known about failed and stalled stages below it."""
    if not entries:
        return Text(f"Nothing has run yet in {root.resolve()}. Start with `snakemake`, and look again.")
    table = Table(caption=_counts(entries), caption_justify="left")
    for name, justify in (("stage", "left"), ("ID", "left"), ("status", "left")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("", width=12)
    table.add_column("tokens/s", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("metrics", no_wrap=True)
    for entry in entries:
        table.add_row(*_cells(entry))
    notes = [
        Text(f"{entry.stage} {entry.id}: {entry.note}", STYLES.get(entry.status, "")) for entry in entries if entry.note
    ]
    return Group(table, *notes)


def _counts(entries: Sequence[StageStatus]) -> str:
    statuses = [entry.status for entry in entries]
    return ", ".join(f"{statuses.count(status)} {status}" for status in STYLES if status in statuses)


def _cells(entry: StageStatus) -> list[RenderableType]:
    bar: RenderableType = ""
    if entry.step is not None and entry.total_steps:
        bar = ProgressBar(total=entry.total_steps, completed=entry.step, width=12)
    return [
        entry.stage,
        Text(entry.id),
        Text(entry.status, STYLES.get(entry.status, "")),
        "" if entry.step is None else f"{entry.step}/{entry.total_steps}",
        bar,
        "" if entry.speed is None else f"{entry.speed:,.0f}",
        _time(entry),
        Text(key_metrics(entry)),
    ]


def _time(entry: StageStatus) -> str:
    if entry.seconds is None:
        return ""
    return format_seconds(entry.seconds) if entry.status == "done" else f"{format_seconds(entry.seconds)} left"


def key_metrics(entry: StageStatus) -> str:
    """The few metrics that tell how a stage is doing; those not measured are left out."""
    names = KEY_METRICS.get(entry.stage, ())
    return "  ".join(f"{name} {entry.metrics[name]:.3g}" for name in names if _is_number(entry.metrics.get(name)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(prog="rlhf-status", description="Show what runs, what is done and what failed.")
    parser.add_argument("--root", type=Path, default=Path("."), help="project folder (default: the present one)")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="refresh until interrupted")
    return parser.parse_args(arguments)


def show(args: argparse.Namespace) -> None:
    """Print the table once, or keep it up to date until Ctrl-C.

    Raises:
        UserError: the project folder does not exist, or the interval is not positive.
    """
    if not args.root.is_dir():
        raise UserError(f"--root {args.root}: no such folder; name the folder that holds results/ and state/")
    if args.watch is not None and args.watch <= 0:
        raise UserError(f"--watch is {args.watch:g}; give a positive number of seconds")
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    if args.watch is None:
        console.print(render(read_status(args.root), args.root))
        return
    with Live(console=console, auto_refresh=False) as live:
        try:
            while True:
                live.update(render(read_status(args.root), args.root), refresh=True)
                time.sleep(args.watch)
        except KeyboardInterrupt:
            return


def main() -> None:
    """Entry point of the console script `rlhf-status`."""
    run_script(lambda: show(parse_args()))
