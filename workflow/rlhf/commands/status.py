"""`rlhf-status`: what waits, what is running, what is done, what failed, in one table on the terminal."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlhf.errors import UserError
from rlhf.reporting.slurm import queue
from rlhf.reporting.stage_status import StageStatus, read_status
from rlhf.runtime.logging import run_script
from rlhf.runtime.progress import format_seconds

PIPE_WIDTH = 200
KEY_METRICS = {
    "sft": ("loss", "perplexity"),
    "evaluate_sft": ("loss", "perplexity"),
    "reward": ("loss", "accuracy"),
    "evaluate_reward": ("accuracy", "gold_accuracy"),
    "baseline": ("score_mean", "gold_mean"),
    "ppo": ("score", "kl", "gold"),
    "evaluate_ppo": ("win_rate", "gold_win_rate", "kl"),
}
STYLES = {
    "queued": "dim",
    "starting": "cyan",
    "running": "cyan",
    "done": "green",
    "failed": "bold red",
    "interrupted": "yellow",
    "stalled": "bold yellow",
    "unreadable": "red",
}


def status_table(entries: Sequence[StageStatus], root: Path, problem: str = "") -> RenderableType:
    """The table, with what is known about waiting, failed and stalled stages below it, and what could not be asked."""
    if not entries:
        return Text(
            f"Nothing has run yet in {root.resolve()}. Start with `snakemake`, and look again. {problem}".strip()
        )
    table = Table(caption=_counts(entries), caption_justify="left")
    for name, justify in (("stage", "left"), ("ID", "left"), ("status", "left")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("", width=12)
    table.add_column("tokens/s", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("memory", justify="right", no_wrap=True)
    on_cluster = any(entry.job for entry in entries)
    if on_cluster:
        table.add_column("job", no_wrap=True)
        table.add_column("node", no_wrap=True)
    on_gpus = any(entry.gpus for entry in entries)
    if on_gpus:
        table.add_column("GPUs", no_wrap=True)
    table.add_column("metrics", no_wrap=True)
    for entry in entries:
        where: list[RenderableType] = [entry.job, Text(entry.node)] if on_cluster else []
        where += [Text(entry.gpus)] if on_gpus else []
        table.add_row(*_cells(entry), *where, Text(key_metrics(entry)))
    notes = [
        Text(f"{entry.stage} {entry.id}: {entry.note}", STYLES.get(entry.status, "")) for entry in entries if entry.note
    ]
    return Group(table, *notes, *([Text(problem, "yellow")] if problem else []))


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
        _memory(entry),
    ]


def _time(entry: StageStatus) -> str:
    if entry.seconds is None:
        return ""
    return format_seconds(entry.seconds) if entry.status == "done" else f"{format_seconds(entry.seconds)} left"


def _memory(entry: StageStatus) -> str:
    """Peak of a process against what the job asked for on a node, in GB."""
    used = "" if entry.peak_rss is None else f"{entry.peak_rss / 1e9:.1f}"
    return used if entry.mem_mb is None else f"{used} / {entry.mem_mb / 1e3:.1f} GB".strip()


def key_metrics(entry: StageStatus) -> str:
    """The few metrics that tell how a stage is doing; those not measured are left out."""
    found = [(name, entry.metrics.get(name)) for name in KEY_METRICS.get(entry.stage, ())]
    return "  ".join(f"{name} {value:.3g}" for name, value in found if isinstance(value, int | float))


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

    def table() -> RenderableType:
        jobs, problem = queue(args.root)
        return status_table(read_status(args.root, jobs=jobs), args.root, problem)

    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    if args.watch is None:
        console.print(table())
        return
    with Live(console=console, auto_refresh=False) as live:
        try:
            while True:
                live.update(table(), refresh=True)
                time.sleep(args.watch)
        except KeyboardInterrupt:
            return


def main() -> None:
    """Entry point of the console script `rlhf-status`."""
    run_script(lambda: show(parse_args()))


if __name__ == "__main__":
    main()
