"""How the workflow behaves with many runs: time to plan, jobs and files, from dry runs; nothing is trained.

    python benchmarks/scale.py 10 100 1000 > benchmarks/scale.json

A sweep of PPO settings over five seeds, as a study would have it: the SFT and reward models of a seed are shared.
Times are CPU seconds, which a busy machine does not change.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
SEEDS = 5
SUBMITTED = ("tokenize_", "train_", "evaluate_")  # the other rules are local
FILES_PER_JOB = 3  # Snakemake's metadata, the log, the benchmark
# Files of a finished stage: its declared outputs, with a model folder of two configs, weights and two of the tokenizer.
MODEL_FILES = 5
OUTPUTS = {"ppo": MODEL_FILES + 4, "sft": MODEL_FILES + 4, "reward": MODEL_FILES + 4, "evaluate_ppo": 3, "baseline": 3}


def configuration(runs: int) -> dict[str, Any]:
    """The embedded experiment with a grid of PPO settings: `runs` runs with five seeds."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))
    points = max(1, runs // SEEDS)
    rates = [1e-5 * (1 + step) for step in range(min(points, 20))]
    coefficients = [0.01 * (1 + step) for step in range(max(1, points // len(rates)))]
    sweep = {"ppo.kl_coefficient": coefficients, "ppo.actor.learning_rate": rates}
    config["experiments"] = {"study": {"seeds": list(range(SEEDS)), "sweep": sweep}}
    return config


def measured(command: list[str], folder: Path) -> tuple[str, float, float]:
    """Output, CPU seconds and peak memory (MB) of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout + done.stderr, round(seconds, 2), round(after.ru_maxrss * 1024 / 1e6)


def plan(runs: int, folder: Path) -> dict[str, Any]:
    """Measure a dry run of one size, and a Snakemake that only parses, as each job does twice."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(configuration(runs)), encoding="utf-8")
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--configfile", str(file)]
    _, parse, parse_memory = measured([*snakemake, "--list-rules"], folder)
    text, dry, memory = measured([*snakemake, "--dry-run", "--quiet", "rules"], folder)
    table = text.split("Job stats:")[1].split("\n\n")[0]
    jobs = {name: int(count) for name, count in (line.split() for line in table.splitlines()[3:])}
    submitted = sum(count for rule, count in jobs.items() if rule.startswith(SUBMITTED))
    kinds = {"ppo": "train_ppo", "sft": "train_sft", "reward": "train_reward", "evaluate_ppo": "evaluate_ppo"}
    outputs = sum(OUTPUTS[kind] * jobs[rule] for kind, rule in kinds.items()) + jobs["write_spec"]
    return {
        "runs": jobs["train_ppo"],
        "jobs": jobs["total"],
        "submitted_jobs": submitted,
        "files": outputs + FILES_PER_JOB * jobs["total"],
        "parse_cpu_seconds": parse,
        "parse_peak_mb": parse_memory,
        "dry_run_cpu_seconds": dry,
        "dry_run_peak_mb": memory,
    }


def main() -> None:
    """Measure each size in a fresh folder and print the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=int, nargs="+", help=f"runs of the sweep, multiples of {SEEDS}")
    results = []
    for runs in parser.parse_args().runs:
        with tempfile.TemporaryDirectory(prefix="scale-") as folder:
            results.append(plan(runs, Path(folder)))
    json.dump(results, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
