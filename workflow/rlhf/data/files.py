"""Rows of one local file: json, jsonl, csv, tsv, parquet, also with .gz, in the forms in which programs write them."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet

from rlhf.data.example import Row, UnreadableRow
from rlhf.errors import UserError
from rlhf.runtime.logging import get_logger

if TYPE_CHECKING:
    from _csv import Reader as Records

logger = get_logger(__name__)
csv.field_size_limit(2**31 - 1)  # of its default, 128 KiB, a long answer is refused

TRIED_LINES = 20  # to see whether a file is one of JSON lines
FORMATS = ("json", "jsonl", "csv", "tsv", "parquet")
# Longer marks first: that of UTF-32 begins with that of UTF-16.
UNREADABLE = (ValueError, OverflowError, pa.ArrowException)
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_file(path: Path, place: str) -> Iterator[Row | UnreadableRow]:
    """The rows of a file, whose format follows from its name.

    A text file is UTF-8, or what its byte order mark says. A byte, line or record that cannot be read costs its row:
    such a byte stays in the text as half of a surrogate pair, which no usable row may hold.

    Args:
        path: the file.
        place: configuration path of the source, for messages.

    Raises:
        UserError: the format is not known, or the file as a whole cannot be read.
    """
    suffixes = [suffix.lstrip(".").lower() for suffix in path.suffixes]
    zipped = bool(suffixes) and suffixes[-1] == "gz"
    kind = suffixes[-2 if zipped else -1] if len(suffixes) > zipped else ""
    if kind not in FORMATS:
        raise UserError(f"{place}.path: {str(path)!r} has no known format; known: {', '.join(FORMATS)}, also with .gz")
    try:
        if kind == "parquet":
            yield from _parquet(path, zipped)
            return
        with _opened(path, zipped) as stream:
            yield from {"json": _json, "jsonl": _json_lines, "csv": _commas, "tsv": _tabs}[kind](stream)
    except (ValueError, OSError, EOFError, RecursionError, csv.Error, zlib.error, pa.ArrowException) as error:
        raise UserError(f"{place}.path: {str(path)!r} is not readable as {kind}: {error}") from None


def _opened(path: Path, zipped: bool) -> IO[str]:
    open_file: Any = gzip.open if zipped else open
    with open_file(path, "rb") as stream:
        head = stream.read(4)
    encoding = next((name for mark, name in MARKS.items() if head.startswith(mark)), "utf-8")
    # A damaged byte of UTF-8 is one character; those of UTF-16 are two bytes and more, where this can't be undone.
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    newline = "" if ".csv" in path.name.lower() else None  # fields of csv keep their line breaks as they are
    opened: IO[str] = open_file(path, "rt", encoding=encoding, errors=errors, newline=newline)
    return opened


def _json(stream: IO[str]) -> Iterator[Any]:
    """One list of rows, an object that holds it under its only list of objects, or one row on each line."""
    text = stream.read()
    try:
        value = json.loads(text)
    except ValueError:
        if not _has_row_on_each_line(text):
            raise
        yield from _rows_on_lines(io.StringIO(text))
        return
    yield from _listed(value)


def _has_row_on_each_line(text: str) -> bool:
    """Whether most of the first lines are objects of their own: any of them may be damaged."""
    first = [_parsed(line) for line in text.splitlines()[:TRIED_LINES] if line.strip()]
    return 2 * sum(isinstance(row, dict) for row in first) >= max(1, len(first))


def _listed(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise ValueError("it must be one list of objects")
    lists = [
        key for key, part in value.items() if isinstance(part, list) and all(isinstance(row, dict) for row in part)
    ]
    if len(lists) == 1:
        logger.info("rows are the list under %r", lists[0])
        rows: list[Any] = value[lists[0]]
        return rows
    if lists:
        raise ValueError(f"it holds several lists of objects ({', '.join(lists)}); write the rows alone to a file")
    columns = [key for key, part in value.items() if isinstance(part, dict)]
    hint = "; it has columns as pandas writes them: use `to_json(orient='records')`" if columns else ""
    raise ValueError(f"it must be one list of objects, or an object that holds one{hint}")


def _json_lines(stream: IO[str]) -> Iterator[Any]:
    """A row on each line, or one list or object as in a file of JSON where a list begins the file."""
    first = stream.readline()
    if first.lstrip().startswith("["):
        yield from _json(io.StringIO(first + stream.read()))
    else:
        yield from _rows_on_lines(itertools.chain([first], stream))


def _rows_on_lines(lines: Iterable[str]) -> Iterator[Any]:
    for line in lines:
        if line.strip():
            row = _parsed(line)
            yield UnreadableRow("line is no JSON") if row is None else row


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _commas(stream: IO[str]) -> Iterator[Row | UnreadableRow]:
    yield from _records(csv.reader(stream, strict=True))


def _tabs(stream: IO[str]) -> Iterator[Row | UnreadableRow]:
    text = stream.read()
    quoted = _writes_quotes(text)
    if '"' in text:
        logger.info("%s", "fields in quotes" if quoted else "quotes are ordinary characters")
    if quoted:
        yield from _records(csv.reader(io.StringIO(text), delimiter="\t", strict=True))
    else:
        yield from _records(csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))


def _writes_quotes(text: str) -> bool:
    """Whether a writer that puts fields in quotes, where needed or always, would have written just this text.

    pandas and spreadsheets are such writers; in a file by the definition of `text/tab-separated-values` quotes are
    ordinary characters, and nothing in its name tells.
    """
    try:
        records = list(csv.reader(io.StringIO(text), delimiter="\t", strict=True))
    except csv.Error:
        return False
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC):
        written = io.StringIO()
        csv.writer(written, delimiter="\t", lineterminator="\n", quoting=quoting).writerows(records)
        if written.getvalue().rstrip("\n") == text.rstrip("\n"):
            return True
    return False


def _records(reader: Records) -> Iterator[Row | UnreadableRow]:
    """Rows by the names of the first record; one with more or fewer fields is no row, as which are meant is unknown."""
    names: list[str] | None = None
    while True:
        begin = reader.line_num
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error:
            if names is None:
                raise
            # A quote that is not closed takes the lines after it along: each of them may have been a row.
            yield from [UnreadableRow("record is no CSV")] * (reader.line_num - begin)
            continue
        if not record:
            continue
        if names is None:
            names = record
        elif len(record) == len(names):
            yield dict(zip(names, record, strict=True))
        else:
            yield UnreadableRow("wrong number of fields")


def _parquet(path: Path, zipped: bool) -> Iterator[Row]:
    source: Any = pa.BufferReader(gzip.decompress(path.read_bytes())) if zipped else path
    yield from table_rows(pa.parquet.read_table(source))


class UnreadableCell:
    """In the place of a value that a table does not hold in a readable form: of the wrong type for every role."""


def table_rows(table: pa.Table) -> list[Row]:
    """The rows of a table; a value that cannot be read, such as a text that is no UTF-8, costs its own row at most."""
    try:
        rows: list[Row] = table.to_pylist()
        return rows
    except UNREADABLE:
        columns = [[_cell(value) for value in table.column(name)] for name in table.column_names]
        return [dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True)]


def _cell(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UNREADABLE:
        return UnreadableCell()
