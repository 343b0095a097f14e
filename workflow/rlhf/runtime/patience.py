"""`sbatch` and `sacct` for Snakemake's Slurm plugin (2.8), which gives up where a person would ask again.

While Snakemake submits jobs, the commands in workflow/scripts/slurm stand before Slurm's own. They end up here.

- sbatch: to the plugin a refused submission is a failed attempt at the stage, and the next ones follow within seconds.
  A full queue and a controller that is away are waited out: in both cases nothing was submitted.
- sacct: where the controller does not answer at the start of a status check, the plugin asks sacct to the end of that
  check. Without accounting there never is an answer; with it, the plugin takes a state such as "CANCELLED by 0" for
  that of a running job. The answer here is the queue's, and accounting adds the jobs that have left the queue.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

# What Slurm says where nothing was submitted, and will be later. A submission that timed out is not among it: such a
# job may be in the queue.
WAITED_OUT = re.compile(r"\w*Submit\w*Limit|Unable to contact slurm controller|temporarily unable to accept")
ASK_AGAIN_SECONDS, SAY_AGAIN_SECONDS, PATIENCE_SECONDS = 10, 1800, 86400
QUERY_SECONDS = 20  # the plugin's own patience with one answer is 60 s


def main(stand_in: str, *arguments: str) -> int:
    """Do what Slurm's command of the same name would do; its exit status.

    Args:
        stand_in: path of the command that was called.
        arguments: of it.
    """
    own, name = os.path.split(stand_in)
    folders = os.environ["PATH"].split(os.pathsep)
    others = os.pathsep.join(folder for folder in folders if os.path.realpath(folder) != os.path.realpath(own))
    real = shutil.which(name, path=others)
    if name == "sacct" and "--name" in arguments:
        return tell_states(arguments[arguments.index("--name") + 1], [real, *arguments] if real else [])
    if real is None:
        print(f"{name}: not found", file=sys.stderr)
        return 127
    if name == "sbatch":
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C would lose the number of a job that was just submitted
        return submit([real, *arguments], sys.stdin.read() if "/dev/stdin" in arguments else "")
    os.execv(real, [real, *arguments])


def submit(command: list[str], script: str) -> int:
    """Submit a job, waiting while the queue is full or the controller away; the exit status.

    Args:
        command: the real sbatch and its arguments.
        script: what it reads from its input.
    """
    start, said = time.monotonic(), -float(SAY_AGAIN_SECONDS)
    while True:
        done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
        refusal = WAITED_OUT.search(done.stderr) if done.returncode else None
        waited = time.monotonic() - start
        if refusal is None or waited > PATIENCE_SECONDS or not snakemake_lives():
            print(done.stdout, end="")
            print(done.stderr, end="", file=sys.stderr)
            return done.returncode
        if waited - said >= SAY_AGAIN_SECONDS:
            said = waited
            tell(
                f"A job waits to be submitted, Slurm says: {refusal[0]}. It is tried again every {ASK_AGAIN_SECONDS} s."
            )
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        time.sleep(ASK_AGAIN_SECONDS)
        signal.signal(signal.SIGINT, before)


def tell_states(name: str, accounting: list[str]) -> int:
    """Print `ID|STATE` of all jobs of a name; the exit status is not 0 where the queue is not known.

    Args:
        name: of the jobs.
        accounting: the real sacct and its arguments; empty where there is none.
    """
    queue = ask(["squeue", "--states=all", "--noheader", "--format=%i|%T", "--name", name])
    if queue is None:
        return 1
    ended = (ask(accounting) if accounting else None) or ""  # off or away: the queue's answer then stands alone
    states = dict(line.split("|", 1) for line in ended.splitlines())
    states |= dict(line.split("|", 1) for line in queue.splitlines())
    for job, state in states.items():
        print(f"{job}|{state.split()[0]}")
    return 0


def ask(command: list[str]) -> str | None:
    """What a command prints; None where it fails or does not answer."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=QUERY_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        print(error, file=sys.stderr)
        return None
    return done.stdout


def snakemake_lives() -> bool:
    """Whether the Snakemake that wants the job is still there; nobody else would watch it."""
    return psutil.pid_exists(int(os.environ["RLHF_SNAKEMAKE"]))


def tell(message: str) -> None:
    """Say something on Snakemake's screen: what a submission prints, the plugin shows when it has ended."""
    try:
        with Path(f"/proc/{os.environ['RLHF_SNAKEMAKE']}/fd/2").open("a", encoding="utf-8") as screen:
            print(message, file=screen, flush=True)
    except OSError:  # such as a socket, which can't be opened; the job is worth more than the message
        print(message, file=sys.stderr)


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
