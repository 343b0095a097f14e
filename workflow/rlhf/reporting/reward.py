"""The reward models on unseen pairs: accuracy over all and in parts of the data, and calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from rlhf.records.evaluation import EvaluationRecord, overlap
from rlhf.reporting.collect import Experiment, StageFiles
from rlhf.reporting.plots import Curve, Group, groups, groups_of_stage, trained_on
from rlhf.reporting.style import NEUTRAL, SETTINGS, empty_figure, legend_below, panels, to_svg
from rlhf.reporting.tables import Column, Row, number

REWARD_COLUMNS = (
    Column("id", "ID"),
    Column("part", "pairs of"),
    Column("value", "value", free_text=True),
    Column("pairs", "pairs"),
    Column("seen", "prompts trained on"),
    Column("tie_share", "ties", number(3)),
    Column("accuracy", "accuracy", number(3)),
    Column("accuracy_low", "from", number(3)),
    Column("accuracy_high", "to", number(3)),
    Column("longer_accuracy", "choosing the longer", number(3)),
    Column("calibration_error", "calibration error", number(3)),
)
REWARD_NOTE = (
    "Ties: share of unseen pairs whose scores are equal. Accuracy on unseen pairs, ties counting half; from, to: its "
    "95 % interval, in which pairs of one prompt are not independent. Length difference: tokens of the chosen answer "
    "less those of the rejected one. Calibration error: mean difference between the predicted probability and the "
    "share of right predictions."
)


def reward_rows(experiment: Experiment) -> list[Row]:
    """Rows of each reward model's evaluation: all pairs, subsets, the longer answer, bins of the length difference."""
    stages = [stage for stage in experiment.in_order() if stage.kind == "evaluate_reward"]
    return [{"id": stage.id, "seen": overlap(stage.evaluation), **row} for stage in stages for row in _parts(stage)]


def _parts(stage: StageFiles) -> Iterator[Row]:
    found: EvaluationRecord = stage.evaluation or {}
    keys = {column.key for column in REWARD_COLUMNS} - {"id"}
    yield {"part": "all", **{key: value for key, value in found.items() if key in keys}}
    for subset in found.get("by_subset") or []:
        yield {"part": "subset", "value": subset["subset"], **subset}
    for longer in found.get("by_longer", []):
        yield {"part": "chosen answer", "value": longer["chosen"], **longer}
    for lengths in found.get("by_length_difference", []):
        yield {"part": "length difference", "value": f"{lengths['from']} to {lengths['to']}", **lengths}


@dataclass(frozen=True)
class Bin:
    """The pairs of a part of the data, as a point of a figure; low and high are the 95 % interval of y.

    `edges` are equal for the same part in evaluations of several seeds.
    """

    edges: tuple[float, float]
    pairs: int
    x: float
    y: float
    low: float
    high: float


def calibration_bins(evaluation: EvaluationRecord) -> list[Bin]:
    """Observed share over predicted probability."""
    return [
        Bin(
            (row["from"], row["to"]),
            row["pairs"],
            row["predicted"],
            row["observed"],
            row["observed_low"],
            row["observed_high"],
        )
        for row in evaluation.get("calibration", [])
    ]


def length_bins(evaluation: EvaluationRecord) -> list[Bin]:
    """Accuracy over the length difference, at the middle of each part."""
    return [
        Bin(
            (row["from"], row["to"]),
            row["pairs"],
            (row["from"] + row["to"]) / 2,
            row["accuracy"],
            row["accuracy_low"],
            row["accuracy_high"],
        )
        for row in evaluation.get("by_length_difference", [])
    ]


def reward_model(experiment: Experiment) -> str:
    """SVG of predicted probability against observed share, and of accuracy against the length difference."""
    points = groups(experiment)
    drawn = groups_of_stage(experiment, "evaluate_reward", points)
    if not any(_bins(experiment, group, calibration_bins) for group in drawn):
        return to_svg(empty_figure("no calibration was measured"))
    with mpl.rc_context(SETTINGS):
        figure, (probability, length) = panels(2, columns=2, width=4.4, height=3.6)
        probability.plot([0.5, 1], [0.5, 1], color=NEUTRAL, linestyle=":")
        length.axhline(0.5, color=NEUTRAL, linestyle=":")
        for group in drawn:
            _draw(probability, _bins(experiment, group, calibration_bins), group)
            _draw(length, _bins(experiment, group, length_bins), group)
        probability.set(
            title="Calibration",
            xlabel="predicted probability",
            ylabel="observed share",
            xlim=(0.48, 1.02),
            ylim=(0, 1.02),
        )
        length.set(
            title="Accuracy by length",
            xlabel="chosen less rejected answer (tokens)",
            ylabel="accuracy (share of pairs)",
            ylim=(0, 1.02),
        )
        legend_below(figure, _legend(drawn, trained_on(experiment, "evaluate_reward")), columns=4)
        return to_svg(figure)


def _bins(experiment: Experiment, group: Group, of: Callable[[EvaluationRecord], list[Bin]]) -> list[list[Bin]]:
    """The bins of each seed that has any."""
    found = [of(stage.evaluation or {}) for stage in experiment.of_runs(group.runs, "evaluate_reward")]
    return [bins for bins in found if bins]


def pooled(seeds: Sequence[Sequence[Bin]]) -> Curve:
    """The bins of several seeds in one: means of x and y, weighted by the number of pairs, in the order of x."""
    parts: dict[tuple[float, float], list[Bin]] = {}
    for bins in seeds:
        for one in bins:
            parts.setdefault(one.edges, []).append(one)
    points = []
    for bins in parts.values():
        weights = [one.pairs for one in bins]
        columns = ([one.x for one in bins], [one.y for one in bins])
        points.append([np.average(column, weights=weights) for column in columns])
    means = np.array(sorted(points), dtype=np.float64)
    return Curve(means[:, 0], means[:, 1])


def _draw(axis: Axes, seeds: list[list[Bin]], group: Group) -> None:
    """Thin lines for seeds and a thick one for all of them; the interval where there is one seed."""
    if not seeds:
        return
    if len(seeds) > 1:
        for bins in seeds:
            curve = pooled([bins])
            axis.plot(curve.x, curve.y, color=group.colour, linewidth=0.7, alpha=0.35)
    else:
        for one in seeds[0]:
            axis.plot([one.x] * 2, [one.low, one.high], color=group.colour, linewidth=0.7, alpha=0.6)
    curve = pooled(seeds)
    axis.plot(curve.x, curve.y, color=group.colour, marker="o", markersize=3.5)


def _legend(drawn: list[Group], seen: str) -> list[Line2D]:
    handles = [Line2D([], [], color=group.colour, marker="o", markersize=3.5, label=group.label) for group in drawn]
    spread = "single seeds (thick: all)" if any(len(group.runs) > 1 for group in drawn) else "95 % interval"
    handles.append(Line2D([], [], color="grey", linewidth=0.7, alpha=0.6, label=spread))
    handles += [Line2D([], [], linestyle="", label=f"unseen pairs{seen}")] if seen else []
    return [*handles, Line2D([], [], color=NEUTRAL, linestyle=":", label="perfect calibration; chance")]
