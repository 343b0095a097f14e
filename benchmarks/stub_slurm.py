"""Commands of a Slurm that runs nothing, and a `python` that only writes what a stage would (for in_flight.py).

    python stub_slurm.py sbatch ARGUMENTS

A job is in the queue for JOB_SECONDS; what it would write is there from the start. The file that STUB_LEDGER names has
one line for each submission: time, rule, ID.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
import time
from pathlib import Path

JOB_SECONDS = 20.0
STAGE = ["metrics.jsonl", "memory.json", "manifest.json", "model/config.json", "model/model.safetensors"]
WRITES = {
    "train": STAGE,
    "evaluate": ["evaluation.json", "memory.json", "samples.jsonl"],
    "sample": ["evaluation.json", "memory.json", "samples.jsonl"],
    "tokenize": ["train.tokens"],
}
TABLES = [
    *(f"{name}.html" for name in ("quality", "runs", "samples", "reward_parts", "checks", "memory")),
    *(f"{name}.html" for name in ("resources", "efficiency")),
    *(f"{name}.svg" for name in ("reward_model", "reward_vs_kl", "learning_curves", "memory")),
    "stages.json",
    "index.md",
]
PLAN = {"adaptations": [], "after_out_of_memory": [], "execution": {}, "resources": {"mem_mb": 1000}}


def ledger() -> Path:
    """The file of submissions."""
    return Path(os.environ["STUB_LEDGER"])


def write(folder: Path, names: list[str]) -> None:
    """Write files that are only there."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


def sbatch(arguments: tuple[str, ...]) -> None:
    """Take a job, write what it would, and say its number."""
    comment = arguments[arguments.index("--comment") + 1]
    rule, identifier = re.fullmatch(r"rule_(\w+?)_wildcards_(.+)", comment).groups()
    kind = {"tokenize_dataset": "tokens", "sample_baseline": "baseline"}.get(rule, rule.removeprefix("train_"))
    folder = Path("results", kind, identifier)
    write(folder, WRITES[rule.split("_")[0]])
    write(Path("benchmarks", kind), [f"{identifier}.jsonl"])
    with ledger().open("a+") as lines:
        fcntl.flock(lines, fcntl.LOCK_EX)
        lines.write(json.dumps([time.time(), rule, identifier]) + "\n")
        lines.flush()
        lines.seek(0)
        print(len(lines.readlines()))


def squeue(arguments: tuple[str, ...]) -> None:
    """Tell the states of all jobs."""
    if "--name" not in arguments or not ledger().exists():
        return
    for number, line in enumerate(ledger().read_text().splitlines(), start=1):
        done = time.time() - json.loads(line)[0] > JOB_SECONDS
        print(f"{number}|{'COMPLETED' if done else 'RUNNING'}")


def python(arguments: tuple[str, ...]) -> None:
    """Write what a script would that needs what stages compute; run any other."""
    script, output = Path(arguments[0]).name, Path(arguments[arguments.index("--output") + 1])
    if script == "plan_memory.py":
        output.write_text(json.dumps(PLAN))
    elif script in ("check_ppo.py", "check_rows.py"):
        output.write_text("{}")
    elif script == "summarise.py":
        write(output, TABLES)
    else:
        os.execv(sys.executable, [sys.executable, *arguments])


def main(name: str, *arguments: str) -> None:
    """Do what the command of this name would."""
    if name == "sbatch":
        sbatch(arguments)
    elif name == "squeue":
        squeue(arguments)
    elif name == "python":
        python(arguments)
    elif name == "scontrol":
        print("MinJobAge = 300 sec")
    elif name == "sinfo":
        print("8|500000|gpu:8")
    else:
        sys.exit(f"{name}: there is no accounting")


if __name__ == "__main__":
    main(*sys.argv[1:])
