"""A whole sweep through the real profile, with a Slurm that runs nothing (stub_slurm.py): jobs in flight, files, time.

    python benchmarks/in_flight.py --jobs 200 1000 > benchmarks/in_flight.json

Snakemake, its Slurm plugin, the profile and the workflow are the real ones; what a stage would compute is not. A job is
in the queue for 20 seconds, and the main process asks for states every few seconds instead of every 20 to 180.
"""

from __future__ import annotations

import argparse
import bisect
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from scale import ROOT, configuration
from stub_slurm import JOB_SECONDS

IMPATIENT = ROOT / "tests/slurm/impatient.py"  # Snakemake that asks every three seconds
STUB = Path(__file__).with_name("stub_slurm.py")
COMMANDS = ("sbatch", "squeue", "scontrol", "sinfo", "sacct", "sacctmgr", "scancel", "python")


def run(runs: int, jobs: int, folder: Path) -> dict[str, Any]:
    """Run the sweep to its end and count."""
    (folder / "bin").mkdir()
    for name in COMMANDS:
        command = folder / "bin" / name
        command.write_text(f'#!/bin/sh\nexec {sys.executable} {STUB} {name} "$@"\n')
        command.chmod(0o755)
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration(runs)), encoding="utf-8")
    ledger, said = folder / "ledger", folder / "said"
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "STUB_LEDGER": str(ledger), "PATH": path, "PYTHONPATH": str(ROOT / "workflow")}
    command = [sys.executable, str(IMPATIENT), "--snakefile", str(ROOT / "Snakefile"), "--jobs", str(jobs)]
    command += ["--profile", str(ROOT / "profiles/slurm"), "--configfile", "config.yaml", "--quiet", "rules"]
    command += ["--slurm-init-seconds-before-status-checks", "1"]
    start = time.time()
    with said.open("w") as output:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=output, check=False)
    if done.returncode:
        sys.exit(f"Snakemake ended with {done.returncode}:\n{said.read_text()[-5000:]}")
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    starts = [json.loads(line)[0] for line in ledger.read_text().splitlines()]
    in_queue = [place + 1 - bisect.bisect_left(starts, at - JOB_SECONDS) for place, at in enumerate(starts)]
    files = [path for path in folder.rglob("*") if path.is_file() and (folder / "bin") not in path.parents]
    return {
        "runs": runs,
        "jobs_limit": jobs,
        "submitted": len(starts),
        "most_in_queue": max(in_queue),
        "minutes": round((time.time() - start) / 60, 1),
        "submitted_per_minute": round(60 * len(starts) / (time.time() - start)),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime),
        "largest_process_mb": round(usage.ru_maxrss * 1024 / 1e6),
        "files": len(files),
        "megabytes_of_snakemakes_own": round(
            sum(file.stat().st_size for file in files if ".snakemake" in file.parts) / 1e6
        ),
    }


def main() -> None:
    """Run each size in a fresh folder and print the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=int, nargs="+", help="runs of the sweep")
    parser.add_argument("--jobs", type=int, default=20, help="`jobs` of the profile")
    args = parser.parse_args()
    results = []
    for runs in args.runs:
        with tempfile.TemporaryDirectory(prefix="in-flight-") as folder:
            results.append(run(runs, args.jobs, Path(folder)))
    json.dump(results, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
