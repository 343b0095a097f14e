"""Are the outputs of stages what they were when they were made?

Every finished stage lists the hashes of its files in its manifest; they are computed again and compared.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import UserError
from rlhf.files import sha256_file

TRAINED = ("sft", "reward", "ppo")


@dataclass(frozen=True)
class Damage:
    """A stage whose files are not what its manifest says."""

    folder: Path
    problems: tuple[str, ...]
    missing: tuple[str, ...] = ()


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
    missing = tuple(name for name in outputs if not (folder / name).is_file())
    present = (name for name in outputs if name not in missing)
    changed = tuple(name for name in present if sha256_file(folder / name) != outputs[name])
    problems = (*(f"{name} is missing" for name in missing), *(f"{name} has changed" for name in changed))
    return Damage(folder, problems, missing) if problems else None


def discard(damage: Damage) -> None:
    """Make a stage unfinished, so that the next snakemake makes it again, and nothing that was made from it.

    Only the manifest goes. The other files stay until then, and empty ones take the place of missing ones: Snakemake
    computes again whatever reads a file that is not there, also where its age is no reason to (`ancient`).
    """
    for name in damage.missing:
        stand_in = damage.folder / name
        stand_in.parent.mkdir(parents=True, exist_ok=True)
        stand_in.touch()
    (damage.folder / "manifest.json").unlink(missing_ok=True)
