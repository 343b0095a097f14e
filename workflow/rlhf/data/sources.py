"""Where rows come from: a hub, local files, a saved dataset folder, or a generator."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import datasets
import pyarrow as pa
import pyarrow.parquet

from rlhf.config.sources import DatasetSource
from rlhf.errors import UserError
from rlhf.functions import load_function, require_arguments

Row = dict[str, Any]
FORMATS = ("json", "jsonl", "csv", "tsv", "parquet")


@dataclass(frozen=True)
class Rows:
    """Rows for training, and unseen rows where the source separates them."""

    train: Iterable[Row]
    eval: Iterable[Row] | None = None


def load_rows(source: DatasetSource, place: str) -> Rows:
    """The rows of a source.

    Args:
        source: `DatasetSource` settings.
        place: configuration path of the source, for messages.

    Raises:
        UserError: the source cannot be read; the message says what is there instead.
    """
    if source.hub is not None:
        return _from_hub(source.hub, source, place)
    if source.generator is not None:
        return Rows(_from_generator(source.generator, source.arguments, place))
    path = source.path
    assert path is not None  # DatasetSource has one of the three
    if isinstance(path, dict):
        return Rows(_from_path(path["train"], source, place).train, _unseen(path.get("eval"), source, place))
    if isinstance(path, list):
        return Rows(list(itertools.chain.from_iterable(_from_path(part, source, place).train for part in path)))
    return _from_path(path, source, place)


def _unseen(path: str | None, source: DatasetSource, place: str) -> Iterable[Row] | None:
    return None if path is None else _from_path(path, source, place).train


def _from_hub(hub: str, source: DatasetSource, place: str) -> Rows:
    if Path(hub).exists():  # `load_dataset` would take that, and no hash of it is in the ID
        raise UserError(f"{place}.hub: there is a local {hub!r}; give it as {place}.path, or move it")

    def load(split: str) -> Iterable[Row]:
        rows: Iterable[Row] = datasets.load_dataset(hub, source.name, revision=source.revision, split=split)
        return rows

    try:
        return Rows(load(source.train_split), load(source.eval_split) if source.eval_split else None)
    except (OSError, ValueError) as error:  # network trouble and unknown names, revisions or splits
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{place}.hub: {hub!r} cannot be loaded ({first}). Check name, revision and splits, run this "
            f"step where the hub can be reached, or download it and give {place}.path"
        ) from None


def _from_generator(reference: str, arguments: dict[str, Any], place: str) -> Iterator[Row]:
    function = load_function(reference, f"{place}.generator")
    require_arguments(function, arguments, reference, f"{place}.arguments")
    rows = function(**arguments)
    if not isinstance(rows, Iterable):
        raise UserError(f"{place}.generator: {reference} must yield or return rows; it returned {type(rows).__name__}")
    yield from rows


def _from_path(name: str, source: DatasetSource, place: str) -> Rows:
    path = Path(name)
    if not path.exists():
        raise UserError(f"{place}.path: {name!r} does not exist; paths are relative to the working directory")
    if path.is_dir():
        return _from_saved_folder(path, source, place)
    rows = list(_from_file(path, place))
    if not rows:
        raise UserError(f"{place}.path: {name!r} holds no row")
    return Rows(rows)


def _from_saved_folder(path: Path, source: DatasetSource, place: str) -> Rows:
    try:
        _require_own_files(path, place)
        saved = datasets.load_from_disk(str(path))
    except FileNotFoundError:
        raise UserError(f"{place}.path: {str(path)!r} is not a folder written by `save_to_disk`") from None
    except (ValueError, LookupError, TypeError, AttributeError, OSError, pa.ArrowException) as error:
        raise UserError(f"{place}.path: {str(path)!r} is damaged: {type(error).__name__}: {error}") from None
    if isinstance(saved, datasets.Dataset):
        return Rows(saved)
    for key, split in (("train_split", source.train_split), ("eval_split", source.eval_split)):
        if split is not None and split not in saved:
            raise UserError(f"{place}.{key}: {str(path)!r} has no split {split!r}; it has {', '.join(saved)}")
    return Rows(saved[source.train_split], saved[source.eval_split] if source.eval_split else None)


def _require_own_files(path: Path, place: str) -> None:
    """Refuse a saved folder whose list of files leads out of it: they would be in no hash of the folder."""
    for state in (*path.glob("state.json"), *path.glob("*/state.json")):
        for file in json.loads(state.read_text(encoding="utf-8"))["_data_files"]:
            if Path(file["filename"]).name != file["filename"]:
                raise UserError(f"{place}.path: {str(state)!r} names {file['filename']!r}, which is not beside it")


def _from_file(path: Path, place: str) -> Iterator[Row]:
    suffixes = [suffix.lstrip(".").lower() for suffix in path.suffixes]
    zipped = bool(suffixes) and suffixes[-1] == "gz"
    kind = suffixes[-2 if zipped else -1] if len(suffixes) > zipped else ""
    if kind not in FORMATS:
        raise UserError(f"{place}.path: {str(path)!r} has no known format; known: {', '.join(FORMATS)}, also with .gz")
    try:
        if kind == "parquet":
            yield from _parquet(path, zipped)
            return
        with gzip.open(path, "rt", encoding="utf-8") if zipped else path.open(encoding="utf-8") as stream:
            yield from {"json": _json, "jsonl": _json_lines, "csv": _commas, "tsv": _tabs}[kind](stream)
    except (ValueError, OSError, EOFError, RecursionError, csv.Error, zlib.error, pa.ArrowException) as error:
        raise UserError(f"{place}.path: {str(path)!r} is not readable as {kind}: {error}") from None


def _json(stream: IO[str]) -> Iterator[Row]:
    rows = json.load(stream)
    if not isinstance(rows, list):
        raise ValueError("it must be one list of objects")
    yield from rows


def _json_lines(stream: IO[str]) -> Iterator[Row]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number}: {error}") from None


def _commas(stream: IO[str]) -> Iterator[Row]:
    yield from csv.DictReader(stream, strict=True)


def _tabs(stream: IO[str]) -> Iterator[Row]:
    yield from csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)


def _parquet(path: Path, zipped: bool) -> Iterator[Row]:
    source: Any = pa.BufferReader(gzip.decompress(path.read_bytes())) if zipped else path
    yield from pa.parquet.read_table(source).to_pylist()
