"""Rows from files, folders and generators; a source that cannot be read says which key, what is wrong, what to do."""

import csv
import gzip
import json
import re
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from rlhf.config.sources import DatasetSource
from rlhf.data.example import UnreadableRow
from rlhf.data.examples import examples
from rlhf.data.mappings import RowFormat
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


def test_a_folder_without_data_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_text("")
    said = f"{PLACE}.path: {str(tmp_path)!r} is neither a folder written by `save_to_disk` nor one of data files"
    assert said in refused(path=str(tmp_path))


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
    """A TypeError inside it says nothing of its arguments; the message has file and line."""
    (tmp_path / "failing_rows.py").write_text(
        "def rows(count):\n    yield {}\n    yield None + str(count)\n\ndef number():\n    return 3\n\n"
        "def at_once(**given):\n    return len(3)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = iter(load_rows(DatasetSource(generator="failing_rows:rows", arguments={"count": 1}), PLACE).train)
    assert next(rows) == {}
    place = (
        rf"{PLACE}.generator: failing_rows:rows failed in {tmp_path}/failing_rows.py, line 3 \(rows\): TypeError: unsup"
    )
    with pytest.raises(UserError, match=place):
        next(rows)
    with pytest.raises(UserError, match=r"failing_rows.py, line 9 \(at_once\): TypeError: .* has no len"):
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
def test_a_broken_json_line_costs_its_row(tmp_path, zipped):
    lines = ['{"prompt": "a"}', "", '{"prompt": "b"', '{"prompt": "c"},', '{"prompt": "d"}']
    path = tmp_path / f"rows.jsonl{zipped}"
    data = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(data) if zipped else data)
    broken = UnreadableRow("line is no JSON")
    assert list(load(path=str(path)).train) == [{"prompt": "a"}, broken, broken, {"prompt": "d"}]


def test_a_record_of_another_length_costs_its_row(tmp_path):
    """Which of its fields are meant is unknown: neither the first ones are taken, nor is the rest filled in."""
    for name, mark in (("rows.csv", ","), ("rows.tsv", "\t")):
        lines = [("prompt", "chosen"), ("a", "b"), ("a", "b", "c"), ("a",), ("d", "e")]
        (tmp_path / name).write_text("".join(mark.join(fields) + "\n" for fields in lines))
        odd = UnreadableRow("wrong number of fields")
        rows = [{"prompt": "a", "chosen": "b"}, odd, odd, {"prompt": "d", "chosen": "e"}]
        assert list(load(path=str(tmp_path / name)).train) == rows


def test_a_quote_that_is_not_closed_costs_every_line_that_it_takes_along(tmp_path):
    (tmp_path / "rows.csv").write_text('prompt,chosen\na,b\n"open,b\nc,d\ne,f\n')
    assert list(load(path=str(tmp_path / "rows.csv")).train) == [
        {"prompt": "a", "chosen": "b"},
        *[UnreadableRow("record is no CSV")] * 3,
    ]


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv"])
def test_a_byte_of_another_encoding_costs_its_row(tmp_path, kind):
    """It stays half of a surrogate pair, by which a text counts as broken; the others are read."""
    rows = [{"prompt": "heißt", "chosen": "a"}, {"prompt": "fine", "chosen": "ü"}]
    path = tmp_path / f"rows.{kind}"
    write(path, rows)
    if kind == "json":
        path.write_text(json.dumps(rows, ensure_ascii=False))
    path.write_bytes(path.read_bytes().replace("ß".encode(), "ß".encode("latin-1")))
    broken, whole = load(path=str(path)).train
    assert broken["prompt"] == "hei\udcdft" and whole == rows[1]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv"])
def test_a_byte_order_mark_says_the_encoding(tmp_path, kind, encoding):
    path = tmp_path / f"rows.{kind}"
    text = Path(write(path)).read_text(encoding="utf-8")
    mark = "\ufeff" if encoding.endswith("e") else ""  # the others write it themselves
    path.write_bytes((mark + text).encode(encoding))
    assert list(load(path=str(path)).train) == ROWS


def test_json_comes_in_the_forms_that_programs_write(tmp_path):
    def rows(name, text):
        (tmp_path / name).write_text(text)
        return list(load(path=str(tmp_path / name)).train)

    lines = "\n".join(map(json.dumps, ROWS))
    assert rows("lines.json", lines) == ROWS
    assert rows("list.jsonl", json.dumps(ROWS, indent=1)) == ROWS
    assert rows("list on a line.jsonl", json.dumps(ROWS)) == ROWS
    assert rows("keyed.json", json.dumps({"version": 1, "tags": ["a"], "data": ROWS})) == ROWS
    assert rows("one.jsonl", json.dumps(ROWS[0])) == ROWS[:1]
    for text, said in (
        (json.dumps({"train": ROWS, "test": ROWS}), "several lists of objects (train, test)"),
        (json.dumps({"prompt": {"0": "a"}, "chosen": {"0": "b"}}), "to_json(orient='records')"),
    ):
        (tmp_path / "odd.json").write_text(text)
        assert said in refused(path=str(tmp_path / "odd.json"))


FRAMES = {
    "quotes and tabs": [
        {"prompt": 'He said "yes" to me.', "chosen": "a\ttab"},
        {"prompt": "two\nlines", "chosen": "b"},
    ],
    "no quotes": [{"prompt": "plain", "chosen": "text"}],
    "only quotes": [{"prompt": '"', "chosen": '""'}],
}


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("rows", FRAMES.values(), ids=FRAMES)
def test_tsv_as_pandas_writes_it_gives_the_frame(tmp_path, rows, quoting):
    path = tmp_path / "rows.tsv"
    pd.DataFrame(rows).to_csv(path, sep="\t", index=False, quoting=quoting)
    assert list(load(path=str(path)).train) == rows


@pytest.mark.parametrize("text", ['say "hi"', '"whole"', 'a "', '"open', '""'])
def test_quotes_that_no_writer_of_quoted_fields_would_have_written_are_text(tmp_path, text):
    (tmp_path / "rows.tsv").write_text(f"prompt\tchosen\n{text}\tb\n")
    assert list(load(path=str(tmp_path / "rows.tsv")).train) == [{"prompt": text, "chosen": "b"}]


def test_csv_keeps_the_line_breaks_of_a_field(tmp_path):
    (tmp_path / "rows.csv").write_bytes(b'prompt,chosen\r\n"two\r\nlines",b\r\n')
    assert list(load(path=str(tmp_path / "rows.csv")).train) == [{"prompt": "two\r\nlines", "chosen": "b"}]


def test_a_long_field_is_read(tmp_path):
    rows = [{"prompt": "p", "chosen": "x" * 200_000}]
    assert list(load(path=write(tmp_path / "rows.csv", rows)).train) == rows


def hub_folder(folder, **files):
    """A folder as a hub has it: files by their names, and a README."""
    for name, rows in files.items():
        path = folder / name.replace("__", "/").replace("_of_", "-of-").replace("_parquet", ".parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, rows)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Rows\n")
    return str(folder)


def test_a_folder_of_shards_is_read_by_its_splits(tmp_path):
    path = hub_folder(
        tmp_path / "set",
        **{
            "data__train-00000_of_00002_parquet": ROWS[:1],
            "data__train-00001_of_00002_parquet": ROWS[1:2],
            "data__test-00000_of_00001_parquet": ROWS[2:],
        },
    )
    rows = load(path=path)
    assert (list(rows.train), rows.eval) == (ROWS[:2], None)
    rows = load(path=path, eval_split="test")
    assert (list(rows.train), list(rows.eval)) == (ROWS[:2], ROWS[2:])
    assert list(load(path=path, train_split="test").train) == ROWS[2:]
    assert "no split 'valid'; it has train, test" in refused(path=path, eval_split="valid")


def test_a_part_of_a_folder_is_chosen_by_its_name_or_the_readme(tmp_path):
    for part, rows in (("helpful", ROWS[:1]), ("harmless", ROWS[1:])):
        (tmp_path / "set" / part).mkdir(parents=True)
        write(tmp_path / "set" / part / "train.jsonl.gz", rows)
    path = str(tmp_path / "set")
    assert list(load(path=path, data_dir="helpful").train) == ROWS[:1]
    configurations = "".join(f"- config_name: {n}\n  data_files: {n}/train.jsonl.gz\n" for n in ("helpful", "harmless"))
    (tmp_path / "set/README.md").write_text(f"---\nconfigs:\n{configurations}---\n")
    assert list(load(path=path, name="harmless").train) == ROWS[1:]
    assert "Config name is missing" in refused(path=path)


def test_a_pattern_stands_for_its_files_in_order(tmp_path):
    for number, row in enumerate(ROWS):
        write(tmp_path / f"part-{number}.jsonl", [row])
    assert list(load(path=str(tmp_path / "part-*.jsonl")).train) == ROWS
    rows = load(path={"train": str(tmp_path / "part-[01].jsonl"), "eval": str(tmp_path / "part-2.jsonl")})
    assert (list(rows.train), list(rows.eval)) == (ROWS[:2], ROWS[2:])
    assert "fits no file" in refused(path=str(tmp_path / "none-*.jsonl"))
    assert "`~` has no meaning" in refused(path="~/rows.jsonl")


def test_the_first_rows_of_each_split(tmp_path):
    paths = {"train": write(tmp_path / "t.jsonl"), "eval": write(tmp_path / "e.jsonl")}
    rows = load(path=paths, first_rows=2)
    assert (list(rows.train), list(rows.eval)) == (ROWS[:2], ROWS[:2])
    made = load(generator="rlhf.data.reviews:generate_pairs", arguments={"rows": 9, "seed": 0}, first_rows=4)
    assert len(list(made.train)) == 4


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"hub": "org/name", "arguments": {"a": 1}}, "arguments has no effect on a source with `hub`"),
        ({"path": "x.jsonl", "revision": "main"}, "revision has no effect on a source with `path`"),
        ({"path": "x.jsonl", "arguments": {"a": 1}}, "arguments has no effect on a source with `path`"),
        ({"generator": "m:f", "eval_split": "test"}, "eval_split has no effect on a source with `generator`"),
        ({"generator": "m:f", "train_split": "all"}, "train_split has no effect"),
        ({"generator": "m:f", "name": "main"}, "name has no effect"),
        ({"hub": "org/name", "eval_split": "test", "eval_share": 0.2}, "eval_share has no effect"),
        ({"path": {"train": "a.csv", "eval": "b.csv"}, "eval_share": 0.2}, "eval_share has no effect"),
        ({"path": {"train": "a.csv"}, "eval_split": "test"}, "eval_split has no effect"),
    ],
)
def test_a_key_without_effect_is_refused_with_the_configuration(source, said):
    with pytest.raises(ValidationError, match=re.escape(said)):
        DatasetSource(**source)


@pytest.mark.parametrize("key", ["name", "data_dir", "train_split", "eval_split"])
def test_a_key_without_effect_on_a_file_is_refused_when_it_is_read(tmp_path, key):
    message = refused(path=write(tmp_path / "rows.jsonl"), **{key: "other"})
    assert message.startswith(f"{PLACE}.{key}: has no effect on the file")


SAVED = {"name": "other", "data_dir": "no/such/folder", "train_split": "first", "eval_split": "test"}


@pytest.mark.parametrize(
    ("splits", "keys"), [(None, list(SAVED)), (("train", "test"), ["name", "data_dir"])], ids=["one split", "splits"]
)
def test_keys_without_effect_on_a_saved_folder_are_refused(splits, keys, tmp_path):
    rows = datasets.Dataset.from_list(ROWS)
    saved = rows if splits is None else datasets.DatasetDict(dict.fromkeys(splits, rows))
    saved.save_to_disk(tmp_path / "saved")
    for key in keys:
        with pytest.raises(UserError, match=rf"{key}: has no effect on the saved folder"):
            load(path=str(tmp_path / "saved"), **{key: SAVED[key]})


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
        ("rows.csv", b'prompt,"chosen\n'),
        ("rows.jsonl", b"[1, 2"),
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


def test_a_damaged_first_line_costs_a_row_of_json_lines(tmp_path):
    for name in ("rows.json", "rows.jsonl"):
        for damaged in ('["prompt": "a"', '{"prompt": "a"'):
            (tmp_path / name).write_text("\n".join([damaged, *map(json.dumps, ROWS)]))
            assert list(load(path=str(tmp_path / name)).train) == [UnreadableRow("line is no JSON"), *ROWS], name


def test_a_text_of_a_table_that_is_no_utf_8_costs_its_row(tmp_path):
    """Written by hand, as a program in another language may: pyarrow itself refuses to make such a text."""
    texts = [b"p0", b"p\xff", b"p2"]
    broken = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(np.array([0, 2, 4, 6], np.int32)), pa.py_buffer(b"".join(texts))]
    )
    table = pa.table({"prompt": broken, "chosen": ["a", "b", "c"], "other": ["x", "y", "z"]})
    pa.parquet.write_table(table, tmp_path / "rows.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    for name in ("rows.parquet", "saved"):
        found = load(path=str(tmp_path / name)).train
        results = [result for _, result in examples(found, RowFormat("pairs"), "x")]
        assert [getattr(result, "prompt", result) for result in results] == ["p0", "wrong type: prompt", "p2"], name
        unused = load(path=str(tmp_path / name)).train
        named = RowFormat("pairs", {"prompt": "other"})
        assert [result.prompt for _, result in examples(unused, named, "x")] == ["x", "y", "z"], name
