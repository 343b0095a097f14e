"""Where rows come from: a hub, local files, a saved dataset folder, or a generator."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from rlhf import hub
from rlhf.causes import FOREIGN, cause
from rlhf.config.sources import DatasetSource, matching
from rlhf.data.example import Row, UnreadableRow
from rlhf.data.files import UNREADABLE, read_file, table_rows
from rlhf.errors import UserError
from rlhf.functions import load_function, own_errors, require_arguments
from rlhf.runtime.transfer import bytes_logged


@dataclass(frozen=True)
class Published:
    """A hub's dataset: its name, the revision that was asked for, the commit that this was, the licence on its card."""

    hub: str
    revision: str | None
    commit: str
    license: str | None


BATCH = 1000
# What a path turns out to be -> keys that do not apply to it; a folder as a hub has it takes all of them.
INAPPLICABLE = {
    "file": ("name", "data_dir", "train_split", "eval_split"),
    "saved folder": ("name", "data_dir"),
    "saved folder with one split": ("name", "data_dir", "train_split", "eval_split"),
}


@dataclass(frozen=True)
class Rows:
    """Rows for training, unseen rows where the source separates them, and what a hub says of them."""

    train: Iterable[Row | UnreadableRow]
    eval: Iterable[Row | UnreadableRow] | None = None
    published: Published | None = None


def load_rows(source: DatasetSource, place: str) -> Rows:
    """The rows of a source, or the first ones, where it asks for them.

    Args:
        source: `DatasetSource` settings.
        place: configuration path of the source, for messages.

    Raises:
        UserError: the source cannot be read; the message says what is there instead.
    """
    rows = _all_rows(source, place)
    if source.first_rows is None:
        return rows
    unseen = None if rows.eval is None else itertools.islice(rows.eval, source.first_rows)
    return Rows(itertools.islice(rows.train, source.first_rows), unseen, rows.published)


def _all_rows(source: DatasetSource, place: str) -> Rows:
    if source.hub is not None:
        return _from_hub(source.hub, source, place)
    if source.generator is not None:
        return Rows(_from_generator(source.generator, source.arguments, place))
    path = source.path
    assert path is not None  # DatasetSource has one of the three
    if isinstance(path, dict):
        unseen = _from_paths([path["eval"]], source, place).train if "eval" in path else None
        return Rows(_from_paths([path["train"]], source, place).train, unseen)
    return _from_paths([path] if isinstance(path, str) else path, source, place)


def _from_paths(paths: list[str], source: DatasetSource, place: str) -> Rows:
    parts = [_from_path(file, source, place) for path in paths for file in matching(path)]
    unseen = [part.eval for part in parts if part.eval is not None]
    train = itertools.chain.from_iterable(part.train for part in parts)
    return Rows(list(train), list(itertools.chain.from_iterable(unseen)) if unseen else None)


def _from_hub(name: str, source: DatasetSource, place: str) -> Rows:
    if Path(name).exists():  # `load_dataset` would take that, and no hash of it is in the ID
        raise UserError(f"{place}.hub: there is a local {name!r}; give it as {place}.path, or move it")
    try:
        found = hub.find(name, source.revision, "dataset")
        with bytes_logged(found.storage, f"{name}: fetched"), _without_asking(not found.reached):
            train = _split(found, source, source.train_split)
            unseen = _split(found, source, source.eval_split) if source.eval_split else None
        hub.remember(found, source.revision)
    except (*FOREIGN, UserError) as error:
        raise UserError(f"{place}.hub: {name!r} cannot be loaded: {cause(error)}") from None
    return Rows(
        _table_rows(train),
        None if unseen is None else _table_rows(unseen),
        Published(name, source.revision, found.commit, hub.licence(found.snapshot / "README.md")),
    )


def _split(found: hub.Found, source: DatasetSource, split: str) -> datasets.Dataset:
    """One split of a hub's dataset, of the commit that was found and no other."""
    rows = datasets.load_dataset(
        found.now,
        source.name,
        data_dir=source.data_dir,
        revision=found.commit,
        split=split,
        verification_mode="no_checks",  # of counts in its card, which are often those of an earlier commit
    )
    made_of = {part for file in rows.cache_files for part in Path(file["filename"]).parts if hub.COMMIT.fullmatch(part)}
    if made_of - {found.commit}:  # without the hub the library takes the newest that it finds
        raise UserError(
            f"without the hub `datasets` takes the newest rows of its cache, those of commit {made_of.pop()}, in the "
            f"place of those of {found.commit}; run it where the hub can be reached"
        )
    return rows


@contextmanager
def _without_asking(offline: bool) -> Iterator[None]:
    """Let `datasets` take what is in its cache at once: of a hub that does not answer it would ask for minutes."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _from_generator(reference: str, arguments: dict[str, Any], place: str) -> Iterator[Row]:
    function = load_function(reference, f"{place}.generator")
    require_arguments(function, arguments, reference, f"{place}.arguments")
    with own_errors(f"{place}.generator: {reference}"):
        rows = function(**arguments)
        if not isinstance(rows, Iterable):
            raise UserError(
                f"{place}.generator: {reference} must yield or return rows; it returned {type(rows).__name__}"
            )
        yield from rows


def _from_path(name: str, source: DatasetSource, place: str) -> Rows:
    path = Path(name)
    if not path.exists():
        home = "; `~` has no meaning here: write the whole path" if name.startswith("~") else ""
        raise UserError(
            f"{place}.path: {name!r} does not exist or fits no file; paths are relative to the working directory{home}"
        )
    if path.is_dir():
        saved = any((path / file).exists() for file in ("dataset_dict.json", "state.json"))
        return (_from_saved_folder if saved else _from_plain_folder)(path, source, place)
    _require_effect(source, "file", name, place)
    return Rows(_nonempty([path], place))


def _require_effect(source: DatasetSource, kind: str, name: str, place: str) -> None:
    """Refuse a key that does not apply to what a path has turned out to be."""
    for key in INAPPLICABLE[kind]:
        if source.sets(key):
            raise UserError(f"{place}.{key}: has no effect on the {kind} {name!r}; leave it out")


def _nonempty(files: list[Path], place: str) -> list[Row | UnreadableRow]:
    rows = []
    for file in files:
        found = list(read_file(file, place))
        if not found:
            raise UserError(f"{place}.path: {str(file)!r} holds no row")
        rows += found
    return rows


def _from_plain_folder(path: Path, source: DatasetSource, place: str) -> Rows:
    """A folder as a hub has it: the library that reads hubs says which files, and which split each one belongs to."""
    try:
        builder = datasets.load_dataset_builder(str(path), source.name, data_dir=source.data_dir)
    except FOREIGN as error:
        raise UserError(
            f"{place}.path: {str(path)!r} is neither a folder written by `save_to_disk` nor one of data files: "
            f"{cause(error)}"
        ) from None
    files = {str(split): [Path(file) for file in found] for split, found in builder.config.data_files.items()}
    _require_splits(source, files, path, place)
    unseen = None if source.eval_split is None else _nonempty(files[source.eval_split], place)
    return Rows(_nonempty(files[source.train_split], place), unseen)


def _require_splits(source: DatasetSource, there: Iterable[str], path: Path, place: str) -> None:
    for key, split in (("train_split", source.train_split), ("eval_split", source.eval_split)):
        if split is not None and split not in there:
            raise UserError(f"{place}.{key}: {str(path)!r} has no split {split!r}; it has {', '.join(there)}")


def _from_saved_folder(path: Path, source: DatasetSource, place: str) -> Rows:
    try:
        _require_own_files(path, place)
        saved = datasets.load_from_disk(str(path))
    except FOREIGN as error:
        raise UserError(f"{place}.path: {str(path)!r} is not readable: {cause(error)}") from None
    if isinstance(saved, datasets.Dataset):
        _require_effect(source, "saved folder with one split", str(path), place)
        return Rows(_table_rows(saved))
    _require_effect(source, "saved folder", str(path), place)
    _require_splits(source, saved, path, place)
    unseen = _table_rows(saved[source.eval_split]) if source.eval_split else None
    return Rows(_table_rows(saved[source.train_split]), unseen)


def _table_rows(rows: datasets.Dataset) -> Iterator[Row]:
    """Rows as the library reads them, or value by value where it cannot read some of them."""
    for start in range(0, len(rows), BATCH):
        places = slice(start, start + BATCH)
        try:
            columns = rows[places]
            found = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        except UNREADABLE:
            found = table_rows(rows.with_format("arrow")[places])
        yield from found


def _require_own_files(path: Path, place: str) -> None:
    """Refuse a saved folder whose list of files leads out of it: they would be in no hash of the folder."""
    for state in (*path.glob("state.json"), *path.glob("*/state.json")):
        for file in json.loads(state.read_text(encoding="utf-8"))["_data_files"]:
            if Path(file["filename"]).name != file["filename"]:
                raise UserError(f"{place}.path: {str(state)!r} names {file['filename']!r}, which is not beside it")
