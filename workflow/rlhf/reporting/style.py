"""How figures look: one palette, one set of defaults, and SVG text that is equal for equal data."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colour-blind-safe palette, without yellow (too light for lines) and black (kept for references).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
NEUTRAL = "#444444"

SETTINGS: Any = {  # matplotlib types its keys as literals
    "svg.hashsalt": "rlhf",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
}


def colours(count: int) -> list[Any]:
    """Distinct colours of `count` sweep points; beyond the palette, steps of a colour-blind-safe map."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    return [mpl.colormaps["cividis"](index / (count - 1)) for index in range(count)]


def panels(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels in rows of `columns`; `width` and `height` of a panel are in inches."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(columns * width, rows * height + 0.6), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(count)]


def legend_below(figure: Figure, handles: list[Any], columns: int) -> None:
    """A legend of at most `columns` columns under the panels, where it covers no data."""
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), columns), handlelength=2.4)


def to_svg(figure: Figure) -> str:
    """The figure as SVG text; equal figures give equal text."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def empty_figure(message: str) -> Figure:
    """A figure that says why there is nothing to show."""
    figure = Figure(figsize=(6.0, 1.2), layout="constrained")
    figure.text(0.5, 0.5, message, ha="center", va="center", color=NEUTRAL)
    return figure
