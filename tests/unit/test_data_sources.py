"""Rows from files, folders and generators; a source that cannot be read says which key, what is wrong, what to do."""

import csv
import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from rlhf.config.sources import DatasetSource
from rlhf.data.sources import Rows, load_rows
from rlhf.errors import UserError

PLACE = "datasets.mine.source"
# Characters that a careless reader would take apart or change.
ROWS = [
    {"prompt": "Wie heißt du, bitte?", "chosen": ' "Anna", sagte sie'},
    {"prompt": "日本語 🙂 question", "chosen": " a 'quoted' answer; with # marks  "},
    {"prompt": "no comma", "chosen": " {braces} and \\ backslash"},
]


def write(path, rows=ROWS):
    """A file whose format and compression follow from its name."""
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    kind = plain.suffix.lstrip(".").lower()
    with plain.open("w", encoding="utf-8", newline="") as stream:
        if kind == "json":
            json.dump(rows, stream)
        elif kind == "jsonl":
            stream.write("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
        elif kind == "csv":
            table = csv.DictWriter(stream, rows[0])
            table.writeheader()
            table.writerows(rows)
        elif kind == "tsv":
            stream.writelines("\t".join(cells) + "\n" for cells in [rows[0], *(row.values() for row in rows)])
    if kind == "parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), plain)
    if path != plain:
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return str(path)


def load(**source) -> Rows:
    return load_rows(DatasetSource(**source), PLACE)


def refused(**source) -> str:
    """What a user reads; generators are read to their first row, as they start only then."""
    with pytest.raises(UserError) as caught:
        next(iter(load(**source).train))
    message = str(caught.value)
    assert message.startswith(f"{PLACE}.")
    return message


@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path, kind, zipped):
    rows = load(path=write(tmp_path / f"rows.v2.{kind}{zipped}"))
    assert list(rows.train) == ROWS
    assert rows.eval is None


def test_the_format_does_not_depend_on_capitals(tmp_path):
    assert list(load(path=write(tmp_path / "ROWS.CSV")).train) == ROWS


def test_csv_fields_may_hold_line_breaks_and_commas(tmp_path):
    rows = [{"prompt": "two\nlines", "chosen": 'a, "b"\n\nc'}]
    assert list(load(path=write(tmp_path / "rows.csv", rows)).train) == rows


def test_quotes_of_tsv_are_ordinary_characters(tmp_path):
    (tmp_path / "rows.tsv").write_text('prompt\tchosen\n"open\tclose" "\n')
    assert list(load(path=str(tmp_path / "rows.tsv")).train) == [{"prompt": '"open', "chosen": 'close" "'}]


def test_nested_json_keeps_its_types(tmp_path):
    rows = [{"id": 7, "score": 0.5, "messages": [{"role": "user", "content": None}], "ok": True}]
    for name in ("rows.json", "rows.jsonl"):
        assert list(load(path=write(tmp_path / name, rows)).train) == rows


def test_a_list_of_files_is_read_in_order_whatever_their_formats(tmp_path):
    names = ("b.csv", "a.jsonl.gz", "c.parquet")
    paths = [write(tmp_path / name, [row]) for name, row in zip(names, ROWS, strict=True)]
    rows = load(path=paths)
    assert list(rows.train) == ROWS
    assert rows.eval is None


def test_train_and_eval_files_stay_apart(tmp_path):
    train, unseen = write(tmp_path / "t.json", ROWS[:2]), write(tmp_path / "e.tsv", ROWS[2:])
    rows = load(path={"train": train, "eval": unseen})
    assert (list(rows.train), list(rows.eval)) == (ROWS[:2], ROWS[2:])
    alone = load(path={"train": train})
    assert (list(alone.train), alone.eval) == (ROWS[:2], None)


def test_a_saved_dataset_has_one_split(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    rows = load(path=str(tmp_path / "saved"))
    assert list(rows.train) == ROWS
    assert rows.eval is None


def test_splits_of_a_saved_folder_are_chosen_by_name(tmp_path):
    parts = {"train": ROWS[:1], "train_sft": ROWS[1:], "test": ROWS[:2]}
    table = {name: datasets.Dataset.from_list(part) for name, part in parts.items()}
    datasets.DatasetDict(table).save_to_disk(tmp_path / "saved")
    path = str(tmp_path / "saved")
    plain, chosen = load(path=path), load(path=path, train_split="train_sft", eval_split="test")
    assert (list(plain.train), plain.eval) == (ROWS[:1], None)
    assert (list(chosen.train), list(chosen.eval)) == (ROWS[1:], ROWS[:2])
    for key in ("train_split", "eval_split"):
        message = refused(path=path, **{key: "validation"})
        assert message.startswith(f"{PLACE}.{key}: ")
        assert "no split 'validation'; it has train, train_sft, test" in message


def test_another_folder_is_no_saved_dataset(tmp_path):
    write(tmp_path / "rows.json")
    assert f"{PLACE}.path: {str(tmp_path)!r} is not a folder written by `save_to_disk`" in refused(path=str(tmp_path))


def test_a_generator_gets_its_arguments():
    rows = load(generator="rlhf.data.reviews:generate_pairs", arguments={"rows": 3, "seed": 5})
    assert [set(row) for row in rows.train] == [{"prompt", "chosen", "rejected"}] * 3
    assert rows.eval is None


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("no_such_package.rows:make", "cannot import 'no_such_package.rows'"),
        ("rlhf.data.reviews:pairs", "module 'rlhf.data.reviews' has no function 'pairs'"),
        ("rlhf.data.reviews:SIGN", "module 'rlhf.data.reviews' has no function 'SIGN'"),
    ],
)
def test_a_generator_that_does_not_exist_is_refused(reference, problem):
    message = refused(generator=reference)
    assert message.startswith(f"{PLACE}.generator: ")
    assert problem in message


@pytest.mark.parametrize("arguments", [{}, {"rows": 3}, {"rows": 3, "seed": 0, "language": "de"}])
def test_wrong_arguments_of_a_generator_are_named(arguments):
    message = refused(generator="rlhf.data.reviews:generate_pairs", arguments=arguments)
    assert message.startswith(f"{PLACE}.arguments: rlhf.data.reviews:generate_pairs does not take them")
    assert ("language" if "language" in arguments else "seed") in message


def test_an_error_of_a_generator_is_its_own(tmp_path, monkeypatch):
    """A TypeError inside it says nothing of its arguments."""
    (tmp_path / "failing_rows.py").write_text(
        "def rows(count):\n    yield {}\n    yield None + str(count)\n\ndef number():\n    return 3\n\n"
        "def at_once(**given):\n    return len(3)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = iter(load_rows(DatasetSource(generator="failing_rows:rows", arguments={"count": 1}), PLACE).train)
    assert next(rows) == {}
    with pytest.raises(TypeError, match="unsupported operand"):
        next(rows)
    with pytest.raises(TypeError, match="has no len"):
        list(load_rows(DatasetSource(generator="failing_rows:at_once", arguments={"a": 1}), PLACE).train)
    assert "failing_rows:number must yield or return rows; it returned int" in refused(generator="failing_rows:number")
    message = refused(generator="failing_rows:rows", arguments={"number": 1})
    assert message.startswith(f"{PLACE}.arguments: failing_rows:rows does not take them: missing a required")


@pytest.mark.parametrize("name", ["rows.txt", "rows.txt.gz", "rows", "gz", "rows.json.zip"])
def test_an_unknown_format_names_the_known_ones(tmp_path, name):
    (tmp_path / name).write_text("[]")
    message = refused(path=str(tmp_path / name))
    assert message.startswith(f"{PLACE}.path: ")
    assert "known: json, jsonl, csv, tsv, parquet, also with .gz" in message


def test_a_missing_path_says_what_paths_are_relative_to(tmp_path):
    there, missing = write(tmp_path / "rows.json"), str(tmp_path / "none.json")
    for path in (missing, [there, missing], {"train": there, "eval": missing}):
        message = refused(path=path)
        assert message.startswith(f"{PLACE}.path: {missing!r} does not exist")
        assert "relative to the working directory" in message


@pytest.mark.parametrize("zipped", ["", ".gz"])
def test_a_broken_json_line_is_named_by_its_number(tmp_path, zipped):
    lines = ['{"prompt": "a"}', "", '{"prompt": "b"', '{"prompt": "c"}']
    path = tmp_path / f"rows.jsonl{zipped}"
    data = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(data) if zipped else data)
    message = refused(path=str(path))
    assert message.startswith(f"{PLACE}.path: {str(path)!r} is not readable as jsonl")
    assert "line 3:" in message


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv", "parquet"])
def test_a_gz_file_cut_off_is_refused(tmp_path, kind):
    path = tmp_path / f"rows.{kind}.gz"
    write(path)
    path.write_bytes(path.read_bytes()[:-12])
    assert f"{PLACE}.path: {str(path)!r} is not readable as {kind}" in refused(path=str(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.json", b'{"prompt": "one object"}'),
        ("rows.json", b'[{"prompt": "a"}'),
        ("rows.json", b""),
        ("rows.csv", b'prompt,chosen\n"open quote,b\n'),
        ("rows.jsonl", '{"prompt": "heißt"}'.encode("latin-1")),
        ("rows.tsv", "prompt\nheißt\n".encode("latin-1")),
        ("rows.parquet", b"PAR1 no table"),
        ("rows.parquet", b""),
        ("rows.jsonl.gz", b'{"prompt": "not zipped"}'),
        ("rows.parquet.gz", b"not zipped"),
    ],
)
def test_content_that_is_not_of_the_format_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    message = refused(path=str(tmp_path / name))
    kind = name.removesuffix(".gz").rpartition(".")[2]
    assert message.startswith(f"{PLACE}.path: {str(tmp_path / name)!r} is not readable as {kind}")


@pytest.mark.parametrize(
    ("name", "content"),
    [("rows.json", "[]"), ("rows.jsonl", "\n \n"), ("rows.csv", "prompt,chosen\n"), ("rows.tsv", "")],
)
def test_a_file_without_rows_is_refused(tmp_path, name, content):
    there, empty = write(tmp_path / "there.json"), tmp_path / name
    empty.write_text(content)
    for path in (str(empty), [there, str(empty)]):
        assert refused(path=path) == f"{PLACE}.path: {str(empty)!r} holds no row"
