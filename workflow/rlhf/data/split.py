"""The partition of a dataset's rows into the three phases: exact, seeded, by groups of rows that belong together."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from rlhf.data.dataset import load_cached
from rlhf.data.partition import numbered, partition
from rlhf.errors import UserError
from rlhf.files import write_json
from rlhf.phases import PHASES
from rlhf.runtime.folders import atomic_directory
from rlhf.runtime.logging import get_logger

logger = get_logger(__name__)


def split_dataset(dataset: Path, data_split: str, seed: int, output: Path, phases: Collection[str] = PHASES) -> None:
    """Write `<split>.<phase>.npy` index files and `split.json` into `output`.

    Training rows are divided among the phases; unseen rows serve all phases that have a share. Rows of one group (by
    default, of one prompt) stay together. A row without a rejected answer cannot serve the reward phase: it is left out
    there, and counted.

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
    parts = dict(zip(PHASES, partition(groups, proportions, seed), strict=True))
    indices = {f"train.{phase}": part for phase, part in parts.items()}
    indices |= {
        f"eval.{phase}": np.arange(len(unseen) if share > 0 else 0)
        for phase, share in zip(PHASES, proportions, strict=True)
    }
    left_out = {}
    for name, table in (("train", train), ("eval", unseen)):
        paired = np.array([bool(rejected) for rejected in table["rejected"]])
        rows = indices[f"{name}.reward"]
        indices[f"{name}.reward"] = rows[paired[rows]]
        left_out[name] = int((~paired[rows]).sum())
    for phase, share in zip(PHASES, proportions, strict=True):
        if phase in phases and share > 0 and not len(indices[f"train.{phase}"]):
            raise UserError(
                f"data_split: {data_split!r} of {len(train)} rows in {groups.max() + 1} groups leaves phase {phase} "
                f"without a usable row ({left_out['train']} have no rejected answer); give it no share of that phase "
                "in `data_split` of the dataset, or more rows"
            )
    with atomic_directory(output) as folder:
        for name, rows in indices.items():
            np.save(folder / f"{name}.npy", rows.astype(np.int64))
        counts = {name: len(rows) for name, rows in indices.items()}
        write_json(
            folder / "split.json", {"schema_version": 1, "rows": counts, "reward_rows_without_rejected": left_out}
        )
    logger.info("%s: %s", output, ", ".join(f"{name} {count}" for name, count in counts.items()))
