"""Table of the reward models: how often they rank unseen pairs right, over all and in parts of the data."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf.reporting.collect import Experiment, Row, StageFiles
from rlhf.reporting.tables import Column, number

COLUMNS = (
    Column("id", "ID"),
    Column("part", "pairs of"),
    Column("value", "value", free_text=True),
    Column("pairs", "pairs"),
    Column("tie_share", "ties", number(3)),
    Column("accuracy", "accuracy", number(3)),
    Column("accuracy_low", "from", number(3)),
    Column("accuracy_high", "to", number(3)),
    Column("longer_accuracy", "choosing the longer", number(3)),
    Column("calibration_error", "calibration error", number(3)),
)
NOTE = (
    "Ties: share of unseen pairs whose scores are equal. Accuracy on unseen pairs, ties counting half; from, to: its "
    "95 % interval, in which pairs of one prompt are not independent. Length difference: tokens of the chosen answer "
    "less those of the rejected one. Calibration error: mean difference between the predicted probability and the "
    "share of right predictions."
)


def reward_rows(experiment: Experiment) -> list[Row]:
    """Rows of each reward model's evaluation: all pairs, subsets, the longer answer, bins of the length difference."""
    stages = [stage for stage in experiment.in_order() if stage.kind == "evaluate_reward"]
    return [{"id": stage.id, **row} for stage in stages for row in _parts(stage)]


def _parts(stage: StageFiles) -> Iterator[Row]:
    found = stage.evaluation or {}
    keys = [column.key for column in COLUMNS]
    yield {"part": "all", **{key: found[key] for key in keys if key in found and key != "id"}}
    for row in found.get("by_subset", []):
        yield {"part": "subset", "value": row["subset"], **row}
    for row in found.get("by_longer", []):
        yield {"part": "chosen answer", "value": row["chosen"], **row}
    for row in found.get("by_length_difference", []):
        yield {"part": "length difference", "value": f"{row['from']} to {row['to']}", **row}
