"""Figure of predicted and measured peak memory per stage and phase."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from rlhf.reporting.collect import STAGE_ORDER, Experiment, Row
from rlhf.reporting.memory_table import KINDS, RESIDENT, TENSORS, comparison_rows
from rlhf.reporting.style import NEUTRAL, PALETTE, SETTINGS, empty_figure, legend_below, panels, to_svg

UNITS = (("GiB", 2**30), ("MiB", 2**20))
COLOURS = dict(zip(KINDS, (*PALETTE, "#8C6D31", "#C8C8C8"), strict=True))
HEIGHT = 0.38  # of a bar; a phase has the height 1


def largest_rows(rows: list[Row], measure: str) -> dict[tuple[str, str], Row]:
    """(stage kind, phase) -> the row that measured most, over all stages of the kind; phases in order of time."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        place = (row["stage"], row["phase"])
        if row["measure"] == measure and row["measured"] > found.get(place, {"measured": -1})["measured"]:
            found[place] = row
    return dict(sorted(found.items(), key=lambda item: STAGE_ORDER.index(item[0][0])))


def memory(experiment: Experiment) -> str:
    """SVG of the peak of each phase, predicted by kind and measured: on the device, and in host memory."""
    rows = comparison_rows(experiment)
    found = [
        (title, places)
        for measure, title in ((TENSORS, "Device memory"), (RESIDENT, "Host memory (resident set)"))
        if (places := largest_rows(rows, measure))
    ]
    if not found:
        return to_svg(empty_figure("no memory was measured"))
    longest = max(len(places) for _, places in found)
    used = [kind for kind in KINDS if any(f"predicted_{kind}" in row for _, places in found for row in places.values())]
    with mpl.rc_context({**SETTINGS, "axes.grid.axis": "x"}):
        figure, axes = panels(len(found), columns=2, width=6.4, height=0.7 + 0.42 * longest)
        for axis, (title, places) in zip(axes, found, strict=True):
            _draw_bars(axis, places)
            axis.set_title(f"{title}: largest peak of a process")
        handles = [Patch(color=NEUTRAL, label="measured")]
        handles += [Patch(color=COLOURS[kind], label=f"predicted {kind.replace('_', ' ')}") for kind in used]
        legend_below(figure, handles, 3 * len(found))
        return to_svg(figure)


def _draw_bars(axis: Axes, places: dict[tuple[str, str], Row]) -> None:
    """Two horizontal bars per phase, with a gap between stages: the prediction in stacks above what was measured."""
    largest = max(max(row["measured"], row.get("predicted", 0)) for row in places.values())
    unit, bytes_ = next((entry for entry in UNITS if largest >= entry[1]), UNITS[-1])
    shown = "%.3g" if unit == "GiB" else "%.0f"
    stages = list(dict.fromkeys(stage for stage, _ in places))
    heights = [row + 0.5 * stages.index(stage) for row, (stage, _) in enumerate(places)]
    for height, row in zip(heights, places.values(), strict=True):
        start, bar = 0.0, None
        for kind in KINDS:
            amount = row.get(f"predicted_{kind}", 0) / bytes_
            if amount:
                bar = axis.barh(height - HEIGHT / 2, amount, left=start, color=COLOURS[kind], height=HEIGHT)
                start += amount
        if bar is not None:
            axis.bar_label(bar, labels=[shown % start], padding=3)
    values = [row["measured"] / bytes_ for row in places.values()]
    below = [HEIGHT / 2 if "predicted" in row else 0.0 for row in places.values()]
    bars = axis.barh(np.add(heights, below), values, color=NEUTRAL, height=HEIGHT)
    axis.bar_label(bars, fmt=shown, padding=3)
    axis.set_yticks(heights, [f"{stage}: {phase}" for stage, phase in places])
    axis.invert_yaxis()
    axis.margins(x=0.1, y=0.01)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel(f"peak ({unit})")
