"""Whatever stands in a configuration or a data file: a result, or a message for the user; never another error."""

from __future__ import annotations

import copy
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf.config import Plan, resolve
from rlhf.config.sources import DatasetSource
from rlhf.data.dataset import FEATURES
from rlhf.data.example import Example, UnreadableRow
from rlhf.data.examples import examples
from rlhf.data.files import FORMATS
from rlhf.data.mappings import RowFormat
from rlhf.data.shapes import SHAPES
from rlhf.data.sources import load_rows
from rlhf.errors import UserError
from tests.project import tiny_config

# Always the same examples: a suite must not fail by chance.
reproducible = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
TEXT = st.text(st.characters(exclude_categories=()), max_size=6)  # with NUL and halves of surrogate pairs
SCALARS = st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | TEXT | st.binary(max_size=3)


# Configuration


def full_config() -> dict[str, Any]:
    """Every kind of source, model and overlay."""
    config = tiny_config()
    config["datasets"] |= {
        "file": {"source": {"path": {"train": "a.jsonl", "eval": "b.jsonl"}}, "columns": {"prompt": "text"}},
        "hub": {"source": {"hub": "org/data", "revision": "main", "name": "small"}, "chat_template": "tokenizer"},
    }
    config["models"] |= {
        "folder": {"source": {"path": "base"}, "pad_token": "<pad>"},
        "hub": {"source": {"hub": "org/model", "revision": "refs/pr/1"}, "eos_token": "<eos>"},
    }
    config["experiments"] |= {
        "swept": {
            "data_path": ["file", "hub"],
            "policy": "folder",
            "reward_model": "hub",
            "data_weights": {"file": 2.0},
            "sweep": {"ppo.kl_coefficient": [0.0, 0.1]},
            "sft": {"execution": {"deepspeed_config": {"zero_optimization": {}}}},
        }
    }
    return config


def places(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all keys and list items."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield (*at, key)
        yield from places(child, (*at, key))


def resolved(config: dict[str, Any]) -> Plan:
    return resolve(config, lambda path, key: path)


# All that YAML can write: dates, bytes, sets, keys that are no text.
JUNK = st.recursive(
    SCALARS
    | st.dates()
    | st.datetimes()
    | st.sampled_from(["", "..", "../x", "a;b", "scratch", "a\0b", "x\n", "9" * 400 + ",1,1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.integers() | TEXT | st.dates(), inner, max_size=3)
        | st.sets(TEXT, max_size=2)
    ),
    max_leaves=6,
)


@reproducible
@given(place=st.sampled_from(sorted(places(full_config()), key=repr)), value=JUNK)
def test_a_strange_value_anywhere_is_a_plan_or_a_message(place: tuple[Any, ...], value: Any) -> None:
    config = full_config()
    section = config
    for key in place[:-1]:
        section = section[key]
    section[place[-1]] = value
    try:
        plan = resolved(config)
    except UserError:
        return
    assert plan.runs
    for stage in plan.stages.values():
        json.dumps(stage.spec(), allow_nan=False)


@pytest.mark.parametrize("value", [None, [], "text", 1, {"experiments": None}, {"experiments": []}, {1: 2}])
def test_a_configuration_of_another_kind_is_refused(value: Any) -> None:
    with pytest.raises(UserError):
        resolved(value)


def shuffled(node: Any, random: Any) -> Any:
    """The same content with the keys of every mapping in another order."""
    if isinstance(node, dict):
        keys = list(node)
        random.shuffle(keys)
        return {key: shuffled(node[key], random) for key in keys}
    return [shuffled(item, random) for item in node] if isinstance(node, list) else node


@settings(reproducible, max_examples=25)
@given(random=st.randoms(use_true_random=False))
def test_the_order_of_keys_changes_no_id(random: Any) -> None:
    config = full_config()
    before = {(run.experiment, repr(run.point)): run.stages for run in resolved(config).runs}
    after = {(run.experiment, repr(run.point)): run.stages for run in resolved(shuffled(config, random)).runs}
    assert before == after


def test_a_cycle_of_yaml_references_is_refused() -> None:
    config = full_config()
    config["datasets"]["reviews"]["source"]["arguments"]["rows"] = loop = []
    loop.append(loop)
    with pytest.raises(UserError, match=r"datasets\.reviews\.source\.arguments\.rows"):
        resolved(config)


# Rows

ROLES = sorted({role for shape in SHAPES.values() for role in shape.roles} | {"role", "content", "from", "value"})
TEXTS = TEXT | st.sampled_from(
    ["a", "b", " ", "\ud800", "\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: c"]
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]) | st.lists(TEXT, max_size=1), "content": TEXTS}
    ),
    max_size=4,
)
VALUES = st.recursive(
    SCALARS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(ROLES) | TEXT, inner, max_size=4),
    max_leaves=6,
)
CELLS = TEXTS | VALUES | MESSAGES | st.lists(TEXTS | SCALARS, max_size=3)
ROWS = st.fixed_dictionaries(dict.fromkeys(ROLES, CELLS)) | st.dictionaries(st.sampled_from(ROLES) | st.none(), CELLS)


@reproducible
@given(shape=st.sampled_from(sorted(SHAPES)), rows=st.lists(ROWS | VALUES, min_size=1, max_size=4), turns=st.booleans())
def test_strange_rows_are_examples_or_counted(shape: str, rows: list[Any], turns: bool) -> None:
    try:
        results = list(examples(rows, RowFormat(shape, turns=turns), "datasets.x"))
    except UserError as error:
        assert any(said in str(error) for said in ("no row has a column", "write `shape: ", "columns.label: "))
        return
    assert {number for number, _ in results} <= set(range(len(rows)))
    added = {"own": [], "group": None, "seen": False}  # to each row where the dataset is cached
    kept = [{**vars(result), **added, "row": number} for number, result in results if isinstance(result, Example)]
    if kept:
        datasets.Dataset.from_list(kept, features=FEATURES)  # all of them can be stored
    assert all(result for _, result in results)  # a reason is never empty


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "\ud800", "chosen": "a", "rejected": "b"}, "broken Unicode"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "subset": "\udfff"}, "broken Unicode"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": 10**400}, "number not finite: margin"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1e39}, "number not finite: margin"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": float("nan")}, "number not finite: margin"),
        ({"prompt": "p", "chosen": b"a", "rejected": "b"}, "wrong type: chosen"),
    ],
)
def test_unusable_rows_have_a_reason(row: dict[str, Any], reason: str) -> None:
    assert list(examples([row], RowFormat("pairs"), "x")) == [(0, reason)]


# Files


def whole_file(kind: str) -> bytes:
    rows = [{"prompt": "a", "chosen": "b"}, {"prompt": "c", "chosen": "d"}]
    if kind == "parquet":
        table = io.BytesIO()
        pa.parquet.write_table(pa.Table.from_pylist(rows), table)
        return table.getvalue()
    if kind == "json":
        return json.dumps(rows).encode()
    if kind == "jsonl":
        return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    return b"prompt,chosen\na,b\n".replace(b",", b"," if kind == "csv" else b"\t")


@st.composite
def damaged_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A name and a content: any bytes, or a file with changed bytes and cut, before or after compression."""
    kind, zipped = draw(st.sampled_from(FORMATS)), draw(st.booleans())
    content = bytearray(draw(st.binary(max_size=60)) if draw(st.booleans()) else whole_file(kind))
    compress_first = zipped and draw(st.booleans())
    if compress_first:
        content = bytearray(gzip.compress(content, mtime=0))
    for place in draw(st.lists(st.integers(0, max(0, len(content) - 1)), max_size=3)):
        content[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
    content = content[: draw(st.integers(len(content) // 2, len(content)))]
    done = gzip.compress(content, mtime=0) if zipped and not compress_first else bytes(content)
    return f"rows.{kind}{'.gz' if zipped else ''}", done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@reproducible
@given(file=damaged_files())
def test_a_damaged_file_is_rows_or_a_message(folder: Path, file: tuple[str, bytes]) -> None:
    name, content = file
    (folder / name).write_bytes(content)
    try:
        rows = load_rows(DatasetSource(path=str(folder / name)), "datasets.x.source")
    except UserError as error:
        assert str(error).startswith("datasets.x.source.path: ")
        return
    assert list(rows.train)


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_json_beyond_the_limits_of_the_reader_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"rows.{kind}").write_text("[" * 100_000)
    with pytest.raises(UserError, match=f"not readable as {kind}.*recursion"):
        load_rows(DatasetSource(path=str(tmp_path / f"rows.{kind}")), "x")


def test_a_number_beyond_the_limits_of_the_reader_costs_its_row_or_the_file_that_is_one_value(tmp_path: Path) -> None:
    long = '{"prompt": ' + "1" * 5000 + "}"
    (tmp_path / "rows.jsonl").write_text(long + '\n{"prompt": 1}\n')
    rows = list(load_rows(DatasetSource(path=str(tmp_path / "rows.jsonl")), "x").train)
    assert rows == [UnreadableRow("line is no JSON"), {"prompt": 1}]
    (tmp_path / "rows.json").write_text(f"[{long}]")
    with pytest.raises(UserError, match="not readable as json.*digits"):
        load_rows(DatasetSource(path=str(tmp_path / "rows.json")), "x")


def test_damaged_compression_is_refused(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(whole_file("jsonl") * 50))
    content[20] ^= 0xFF
    (tmp_path / "rows.jsonl.gz").write_bytes(content)
    with pytest.raises(UserError, match="not readable as jsonl"):
        load_rows(DatasetSource(path=str(tmp_path / "rows.jsonl.gz")), "x")


def test_a_surplus_cell_is_no_column(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": "b", None: ["c"]}]
    with pytest.raises(UserError, match="the columns are prompt, chosen; did you mean 'chosen'"):
        list(examples(rows, RowFormat("pairs", {"chosen": "chosn"}), "x"))


def test_settings_are_not_changed_by_resolving() -> None:
    config = full_config()
    before = copy.deepcopy(config)
    resolved(config)
    assert config == before
