"""Figure of the reward models on unseen pairs: calibration, and accuracy by length difference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from rlhf.reporting.collect import Experiment, Row
from rlhf.reporting.plots import Curve, Group, groups, groups_of_stage
from rlhf.reporting.style import NEUTRAL, SETTINGS, empty_figure, legend_below, panels, to_svg


def reward_model(experiment: Experiment) -> str:
    """SVG of predicted probability against observed share, and of accuracy against the length difference."""
    points = groups(experiment)
    drawn = groups_of_stage(experiment, "evaluate_reward", points)
    if not any(_tables(experiment, group, "calibration") for group in drawn):
        return to_svg(empty_figure("no calibration was measured"))
    with mpl.rc_context(SETTINGS):
        figure, (probability, length) = panels(2, columns=2, width=4.4, height=3.6)
        probability.plot([0.5, 1], [0.5, 1], color=NEUTRAL, linestyle=":")
        length.axhline(0.5, color=NEUTRAL, linestyle=":")
        for group in drawn:
            _draw(probability, _tables(experiment, group, "calibration"), group, _predicted, "observed")
            _draw(length, _tables(experiment, group, "by_length_difference"), group, _middle, "accuracy")
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
        legend_below(figure, _legend(drawn), columns=4)
        return to_svg(figure)


def _tables(experiment: Experiment, group: Group, key: str) -> list[list[Row]]:
    found = [(experiment.files(run, "evaluate_reward").evaluation or {}).get(key) for run in group.runs]
    return [table for table in found if table]


def _predicted(row: Row) -> float:
    return float(row["predicted"])


def _middle(row: Row) -> float:
    return float(row["from"] + row["to"]) / 2


def pooled(tables: Sequence[Sequence[Row]], x: Callable[[Row], float], y: str) -> Curve:
    """The bins of several seeds in one: means of x and y, weighted by the number of pairs, in the order of x."""
    bins: dict[tuple[float, float], list[Row]] = {}
    for table in tables:
        for row in table:
            bins.setdefault((row["from"], row["to"]), []).append(row)
    x_and_y = []
    for rows in bins.values():
        weights = [row["pairs"] for row in rows]
        x_and_y.append([np.average([value(row) for row in rows], weights=weights) for value in (x, itemgetter(y))])
    means = np.array(sorted(x_and_y), dtype=np.float64)
    return Curve(means[:, 0], means[:, 1])


def _draw(axis: Axes, tables: list[list[Row]], group: Group, x: Callable[[Row], float], y: str) -> None:
    """Thin lines for seeds and a thick one for all of them; the interval where there is one seed."""
    if not tables:
        return
    if len(tables) > 1:
        for table in tables:
            one = pooled([table], x, y)
            axis.plot(one.x, one.y, color=group.colour, linewidth=0.7, alpha=0.35)
    else:
        for row in tables[0]:
            axis.plot([x(row)] * 2, [row[f"{y}_low"], row[f"{y}_high"]], color=group.colour, linewidth=0.7, alpha=0.6)
    curve = pooled(tables, x, y)
    axis.plot(curve.x, curve.y, color=group.colour, marker="o", markersize=3.5)


def _legend(drawn: list[Group]) -> list[Line2D]:
    handles = [Line2D([], [], color=group.colour, marker="o", markersize=3.5, label=group.label) for group in drawn]
    spread = "single seeds (thick: all)" if any(len(group.runs) > 1 for group in drawn) else "95 % interval"
    handles.append(Line2D([], [], color="grey", linewidth=0.7, alpha=0.6, label=spread))
    return [*handles, Line2D([], [], color=NEUTRAL, linestyle=":", label="perfect calibration; chance")]
