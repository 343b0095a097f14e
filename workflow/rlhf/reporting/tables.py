"""Tables: one definition of columns, written as CSV (exact), Markdown and HTML (for people)."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

TEXT_LIMIT = 400  # characters of a text that is shown
Row = dict[str, Any]  # key of a column -> cell; an absent cell is empty


@dataclass(frozen=True)
class Column:
    """A column of a table: key in the rows, heading, how a value is shown, and whether it is free text."""

    key: str
    title: str
    show: Callable[[Any], str] = str
    free_text: bool = False


def to_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """CSV with full precision; an absent value is an empty field."""
    # Objects keep integers as they are where a column has absent values.
    text: str = pd.DataFrame(list(rows), columns=list(columns), dtype=object).to_csv(index=False, lineterminator="\n")
    return text


def to_markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    """A Markdown table; columns without any value are left out, an absent value is an empty cell.

    A table without any value is an empty text.
    """
    shown = _shown(rows, columns)
    if not len(shown.columns):
        return ""
    free = {column.title for column in columns if column.free_text}
    cells = shown.apply(lambda column: [escape_markdown(cell, column.name in free) for cell in column])
    cells.columns = [escape_markdown(title) for title in shown.columns]
    text: str = cells.to_markdown(index=False, tablefmt="pipe", disable_numparse=True)
    return text + "\n"


@dataclass(frozen=True)
class Section:
    """A part of a page: a table under a heading, and what is said of it."""

    title: str
    rows: Sequence[Mapping[str, Any]]
    columns: Sequence[Column]
    note: str = ""


def to_html(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], title: str, note: str = "") -> str:
    """A self-contained HTML page with the same table, for Snakemake's report."""
    return _html_page(title, f"<p>{html.escape(note)}</p>\n{_html_table(rows, columns)}")


def to_html_page(sections: Sequence[Section], title: str) -> str:
    """A self-contained HTML page with several tables."""
    parts = [
        f"<h2>{html.escape(part.title)}</h2>\n<p>{html.escape(part.note)}</p>\n"
        + (_html_table(part.rows, part.columns) if part.rows else "")
        for part in sections
    ]
    return _html_page(title, "\n".join(parts))


def _html_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    shown = _shown(rows, columns)
    lines = [_html_row("th", shown.columns), *(_html_row("td", cells) for cells in shown.itertuples(index=False))]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _html_page(title: str, body: str) -> str:
    style = (
        "body{font:14px sans-serif;margin:1.5em;color:#222}table{border-collapse:collapse}"
        "th,td{padding:.35em .7em;text-align:left;vertical-align:top;border-bottom:1px solid #ddd;white-space:pre-wrap}"
        "th{border-bottom:2px solid #888}"
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{style}</style></head>\n<body><h1>{html.escape(title)}</h1>\n{body}</body></html>\n"
    )


def _html_row(tag: str, cells: Iterable[str]) -> str:
    """A row of a table; line breaks of a cell stay, as the style of the page shows them."""
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def escape_markdown(text: str, free_text: bool = False) -> str:
    """Text that stays one cell of a Markdown table; free text is shown as it is written, without any formatting."""
    escaped = text.replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "|`*_[]~#" if free_text else "|":
        escaped = escaped.replace(mark, f"\\{mark}")
    return "<br>".join(escaped.splitlines())


def _shown(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> pd.DataFrame:
    """The rows as people see them; columns without any value are left out, an absent value is an empty text."""
    used = [column for column in columns if any(row.get(column.key) is not None for row in rows)]
    cells = [["" if row.get(c.key) is None else c.show(row[c.key]) for c in used] for row in rows]
    return pd.DataFrame(cells, columns=[column.title for column in used], dtype=object)


def beginning(text: str) -> str:
    """A text, or its beginning where it is long."""
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1].rstrip() + "…"


def end(text: str) -> str:
    """A text, or its end where it is long."""
    return text if len(text) <= TEXT_LIMIT else "…" + text[1 - TEXT_LIMIT :].lstrip()


def number(decimals: int) -> Callable[[float], str]:
    """Shows a number with a fixed count of decimals."""
    return lambda value: f"{value:.{decimals}f}"


def percent(value: float) -> str:
    """Shows a share as a percentage."""
    return f"{value:.0%}"
