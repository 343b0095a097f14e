"""Kills training stages at random moments until they are done all the same, and compares what they end with.

python -m benchmarks.kills        (from the repository; about 20 minutes)

Writes benchmarks/kills.md. The stages are those of the tests' small project, slowed down so that there is something to
hit; the building blocks are those of tests/faults, which has the same in short.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tabulate import tabulate
from tests.faults.campaigns import PROBLEMS, Campaign, DirectCampaign, lost_steps
from tests.faults.surroundings import FullDiskCampaign, RanksCampaign, SnakemakeCampaign
from tests.project import Project, complete

KINDS = ("sft", "reward", "ppo")
RESULT = Path(__file__).with_suffix(".md")


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="of trainers that run alone, of each stage, at least")
    parser.add_argument("--jobs", type=int, default=len(KINDS), help="stages at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of what is damaged")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--output", type=Path, default=RESULT, help="file of the result")
    return parser.parse_args()


def run_campaigns(project: Project, kind: str, args: argparse.Namespace, finish: Callable[[Campaign], None]) -> None:
    """All campaigns of one kind of stage, one after the other; `finish` is told of each that has ended."""
    random_numbers = random.Random(f"{args.seed} {kind}")

    def run(cls: type[Campaign], name: str) -> int:
        campaign = cls(project, kind, args.folder / f"{kind}-{name}", random_numbers)
        campaign.run()
        finish(campaign)
        return len(campaign.struck)

    kills = 0
    while kills < args.kills:
        kills += run(DirectCampaign, f"direct-{kills}")
    run(SnakemakeCampaign, "snakemake")
    if os.geteuid() == 0:
        run(FullDiskCampaign, "disk")
    run(RanksCampaign, "ranks")


def report(done: list[Campaign], options: str, seconds: float) -> str:
    """The result as Markdown."""
    struck = sum(len(campaign.struck) for campaign in done)
    problems = [(name, sum(len(campaign.problems[name]) for campaign in done)) for name in PROBLEMS]
    parts = [
        "# Killed at random, and what came of it",
        f"Written by `python -m benchmarks.kills {options}` on {platform.machine()} with {os.cpu_count()} cores, "
        f"in {seconds / 60:.0f} minutes: {struck} faults in {len(done)} runs of stages of the tests' small project, "
        "each started again until it was done.",
        "Each must be 0. Results are compared, by the hashes of all weights and by the metrics without those of the "
        "clock, with a run that nothing broke.",
        tabulate(problems, ("", "count"), tablefmt="github"),
        *_details(done),
        "## What was hit",
        tabulate(_moments(done), ("stage", "fault", "while in", "times"), tablefmt="github"),
        "## What checkpoints cost",
        "Of runs without pauses that save after each step. The share at the default interval (10 minutes) follows from "
        "the seconds of one.",
        tabulate(_costs(done), COST_COLUMNS, tablefmt="github", floatfmt=("", ".0f", ".3f", ".1%", ".3%")),
        "## Each fault",
        "A dash: it had not come to its steps yet, or it was finished already, and its results came back.",
        tabulate(_faults(done), FAULT_COLUMNS, tablefmt="github", floatfmt=".1f"),
        "",
    ]
    return "\n\n".join(parts)


COST_COLUMNS = ("stage", "written", "seconds of one", "share of time when saving each step", "at the default interval")
FAULT_COLUMNS = (
    "run", "stage", "saved every", "fault", "while in", "steps done", "went on from", "done again", "gone after (s)"
)  # fmt: skip


def _details(done: list[Campaign]) -> list[str]:
    found = [
        f"- {campaign.name}, {campaign.kind}: {name}: {text}"
        for campaign in done
        for name, texts in campaign.problems.items()
        for text in texts
    ]
    return ["\n".join(found)] if found else []


def _moments(done: list[Campaign]) -> list[tuple[str, str, str, int]]:
    hits = Counter(
        (campaign.kind, attempt.fault or "", attempt.doing(campaign.kind))
        for campaign in done
        for attempt in campaign.struck
    )
    return [(*key, times) for key, times in sorted(hits.items())]


def _costs(done: list[Campaign]) -> list[tuple[str, int, float, float, float]]:
    rows = []
    for campaign in done:
        if isinstance(campaign, DirectCampaign) and campaign.measured is not None:
            facts = campaign.measured.manifest["checkpoints"]
            each = facts["seconds"] / facts["written"]
            rows.append((campaign.kind, facts["written"], each, facts["share_of_time"], each / 600))
    return rows


def _faults(done: list[Campaign]) -> list[tuple[object, ...]]:
    rows = []
    for number, campaign in enumerate(done, start=1):
        lost = lost_steps(campaign.attempts)
        for place, attempt in enumerate(campaign.attempts):
            if attempt in campaign.struck:
                later = [other.restored for other in campaign.attempts[place + 1 :] if other.restored is not None]
                went_on = later[0] if later else "-"
                reached = "-" if attempt.reached is None else attempt.reached
                doing = attempt.doing(campaign.kind)
                rows.append(
                    (number, campaign.kind, campaign.interval, f"{campaign.name}: {attempt.fault}", doing, reached)
                    + (went_on, lost[place], attempt.seconds)
                )
    return rows


def main(args: argparse.Namespace) -> None:
    """Run all campaigns; the result is written after each, so that a run that is stopped leaves what it has found."""
    args.folder = args.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    start, options = time.monotonic(), f"--kills {args.kills} --seed {args.seed}"
    (args.folder / "project").mkdir(parents=True)
    project, done, lock = complete(args.folder / "project"), [], threading.Lock()

    def finish(campaign: Campaign) -> None:
        found = {name: texts for name, texts in campaign.problems.items() if texts}
        print(campaign.name, campaign.kind, len(campaign.struck), found or "as it must be", flush=True)
        with lock:
            done.append(campaign)
            args.output.write_text(report(done, options, time.monotonic() - start), encoding="utf-8")

    with ThreadPoolExecutor(args.jobs) as pool:
        for each in [pool.submit(run_campaigns, project, kind, args, finish) for kind in KINDS]:
            each.result()


if __name__ == "__main__":
    main(parse_args())
