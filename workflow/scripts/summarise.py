"""Write the tables, figures and links of one experiment from the files of its stages."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf.files import write_text
from rlhf.records.experiment import read_runs
from rlhf.reporting.collect import read_experiment
from rlhf.reporting.summary import summarise
from rlhf.runtime.logging import get_logger, run_script
from rlhf.runtime.manifest import code_hash

logger = get_logger("rlhf.summarise")


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--experiment", required=True, help="name of the experiment")
    parser.add_argument("--runs", type=Path, required=True, help='JSON: [{"point": {}, "seed": 1, "stages": {}}, ...]')
    parser.add_argument("--root", type=Path, default=Path("."), help="folder with results/, resources/, benchmarks/")
    parser.add_argument("--output", type=Path, required=True, help="folder to write into")
    parser.add_argument("--samples", type=int, required=True, help="sample answers shown per sweep point")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Read all stages first, then write: a missing file leaves the old tables as they are."""
    experiment = read_experiment(args.experiment, read_runs(args.runs), args.root)
    files = summarise(experiment, code_hash(), args.output, args.samples)
    for name, text in files.items():
        write_text(args.output / name, text)
    logger.info("%s: %d runs, %d files in %s", args.experiment, len(experiment.runs), len(files), args.output)


if __name__ == "__main__":
    run_script(lambda: main(parse_args()))
