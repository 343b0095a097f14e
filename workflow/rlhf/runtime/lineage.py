"""Where a trained model comes from, by the specifications of the stages before it."""

from __future__ import annotations

from pathlib import Path

from rlhf.config.sources import DatasetSource, ModelSource
from rlhf.config.specfile import read_spec
from rlhf.config.specification import (
    DatasetSpecification,
    ModelSpecification,
    ResolvedSft,
    SftUpstream,
    Specification,
    SpecificationT,
    SplitSpecification,
    TrainingUpstream,
)
from rlhf.files import peek
from rlhf.records.manifest import MANIFEST, BaseModel, DataSource, Lineage, ModelManifest

RESULTS = Path("results")


def lineage(upstream: TrainingUpstream, results: Path = RESULTS) -> Lineage:
    """The model that a stage starts from, and its data.

    Names of a hub are in the specifications of models and datasets, which lie in the project. Names of local files stay
    out, because they can tell of a person or a machine.

    Args:
        upstream: of a training stage.
        results: the project's results/. A stage run by hand elsewhere lacks it, and then knows IDs only.

    Returns:
        For each dataset, only its split where the project's specifications are not there.
    """
    kind, identifier = upstream.start
    folder = "resources/models" if kind == "model" else "results/sft"
    base: BaseModel = {
        "stage": kind,
        "id": identifier,
        "path": f"{folder}/{identifier}/model",
        "hub": None,
        "revision": None,
    }
    model = _base(results, kind, identifier)
    if model is not None:
        spec, manifest = model
        source = manifest.get("source")
        base["hub"] = _hub(spec.settings.source)
        if base["hub"] and not isinstance(spec.settings.source, str):
            base["revision"] = (source["commit"] if source else None) or spec.settings.source.revision
        if source and source["license"]:
            base["license"] = source["license"]
        if precision := manifest.get("precision"):
            base["precision"] = sorted(precision, key=lambda name: -precision[name])
    return {"base_model": base, "datasets": [_dataset(results, split) for split in upstream.split]}


def adapter_base(model: BaseModel) -> tuple[str, str | None]:
    """What an adapter's configuration calls its base: its name and revision on a hub, for others, or its folder here.

    A hub knows the model that training started from, not one that an earlier stage trained from that.
    """
    if model["stage"] == "model" and model["hub"]:
        return model["hub"], model["revision"]
    return model["path"], None


def _base(results: Path, kind: str, identifier: str) -> tuple[ModelSpecification, ModelManifest] | None:
    """The specification of the published model below a stage, and what its manifest says, empty where it is away."""
    if kind == "sft":
        sft = _spec(Specification[ResolvedSft, SftUpstream], results, kind, identifier)
        return _base(results, "model", sft.upstream.model) if sft else None
    model = _spec(ModelSpecification, results, kind, identifier)
    if model is None:
        return None
    manifest: ModelManifest | None = peek(results.parent / "resources/models" / identifier / MANIFEST)
    return model, {} if manifest is None else manifest


def _dataset(results: Path, split: str) -> DataSource:
    spec = _spec(SplitSpecification, results, "split", split)
    if spec is None:
        return {"split": split}
    identifier = spec.upstream.dataset
    dataset = _spec(DatasetSpecification, results, "dataset", identifier)
    return {
        "split": split,
        "data_split": spec.settings.data_split,
        "split_seed": spec.settings.split_seed,
        "dataset": identifier,
        "hub": _hub(dataset.settings.source) if dataset else None,
        **_published(results.parent / "resources/datasets" / identifier / "report.json"),
    }


def _published(report: Path) -> DataSource:
    """The commit and the licence of a hub's dataset, as far as its report has them."""
    source: dict[str, str | None] = (peek(report) or {}).get("source", {})
    known: DataSource = {}
    if commit := source.get("commit"):
        known["commit"] = commit
    if licence := source.get("license"):
        known["license"] = licence
    return known


def _hub(source: ModelSource | DatasetSource | str) -> str | None:
    return None if isinstance(source, str) else source.hub  # a model from scratch has no other source


def _spec(kind: type[SpecificationT], results: Path, folder: str, identifier: str) -> SpecificationT | None:
    path = results / folder / identifier / "spec.yaml"
    return read_spec(kind, path) if path.exists() else None
