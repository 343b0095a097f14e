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
from rlhf.records.manifest import MANIFEST, BaseModel, DataSource, Lineage, read_model_manifest

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
    hub, revision = _base_on_hub(results, kind, identifier)
    base: BaseModel = {
        "stage": kind,
        "id": identifier,
        "path": f"{folder}/{identifier}/model",
        "hub": hub,
        "revision": revision,
    }
    return {"base_model": base, "datasets": [_dataset(results, split) for split in upstream.split]}


def adapter_base(model: BaseModel) -> tuple[str, str | None]:
    """What an adapter's configuration calls its base: its name and revision on a hub, for others, or its folder here.

    A hub knows the model that training started from, not one that an earlier stage trained from that.
    """
    if model["stage"] == "model" and model["hub"]:
        return model["hub"], model["revision"]
    return model["path"], None


def _base_on_hub(results: Path, kind: str, identifier: str) -> tuple[str | None, str | None]:
    """Name and revision of the pretrained model on a hub, as far as they are known."""
    if kind == "sft":
        sft = _spec(Specification[ResolvedSft, SftUpstream], results, kind, identifier)
        return _base_on_hub(results, "model", sft.upstream.model) if sft else (None, None)
    model = _spec(ModelSpecification, results, kind, identifier)
    hub = _hub(model.settings.source) if model else None
    if model is None or hub is None or isinstance(model.settings.source, str):
        return None, None
    manifest = results.parent / "resources/models" / identifier / MANIFEST
    commit = read_model_manifest(manifest).get("commit") if manifest.exists() else None
    return hub, commit or model.settings.source.revision


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
    }


def _hub(source: ModelSource | DatasetSource | str) -> str | None:
    return None if isinstance(source, str) else source.hub  # a model from scratch has no other source


def _spec(kind: type[SpecificationT], results: Path, folder: str, identifier: str) -> SpecificationT | None:
    path = results / folder / identifier / "spec.yaml"
    return read_spec(kind, path) if path.exists() else None
