"""Are the outputs of stages what they were when they were made?

Every finished stage lists the hashes of its files in its manifest; they are computed again and compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlhf.errors import UserError
from rlhf.phases import PHASES
from rlhf.records.experiment import MODEL_ROLES, STAGES, read_provenance
from rlhf.records.manifest import MANIFEST, changes


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
        patterns = ("resources/models/*/model", *(f"results/{kind}/*/model" for kind in PHASES))
        found = {model.parent for pattern in patterns for model in root.glob(pattern)}
        if not found:
            raise UserError(f"{root.resolve()}: no finished stage here; run snakemake, or name the folder with --root")
        return sorted(found)
    links = root / "results/experiments" / experiment / STAGES
    if not links.is_file():
        known = sorted(path.parent.name for path in root.glob(f"results/experiments/*/{STAGES}"))
        raise UserError(f"{experiment}: no such finished experiment; there are: {', '.join(known) or 'none'}")
    used = {(role, stage["id"]) for run in read_provenance(links)["runs"] for role, stage in run["stages"].items()}
    models = {root / "resources/models" / id for role, id in used if role in MODEL_ROLES}
    stages = {root / "results" / role / id for role, id in used if role in PHASES}
    return sorted(models | stages)


def check(folder: Path) -> Damage | None:
    """Hash a stage's files again; None where all are as its manifest says."""
    if not (folder / MANIFEST).exists():
        return Damage(folder, (f"{MANIFEST} is missing: the stage was not finished",))
    try:
        missing, changed = changes(folder)
    except UserError:
        return Damage(folder, (f"{MANIFEST} is broken",))
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
    (damage.folder / MANIFEST).unlink(missing_ok=True)
