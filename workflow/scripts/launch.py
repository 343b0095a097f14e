"""Start a stage's script: one process or several, by itself, by the deepspeed launcher, or by srun in a Slurm job."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from rlhf.config.specfile import read_execution
from rlhf.runtime.launch import launch, take_devices
from rlhf.runtime.logging import run_script


def parse_args() -> argparse.Namespace:
    """Arguments of the command line; what the launcher needs of the script's own arguments is read from them."""
    parser = argparse.ArgumentParser(description=__doc__, usage="%(prog)s script.py ARGUMENTS")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="script and its arguments")
    args = parser.parse_args()
    stage = argparse.ArgumentParser()
    stage.add_argument("--execution", type=json.loads, required=True)
    stage.add_argument("--output", type=Path, required=True)
    stage.parse_known_args(args.words, args)
    return args


def main(args: argparse.Namespace) -> None:
    """Become the launched program, so that signals and the exit status are its own."""
    execution = read_execution(args.execution)
    claim = take_devices(execution, args.output, os.environ)
    start = launch(execution, args.words, args.output, os.environ, claim)
    os.execvpe(start.command[0], start.command, start.environment)


if __name__ == "__main__":
    run_script(lambda: main(parse_args()))
