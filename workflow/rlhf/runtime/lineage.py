"""Where a trained model comes from, by the specifications of the stages before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

RESULTS = Path("results")


def lineage(spec: dict[str, Any], results: Path = RESULTS) -> dict[str, Any]:
    """The model that a stage starts from, and its data.

    Names of a hub are in the specifications of models and datasets, which lie in the project. Names of local files stay
    out, because they can tell of a person or a machine.

    Args:
        spec: of a training stage.
        results: the project's results/. A stage run by hand elsewhere lacks it, and then knows IDs only.

    Returns:
        `base_model` with `stage`, `id`, `path` (relative to the project) and `hub` (or None), and for each dataset
        `split` (its ID), and where known `dataset`, `hub`, `data_split` and `split_seed`.
    """
    upstream = spec["upstream"]
    kind = "model" if "model" in upstream else "sft"
    identifier = upstream[kind]
    folder = "resources/models" if kind == "model" else "results/sft"
    base = {
        "stage": kind,
        "id": identifier,
        "path": f"{folder}/{identifier}/model",
        "hub": _base_on_hub(results, kind, identifier),
    }
    return {"base_model": base, "datasets": [_dataset(results, split) for split in upstream["split"]]}


def _base_on_hub(results: Path, kind: str, identifier: str) -> str | None:
    spec = _spec(results, kind, identifier)
    if kind == "sft":
        return _base_on_hub(results, "model", spec["upstream"]["model"]) if spec else None
    return _hub(spec)


def _dataset(results: Path, split: str) -> dict[str, Any]:
    spec = _spec(results, "split", split)
    if not spec:
        return {"split": split}
    dataset = spec["upstream"]["dataset"]
    return {
        "split": split,
        **spec["settings"],
        "dataset": dataset,
        "hub": _hub(_spec(results, "dataset", dataset)),
    }


def _hub(spec: dict[str, Any]) -> str | None:
    source = spec.get("settings", {}).get("source")
    return source["hub"] if isinstance(source, dict) else None  # a model from scratch has no other source


def _spec(results: Path, kind: str, identifier: str) -> dict[str, Any]:
    path = results / kind / identifier / "spec.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
