"""Divide the rows of a cached dataset among the phases."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf.config.specfile import read_spec
from rlhf.config.specification import SplitSpecification
from rlhf.data.split import split_dataset
from rlhf.phases import PHASES
from rlhf.runtime.logging import run_script


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=Path, required=True, help="spec.yaml of the split")
    parser.add_argument("--dataset", type=Path, required=True, help="resources/datasets/ID")
    parser.add_argument("--output", type=Path, required=True, help="results/split/ID, where the index files go")
    parser.add_argument(
        "--phases", nargs="*", default=PHASES, help="that are going to be run: one of them without a row is an error"
    )
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Split."""
    settings = read_spec(SplitSpecification, args.spec).settings
    split_dataset(args.dataset, settings.data_split, settings.split_seed, args.output, args.phases)


if __name__ == "__main__":
    run_script(lambda: main(parse_args()))
