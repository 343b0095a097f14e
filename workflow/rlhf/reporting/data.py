"""The data of an experiment: rows, groups, splits, overlaps, lengths, what was left out, rows as they are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import matplotlib as mpl
from matplotlib.axes import Axes

from rlhf.phases import PHASES
from rlhf.records.dataset import (
    REPORT,
    SPLIT,
    Bin,
    CachedSplit,
    DatasetReport,
    Found,
    Lengths,
    SplitRecord,
    TokensReport,
    read_dataset_report,
    read_split_record,
    read_tokens_report,
)
from rlhf.reporting.collect import Experiment
from rlhf.reporting.style import NEUTRAL, PALETTE, SETTINGS, empty_figure, panels, to_svg
from rlhf.reporting.tables import Column, Row, Section, beginning, end, number, to_html_page, to_markdown

SIDES = {"train": "training", "eval": "unseen"}
TEXTS = {"prompt": "prompts", "answer": "answers"}
PHASE_NAMES = dict(zip(PHASES, ("SFT", "reward", "PPO"), strict=True))
BLOCKS = "▁▂▃▄▅▆▇█"
READERS = {"sft": "policy", "reward": "reward model"}

DATA_COLUMNS = (
    Column("dataset", "dataset"),
    Column("side", "rows"),
    Column("rows", "count"),
    Column("groups", "groups"),
    Column("seen", "trained on too"),
    *(Column(phase, name) for phase, name in PHASE_NAMES.items()),
    Column("read", "of rows read"),
    Column("left_out", "left out"),
    Column("data_split", "split"),
)
LENGTH_COLUMNS = (
    Column("dataset", "dataset"),
    Column("reader", "tokens of"),
    Column("side", "rows"),
    Column("text", "texts"),
    Column("mean", "mean", number(1)),
    Column("p95", "95 % up to", number(0)),
    Column("max", "longest"),
    Column("histogram", "histogram"),
)
LEFT_OUT_COLUMNS = (
    Column("dataset", "dataset"),
    Column("side", "rows"),
    Column("reason", "reason", free_text=True),
    Column("count", "rows left out"),
    Column("first_rows", "their numbers in the source"),
)
ROW_COLUMNS = (
    Column("dataset", "dataset"),
    Column("reader", "tokens of"),
    Column("row", "row"),
    Column("prompt", "prompt", end, free_text=True),
    Column("answer", "answer", beginning, free_text=True),
)
DATA_NOTE = (
    "Rows of one group, by default of one prompt, stay together. SFT, reward and PPO: the rows of each phase; the "
    "reward phase has those with a worse answer. Trained on too: unseen rows whose prompt or group is among the "
    "training rows. Rows that a model's tokenizer or chat template cannot take are not among what it is trained on."
)
LENGTH_NOTE = "In tokens, answers with their EOS. Bars of one width, from the shortest text to the longest."
ROW_NOTE = "Some rows, special tokens as they are written. Their ids are in `results/tokens/ID/report.json`."


@dataclass
class Data:
    """A dataset as one experiment divides it.

    Attributes:
        name: of the hub, or the ID.
        data_split: proportions of the phases.
        dataset, split: None where the files are not there any more.
        tokens: report of each folder of ids, with the models that read them.
    """

    name: str
    data_split: str | None
    dataset: DatasetReport | None
    split: SplitRecord | None
    tokens: dict[str, tuple[TokensReport, list[str]]] = field(default_factory=dict)

    def side(self, side: str) -> CachedSplit:
        """What is known of the training or the unseen rows."""
        return self.dataset["splits"].get(side, {}) if self.dataset is not None else {}


def data_of(experiment: Experiment) -> list[Data]:
    """The datasets of all runs, each with the splits and ids that its stages have read."""
    found: dict[str, Data] = {}
    for stage in experiment.in_order():
        reader = READERS.get(stage.kind)
        if reader is None or stage.manifest is None:
            continue
        sources = (stage.manifest.get("lineage") or {"datasets": []})["datasets"]
        tokens: list[str] = stage.manifest.get("spec", {}).get("upstream", {}).get("tokens", [])
        for source, identifier in zip(sources, tokens, strict=False):
            split, root = source["split"], experiment.root
            if split not in found:
                dataset = source.get("dataset")
                found[split] = Data(
                    source.get("hub") or dataset or split,
                    source.get("data_split"),
                    _there(root / "resources/datasets" / dataset / REPORT, read_dataset_report) if dataset else None,
                    _there(root / "results/split" / split / "rows" / SPLIT, read_split_record),
                )
            _note_tokens(found[split], root / "results/tokens" / identifier, reader)
    return list(found.values())


def _note_tokens(data: Data, folder: Path, reader: str) -> None:
    report = _there(folder / REPORT, read_tokens_report)
    if report is not None:
        readers = data.tokens.setdefault(folder.name, (report, []))[1]
        if reader not in readers:
            readers.append(reader)


RecordT = TypeVar("RecordT")


def _there(file: Path, read: Callable[[Path], RecordT]) -> RecordT | None:
    """What a report says, where it is still there: ids and caches are often removed when all is trained."""
    return read(file.parent) if file.exists() else None


def data_rows(found: list[Data]) -> list[Row]:
    """A row for the training rows and one for the unseen rows of each dataset."""
    return [_side_row(data, side) for data in found for side in SIDES]


def _side_row(data: Data, side: str) -> Row:
    facts, counts = data.side(side), (data.split or {}).get("rows", {})
    bad = sum(found["count"] for found in (*facts.get("bad_rows", {}).values(), *_ties(facts).values()))
    row: Row = {
        "dataset": data.name,
        "side": SIDES[side],
        "rows": facts.get("rows_kept"),
        "groups": facts.get("groups"),
        "seen": facts.get("seen_in_train"),
        **{phase: counts.get(f"{side}.{phase}") for phase in PHASES},
        "read": facts.get("rows_read"),
        "left_out": bad if "rows_read" in facts else None,
        "data_split": data.data_split if side == "train" else None,
    }
    return {key: value for key, value in row.items() if value is not None}


def length_rows(found: list[Data]) -> list[Row]:
    """Lengths of prompts and answers of each dataset, for each tokenizer that reads it."""
    return [
        {
            "dataset": data.name,
            "reader": " and ".join(readers),
            "side": SIDES[side],
            "text": TEXTS[text],
            "mean": lengths["mean"],
            "p95": lengths["p95"],
            "max": lengths["max"],
            "histogram": f"{lengths['bins'][0]['from']} {bars(lengths['bins'])} {lengths['bins'][-1]['to']}",
        }
        for data in found
        for report, readers in data.tokens.values()
        for side in SIDES
        for text, lengths in _lengths(report, side)
    ]


def _lengths(report: TokensReport, side: str) -> list[tuple[str, Lengths]]:
    """Of prompts, then of answers; none where older code has counted none."""
    found = report["splits"][side].get("lengths", {})
    return [(text, found[text]) for text in TEXTS if text in found]


def bars(bins: list[Bin]) -> str:
    """A histogram in one line; a bin that holds anything has a bar, an empty one a dot."""
    most = max(part["count"] for part in bins)
    heights = [-(-part["count"] * len(BLOCKS) // most) for part in bins]  # rounded up
    return "".join(BLOCKS[height - 1] if height else "·" for height in heights)


def left_out_rows(found: list[Data]) -> list[Row]:
    """Why rows were left out, and which, when they were read and when they became ids."""
    return [
        {
            "dataset": data.name,
            "side": SIDES[side],
            "reason": reason,
            "count": rows["count"],
            "first_rows": ", ".join(map(str, rows["first_rows"]))
            + (", …" if rows["count"] > len(rows["first_rows"]) else ""),
        }
        for data in found
        for side in SIDES
        for reason, rows in _reasons(data, side)
    ]


def _reasons(data: Data, side: str) -> Iterator[tuple[str, Found]]:
    facts = data.side(side)
    yield from {**facts.get("bad_rows", {}), **_ties(facts)}.items()
    for report, readers in data.tokens.values():
        for reason, rows in report["splits"][side].get("bad_rows", {}).items():
            yield f"{' and '.join(readers)}: {reason}", rows


def _ties(facts: CachedSplit) -> dict[str, Found]:
    """Ties as a reason to leave rows out, where there are any."""
    return {"tie": facts["ties"]} if "ties" in facts and facts["ties"]["count"] else {}


def trained_rows(found: list[Data]) -> list[Row]:
    """Rows of each dataset as text, as each model reads them; once where two models read the same."""
    rows: dict[tuple[str, int, str, str], Row] = {}
    for data in found:
        for report, readers in data.tokens.values():
            for shown in report["examples"]:
                key = data.name, shown["row"], shown["prompt"], shown["answer"]
                row = rows.setdefault(key, {"dataset": data.name, "readers": [], **shown})
                row["readers"] = list(dict.fromkeys([*row["readers"], *readers]))
    return [{**row, "reader": " and ".join(row["readers"])} for row in rows.values()]


def sections(found: list[Data]) -> list[Section]:
    """Everything for people, in parts with a heading."""
    left_out = left_out_rows(found)
    return [
        Section("Rows", data_rows(found), DATA_COLUMNS, DATA_NOTE),
        Section("Lengths", length_rows(found), LENGTH_COLUMNS, LENGTH_NOTE),
        Section("Left out", left_out, LEFT_OUT_COLUMNS, "" if left_out else "No row was left out."),
        Section("Rows as they are trained", trained_rows(found), ROW_COLUMNS, ROW_NOTE),
    ]


def data_markdown(found: list[Data], heading: str) -> str:
    """The sections as Markdown.

    Args:
        found: datasets.
        heading: marks of the headings, such as `###`.
    """
    if not found:
        return "No manifest says which data was read.\n"
    return "\n".join(
        f"{heading} {part.title}\n\n"
        + (f"{to_markdown(part.rows, part.columns)}\n" if part.rows else "")
        + (f"{part.note}\n" if part.note else "")
        for part in sections(found)
    )


def data_html(found: list[Data], title: str) -> str:
    """The sections as a page."""
    return to_html_page(sections(found), title)


def lengths_figure(found: list[Data]) -> str:
    """SVG of the lengths of the training rows' prompts and answers."""
    shown = [
        (data.name, readers, text, lengths)
        for data in found
        for report, readers in data.tokens.values()
        for text, lengths in _lengths(report, "train")
    ]
    if not shown:
        return to_svg(empty_figure("no lengths were recorded"))
    with mpl.rc_context(SETTINGS):
        figure, axes = panels(len(shown), columns=4, width=3.1, height=2.2)
        for (name, readers, text, lengths), axis in zip(shown, axes, strict=True):
            _draw(axis, lengths, PALETTE[list(TEXTS).index(text)])
            title = f"{name}: {TEXTS[text]}" if len(found) > 1 else TEXTS[text].capitalize()
            axis.set(title=title, xlabel=f"tokens of the {' and '.join(readers)}", ylabel="texts")
        return to_svg(figure)


def _draw(axis: Axes, lengths: Lengths, colour: str) -> None:
    bins = lengths["bins"]
    width = bins[0]["to"] - bins[0]["from"] + 1
    starts = [part["from"] - 0.5 for part in bins]  # a bar stands around its whole numbers
    axis.bar(starts, [part["count"] for part in bins], width, align="edge", color=colour)
    axis.axvline(lengths["p95"], color=NEUTRAL, linestyle=":", linewidth=1.0)
    axis.annotate("95 %", (lengths["p95"], 1), xycoords=("data", "axes fraction"), fontsize=7, ha="right", va="top")
