"""The two cache rules' scripts, called as the rules call them, with the stand-in in the place of the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlhf.config.specification import (
    DatasetSpecification,
    ModelSpecification,
    ModelUpstream,
    NoUpstream,
    ResolvedDataset,
    ResolvedModel,
)
from tests.hub.fixture import Done, environment, run_script
from tests.hub.server import Hub
from tests.snakemake import ROOT

SCRIPTS = ROOT / "workflow/scripts"


@dataclass(frozen=True)
class Cached(Done):
    """A cache step that has ended, and the folder in which it wrote."""

    output: Path

    @property
    def manifest(self) -> Any:
        return json.loads((self.output / "manifest.json").read_text())

    @property
    def report(self) -> Any:
        return json.loads((self.output / "report.json").read_text())

    @property
    def message(self) -> str:
        """What a step says that fails: one message, and no traceback."""
        assert self.status == 2, self.log[-3000:]
        assert "Traceback" not in self.log
        assert not self.output.exists()
        return self.log[[found.start() for found in re.finditer("^error: ", self.log, re.MULTILINE)][-1] :]


def cache_model(
    work: Path,
    hub: Hub | None,
    source: dict[str, Any],
    home: str = "home",
    during: Callable[[int], None] | None = None,
    **variables: str,
) -> Cached:
    """Run cache_model in `work`; `variables` are the user's, and `during` is called with the process's number."""
    settings = ResolvedModel.model_validate({"source": source, "content": [] if "hub" in source else ["x"]})
    spec = ModelSpecification(
        schema_version=1, stage="model", id="x-00000000", seed=None, settings=settings, upstream=ModelUpstream()
    )
    return _run(work, hub, "model", spec.model_dump(mode="json"), work / home, variables, during)


def cache_dataset(work: Path, hub: Hub | None, source: dict[str, Any], home: str = "home", **variables: str) -> Cached:
    """Run cache_dataset in `work`; `variables` are the user's."""
    shape = source.pop("shape", {})
    settings = ResolvedDataset.model_validate({"source": source, **shape})
    spec = DatasetSpecification(
        schema_version=1, stage="dataset", id="x-00000000", seed=None, settings=settings, upstream=NoUpstream()
    )
    return _run(work, hub, "dataset", spec.model_dump(mode="json"), work / home, variables)


def _run(
    work: Path,
    hub: Hub | None,
    kind: str,
    spec: dict[str, Any],
    home: Path,
    variables: dict[str, str],
    during: Callable[[int], None] | None = None,
) -> Cached:
    folder = work / f"{kind}-step"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    output = folder / "resources/x-00000000"
    arguments = ["--spec", "spec.yaml", "--place", f"{kind}s.mine", "--output", str(output)]
    done = run_script(SCRIPTS / f"cache_{kind}.py", arguments, environment(hub, home, **variables), folder, during)
    return Cached(done.status, done.log, output)
