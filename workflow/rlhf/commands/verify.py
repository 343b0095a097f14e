"""`rlhf-verify`: are the outputs of an experiment what they were when they were made?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from rlhf.errors import UserError
from rlhf.reporting.verify import check, discard, stage_folders
from rlhf.runtime.logging import run_script


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(
        prog="rlhf-verify", description="Compare the files of finished stages with the hashes in their manifests."
    )
    parser.add_argument("experiment", nargs="?", help="name of an experiment (default: everything in the folder)")
    parser.add_argument("--root", type=Path, default=Path("."), help="project folder (default: the present one)")
    parser.add_argument("--discard", action="store_true", help="mark damaged stages as unfinished, for snakemake")
    return parser.parse_args(arguments)


def verify(args: argparse.Namespace) -> None:
    """Print what was found.

    Raises:
        UserError: a stage is damaged and was not discarded, or there is nothing to verify.
    """
    console = Console(stderr=True)
    folders = stage_folders(args.root, args.experiment)
    found = [check(folder) for folder in track(folders, "hashing", console=console, transient=True)]
    damaged = [damage for damage in found if damage is not None]
    print(f"{len(folders) - len(damaged)} of {len(folders)} stages are as they were made")
    for damage in damaged:
        print(f"{damage.folder}: {'; '.join(damage.problems)}")
        if args.discard:
            discard(damage)
    if damaged and not args.discard:
        raise UserError(
            f"{len(damaged)} stage(s) are damaged; `rlhf-verify --discard` marks them as unfinished, and the next "
            "snakemake makes them again, and only them"
        )


def main() -> None:
    """Entry point of the console script `rlhf-verify`."""
    run_script(lambda: verify(parse_args()))


if __name__ == "__main__":
    main()
