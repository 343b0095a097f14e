"""A trainer in miniature: counts steps until it is told to finish, saves on SIGTERM, goes on from what it saved.

It notes each of its starts, and refuses to run beside itself.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

RESUME_ME = 75


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--execution")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--save-always", action="store_true", help="after each step, not on SIGTERM only")
    parser.add_argument("--fill-mb", type=int, default=0, help="memory to take")
    parser.add_argument("--fail", action="store_true")
    parser.add_argument("--save-seconds", type=float, default=0.0, help="how long saving takes after SIGTERM")
    args = parser.parse_args()
    args.state.mkdir(parents=True, exist_ok=True)
    checkpoint, starts = args.state / "checkpoint", args.state / "starts.jsonl"
    step = int(checkpoint.read_text()) if checkpoint.exists() else 0
    lock = (args.state / "lock").open("w")
    note = {
        "job": os.environ["SLURM_JOB_ID"],
        "node": os.environ["SLURMD_NODENAME"],
        "step": step,
        "parent": Path(f"/proc/{os.getppid()}/comm").read_text().strip(),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "cpus": os.environ["OMP_NUM_THREADS"],
        "routes": Path("/proc/net/route").read_text().splitlines()[1:],
    }
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        note["refused"] = True
    with starts.open("a") as stream:
        stream.write(json.dumps(note) + "\n")
    if args.fail or "refused" in note:
        sys.exit(1)

    def note_step(file: Path) -> None:
        """Whole, whenever it is read."""
        beside = file.with_suffix(".new")
        beside.write_text(str(step))
        beside.replace(file)

    asked: list[float] = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(time.monotonic()))
    memory = []
    while not (args.state / "finish").exists():
        time.sleep(0.1)
        step += 1
        note_step(args.state / "step")
        if args.save_always:
            note_step(checkpoint)
        if asked and time.monotonic() > asked[0] + args.save_seconds:
            note_step(checkpoint)
            (args.state / "asked").write_text(json.dumps([moment - asked[0] for moment in asked]))
            sys.exit(RESUME_ME)
        if len(memory) < args.fill_mb:
            memory.append(b"x" * 2**20 * 20)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "manifest.json").write_text(json.dumps({"step": step}))


if __name__ == "__main__":
    main()
