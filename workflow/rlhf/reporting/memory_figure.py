"""Figure of the measured peak memory per stage and phase."""

from __future__ import annotations

import matplotlib as mpl
from matplotlib.axes import Axes

from rlhf.reporting.collect import STAGE_ORDER, Experiment, Row
from rlhf.reporting.style import PALETTE, SETTINGS, empty_figure, panels, to_svg
from rlhf.reporting.tables import memory_rows

UNITS = (("GiB", 2**30), ("MiB", 2**20))


def largest_peaks(rows: list[Row], key: str) -> dict[tuple[str, str], int]:
    """(stage kind, phase) -> largest value of `key` over stages and processes, in bytes; phases in order of time."""
    peaks: dict[tuple[str, str], int] = {}
    for row in rows:
        if key in row:
            place = (row["stage"], row["phase"])
            peaks[place] = max(peaks.get(place, 0), row[key])
    return dict(sorted(peaks.items(), key=lambda item: STAGE_ORDER.index(item[0][0])))


def memory(experiment: Experiment) -> str:
    """SVG of the peak of each phase: device memory where an accelerator was used, and resident host memory."""
    rows = memory_rows(experiment)
    found = [
        (title, peaks)
        for key, title in (("peak_allocated", "Device memory"), ("peak_rss", "Host memory (resident set)"))
        if (peaks := largest_peaks(rows, key))
    ]
    if not found:
        return to_svg(empty_figure("no memory was measured"))
    longest = max(len(peaks) for _, peaks in found)
    with mpl.rc_context({**SETTINGS, "axes.grid.axis": "x"}):
        figure, axes = panels(len(found), columns=2, width=5.6, height=0.5 + 0.26 * longest)
        for axis, (title, peaks) in zip(axes, found, strict=True):
            _draw_bars(axis, peaks)
            axis.set_title(f"{title}: largest peak of a process")
        return to_svg(figure)


def _draw_bars(axis: Axes, peaks: dict[tuple[str, str], int]) -> None:
    """Horizontal bars, one colour per stage, with a gap between stages and the value at the end of each bar."""
    unit, size = next((entry for entry in UNITS if max(peaks.values()) >= entry[1]), UNITS[-1])
    stages = list(dict.fromkeys(stage for stage, _ in peaks))
    places = [row + 0.5 * stages.index(stage) for row, (stage, _) in enumerate(peaks)]
    values = [peak / size for peak in peaks.values()]
    fill = [PALETTE[stages.index(stage) % len(PALETTE)] for stage, _ in peaks]
    bars = axis.barh(places, values, color=fill, height=0.75)
    axis.bar_label(bars, fmt="%.3g" if unit == "GiB" else "%.0f", padding=3)
    axis.set_yticks(places, [f"{stage}: {phase}" for stage, phase in peaks])
    axis.invert_yaxis()
    axis.margins(x=0.1, y=0.01)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel(f"peak ({unit})")
