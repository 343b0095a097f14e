"""The partition of a dataset's rows into the three phases: exact, seeded, by groups of rows that belong together."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from rlhf.data.dataset import load_cached
from rlhf.data.example import is_answered
from rlhf.data.partition import numbered, partition
from rlhf.errors import UserError
from rlhf.files import write_json
from rlhf.phases import PHASES
from rlhf.records.dataset import SPLIT, SplitRecord, read_dataset_report
from rlhf.runtime.folders import atomic_directory
from rlhf.runtime.logging import get_logger

logger = get_logger(__name__)


def split_dataset(dataset: Path, data_split: str, seed: int, output: Path, phases: Collection[str] = PHASES) -> None:
    """Write `<split>.<phase>.npy` index files and `split.json` into `output`.

    Training rows are divided among the phases; unseen rows serve all phases that have a share. Rows of one group (by
    default, of one prompt) stay together. A row without a rejected answer cannot serve the reward phase, one without
    any answer not the SFT phase either: they are left out there, and counted. No phase gets a training row of a dataset
    that serves evaluation alone.

    Args:
        dataset: resources/datasets/<id>/.
        data_split: three proportions such as `2,4,4`.
        seed: of the partition.
        output: results/split/<id>/; appears whole or not at all.
        phases: that are going to be run.

    Raises:
        UserError: a phase that is going to be run has a proportion above 0 and gets no row.
    """
    proportions = [float(share) for share in data_split.split(",")]
    if sum(proportions) <= 0:
        raise UserError(f"data_split: {data_split!r} gives every phase nothing")
    train, unseen = load_cached(dataset, "train"), load_cached(dataset, "eval")
    groups = numbered(train["group"])
    evaluation_only = read_dataset_report(dataset)["splits"]["eval"].get("evaluation_only", False)
    group_of = {"train": groups, "eval": numbered(unseen["group"])}
    parts = dict(zip(PHASES, partition(groups, proportions, seed), strict=True))
    indices = {f"train.{phase}": part[: 0 if evaluation_only else None] for phase, part in parts.items()}
    indices |= {
        f"eval.{phase}": np.arange(len(unseen) if share > 0 else 0)
        for phase, share in zip(PHASES, proportions, strict=True)
    }
    left_out: dict[str, dict[str, int]] = {"reward": {}, "sft": {}}
    for name, table in (("train", train), ("eval", unseen)):
        usable = {
            "reward": np.array([bool(rejected) for rejected in table["rejected"]]),
            "sft": np.array([is_answered({"ranks": ranks}) for ranks in table["ranks"]]),
        }
        for phase, mask in usable.items():
            rows = indices[f"{name}.{phase}"]
            indices[f"{name}.{phase}"] = rows[mask[rows]]
            left_out[phase][name] = int((~mask[rows]).sum())
    needed = "eval" if evaluation_only else "train"
    for phase, share in zip(PHASES, proportions, strict=True):
        if phase in phases and share > 0 and not len(indices[f"{needed}.{phase}"]):
            lack = {"reward": "rejected answer", "sft": "answer"}
            lacking = f" ({left_out[phase][needed]} have no {lack[phase]})" if phase in lack else ""
            raise UserError(
                f"data_split: {data_split!r} of {len(train)} rows in {groups.max() + 1} groups leaves phase {phase} "
                f"without a usable row{lacking}; give it no share of that phase in `data_split` of the dataset, or "
                "more rows"
            )
    with atomic_directory(output) as folder:
        for name, rows in indices.items():
            np.save(folder / f"{name}.npy", rows.astype(np.int64))
        counts = {name: len(rows) for name, rows in indices.items()}
        record: SplitRecord = {
            "schema_version": 2,
            "rows": counts,
            "groups": {name: len(np.unique(group_of[name.split(".")[0]][rows])) for name, rows in indices.items()},
            "reward_rows_without_rejected": left_out["reward"],
            "sft_rows_without_answer": left_out["sft"],
        }
        write_json(folder / SPLIT, record)
    logger.info("%s: %s", output, ", ".join(f"{name} {count}" for name, count in counts.items()))
