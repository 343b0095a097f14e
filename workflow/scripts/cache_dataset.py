"""Fetch or make a dataset, and bring its rows into the form prompt / chosen / rejected."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf.config.specfile import read_spec
from rlhf.config.specification import DatasetSpecification
from rlhf.data.dataset import cache_dataset
from rlhf.runtime.logging import run_script


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=Path, required=True, help="spec.yaml of the dataset")
    parser.add_argument("--place", required=True, help="where the configuration defines it, for messages")
    parser.add_argument("--output", type=Path, required=True, help="resources/datasets/ID, where the rows go")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Cache the dataset."""
    spec = read_spec(DatasetSpecification, args.spec)
    cache_dataset(spec.settings, args.output, args.place)


if __name__ == "__main__":
    run_script(lambda: main(parse_args()))
