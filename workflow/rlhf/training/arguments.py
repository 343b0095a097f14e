"""Command-line arguments that the stage scripts share."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rlhf.training.job import StagePaths


def stage_parser(description: str | None, **folders: str) -> argparse.ArgumentParser:
    """A parser for a stage script.

    Args:
        description: what the script does.
        folders: name -> help of the stage's own required path arguments.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--spec", type=Path, required=True, help="spec.yaml of the stage: what it computes")
    parser.add_argument("--execution", type=json.loads, required=True, help="how the stage runs, as JSON")
    parser.add_argument("--tokens", type=Path, nargs="+", required=True, help="results/tokens/ID of each dataset")
    parser.add_argument("--split", type=Path, nargs="+", required=True, help="results/split/ID of each dataset")
    parser.add_argument("--output", type=Path, required=True, help="results/STAGE/ID, where the results go")
    parser.add_argument("--state", type=Path, required=True, help="state/STAGE/ID, for the files of a running stage")
    parser.add_argument("--local_rank", type=int, default=0, help="set by the deepspeed launcher")
    for name, meaning in folders.items():
        parser.add_argument(f"--{name}", type=Path, required=True, help=meaning)
    return parser


def stage_paths(args: argparse.Namespace) -> StagePaths:
    """The parsed arguments that say where a stage reads and writes."""
    return StagePaths(args.tokens, args.split, args.output, args.state)
