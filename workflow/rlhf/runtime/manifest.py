"""The manifest of a stage: what was made, from what, by which code, where."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Unpack, cast

from rlhf.config.specification import AnySpecification
from rlhf.files import sha256_file, sha256_tree
from rlhf.records.manifest import MANIFEST, Facts, Manifest, Placement, write_manifest
from rlhf.records.plan import MEMORY_PLAN
from rlhf.runtime.devices import VISIBLE
from rlhf.runtime.folders import leftovers

WORKFLOW = Path(__file__).resolve().parents[2]
NOT_OUTPUTS = (MANIFEST, "spec.yaml", MEMORY_PLAN)  # the last may be made anew
PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "peft", "tokenizers", "numpy", "pandas", "snakemake")


def code_hash(workflow: Path = WORKFLOW) -> str:
    """Hash of the library and the scripts; a result made by other code is reported as such."""
    digest = hashlib.sha256()
    for file in sorted([*workflow.glob("rlhf/**/*.py"), *workflow.glob("scripts/*.py")]):
        digest.update(f"{file.relative_to(workflow).as_posix()}\0{sha256_file(file)}\n".encode())
    return "sha256:" + digest.hexdigest()


def utc_now() -> datetime:
    """The present time, with its zone."""
    return datetime.now(UTC)


def placement() -> Placement:
    """Where this process runs: its Slurm job, and the GPUs that its stage was given."""
    found: Placement = {}
    if job := os.environ.get("SLURM_JOB_ID"):
        found["slurm_job_id"] = job
    if gpus := os.environ.get(VISIBLE):
        found["gpus"] = gpus
    return found


def seal(
    folder: Path, started: datetime, spec: AnySpecification, inputs: dict[str, str], **facts: Unpack[Facts]
) -> None:
    """Write `manifest.json` into a folder that holds all outputs of a stage: it is then finished.

    Args:
        folder: results/<stage>/<id>/ with all its outputs.
        started: when the stage began.
        spec: the stage's specification.
        inputs: name -> fingerprint of what it read.
        facts: what else there is to say.
    """
    for leftover in leftovers(folder):  # of attempts that were killed: the stage is this process's alone
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    finished = utc_now()
    outputs = {name: digest for name, digest in sha256_tree(folder).items() if name not in NOT_OUTPUTS}
    write_manifest(
        folder,
        {
            **describe(spec, inputs, **facts),
            "outputs": outputs,
            **placement(),
            "started": started.isoformat(),
            "finished": finished.isoformat(),
            "wall_seconds": round((finished - started).total_seconds(), 3),
        },
    )


def describe(spec: AnySpecification, inputs: dict[str, str], **facts: Unpack[Facts]) -> Manifest:
    """The entries of a manifest that are known before there are outputs; arguments as in `seal`."""
    return {
        "schema_version": 1,
        "stage": spec.stage,
        "id": spec.id,
        "seed": spec.seed,
        "spec": spec.model_dump(mode="json"),
        "inputs": inputs,
        "code": {"hash": code_hash(), "commit": _commit()},
        "packages": _package_versions(),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "command": sys.argv,
        **cast(Manifest, facts),  # a part of one
    }


def _package_versions() -> dict[str, str]:
    """Versions of the packages that are there: a stage run by hand does not need Snakemake."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _commit() -> str | None:
    """Commit of the checkout, with a mark for local changes; None outside a git checkout."""
    try:
        head = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", ".")
    except (subprocess.SubprocessError, FileNotFoundError):
        return None
    return f"{head}-modified" if changed else head


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(WORKFLOW), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
