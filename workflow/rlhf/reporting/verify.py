"""`rlhf-verify`: are the outputs of an experiment what they were when they were made?

Every finished stage lists the hashes of its files in its manifest; they are computed again and compared.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from rlhf.errors import UserError
from rlhf.runtime.files import sha256_file
from rlhf.runtime.logging import run_script

TRAINED = ("sft", "reward", "ppo")


@dataclass(frozen=True)
class Damage:
    """A stage whose files are not what its manifest says."""

    folder: Path
    problems: tuple[str, ...]


def stage_folders(root: Path, experiment: str | None) -> list[Path]:
    """Folders of stages and models with hashes, in order.

    Args:
        root: project folder.
        experiment: limits them to the stages of one experiment; None takes all.

    Raises:
        UserError: the experiment has no results, or the folder has none at all.
    """
    if experiment is None:
        patterns = ("resources/models/*/model", *(f"results/{kind}/*/model" for kind in TRAINED))
        found = {model.parent for pattern in patterns for model in root.glob(pattern)}
        if not found:
            raise UserError(f"{root.resolve()}: no finished stage here; run snakemake, or name the folder with --root")
        return sorted(found)
    links = root / "results/experiments" / experiment / "stages.json"
    if not links.is_file():
        known = sorted(path.parent.name for path in root.glob("results/experiments/*/stages.json"))
        raise UserError(f"{experiment}: no such finished experiment; there are: {', '.join(known) or 'none'}")
    runs = json.loads(links.read_text(encoding="utf-8"))["runs"]
    used = {(kind, stage["id"]) for run in runs for kind, stage in run["stages"].items()}
    models = {root / "resources/models" / id for kind, id in used if kind in ("policy", "reward_model")}
    stages = {root / "results" / kind / id for kind, id in used if kind in TRAINED}
    return sorted(models | stages)


def check(folder: Path) -> Damage | None:
    """Hash a stage's files again; None where all are as its manifest says."""
    file = folder / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        outputs: dict[str, str] = manifest["outputs"]
    except FileNotFoundError:
        return Damage(folder, ("manifest.json is missing: the stage was not finished",))
    except (ValueError, KeyError, TypeError):
        return Damage(folder, ("manifest.json is broken",))
    problems = tuple(_problems(folder, outputs))
    return Damage(folder, problems) if problems else None


def _problems(folder: Path, outputs: dict[str, str]) -> Iterator[str]:
    for name, digest in outputs.items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
        elif sha256_file(path) != digest:
            yield f"{name} has changed"


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(
        prog="rlhf-verify", description="Compare the files of finished stages with the hashes in their manifests."
    )
    parser.add_argument("experiment", nargs="?", help="name of an experiment (default: everything in the folder)")
    parser.add_argument("--root", type=Path, default=Path("."), help="project folder (default: the present one)")
    parser.add_argument("--discard", action="store_true", help="remove damaged stages, so that snakemake remakes them")
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
            shutil.rmtree(damage.folder)
    if damaged and not args.discard:
        raise UserError(
            f"{len(damaged)} stage(s) are damaged; `rlhf-verify --discard` removes them, and the next snakemake makes "
            "them again, and only them"
        )


def main() -> None:
    """Entry point of the console script `rlhf-verify`."""
    run_script(lambda: verify(parse_args()))
