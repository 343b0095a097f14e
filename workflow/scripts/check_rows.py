"""Check that the limits of all stages of a run leave them rows, before any of them trains."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf.config.specfile import read_job
from rlhf.config.specification import TRAINED
from rlhf.files import write_json
from rlhf.planning.usable import usable_rows
from rlhf.runtime.logging import run_script


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=Path, nargs="+", required=True, help="spec.yaml of each training stage")
    parser.add_argument("--tokens", type=Path, nargs="+", required=True, help="results/tokens/ID of all their datasets")
    parser.add_argument("--split", type=Path, nargs="+", required=True, help="results/split/ID/rows of all these")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Count, and fail where nothing is left."""
    tokens = {folder.name: folder for folder in args.tokens}
    splits = {folder.parent.name: folder for folder in args.split}
    rows = usable_rows([read_job(TRAINED, spec) for spec in args.spec], tokens, splits)
    write_json(args.output, {"schema_version": 1, "rows": rows})


if __name__ == "__main__":
    run_script(lambda: main(parse_args()))
