"""What an experiment's page says of its data, from the files that the data stages leave."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from rlhf.config.specification import ResolvedDataset
from rlhf.data.dataset import cache_dataset, load_cached
from rlhf.data.split import split_dataset
from rlhf.data.tokens import TokenStore, tokenize
from rlhf.files import read_json, write_json, write_jsonl
from rlhf.records.experiment import ExperimentRun
from rlhf.reporting.collect import Experiment, read_experiment
from rlhf.reporting.data import bars, data_of, data_rows, left_out_rows, length_rows, trained_rows
from rlhf.reporting.summary import summarise
from tests.tokenizers import make_tokenizer
from tests.unit.test_reporting import CODE, make_experiment

TEMPLATE = (
    "{% for m in messages %}{% if 'odd' in m.content %}{{ raise_exception('no odd words') }}{% endif %}"
    "{{ m.content }}{{ eos_token if m.role == 'assistant' else ':' }}{% endfor %}"
)
# Two rows of each prompt; three rows are bad in two ways.
ROWS: list[Any] = [
    {"prompt": f"Say {'word ' * (number // 2)}<now>", "chosen": f"yes {number}", "rejected": "no"}
    for number in range(80)
]
ROWS[7] = ROWS[50] = {"prompt": "What?", "chosen": 3}
ROWS[11] = {"prompt": "Why?", "chosen": "the same", "rejected": "the same"}
ROWS[20] |= {"prompt": "an odd word"}
UNSEEN = [ROWS[3], *({"prompt": f"New {number}?", "chosen": "a", "rejected": "b"} for number in range(9))]
COUNTED = {
    "wrong type: chosen": "7, 50",
    "identical pair": "11",
    "policy: chat_template cannot write it: no odd words": "20",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic experiment, with one real dataset that a policy and a reward model read in their own ways."""
    root = tmp_path_factory.mktemp("project")
    runs = make_experiment(root)
    (root / "runs.json").write_text(json.dumps(runs))
    for name, rows in (("train", ROWS), ("eval", UNSEEN)):
        write_jsonl(root / f"{name}.jsonl", rows)
    dataset = root / "resources/datasets/words-1"
    source = {"path": {name: str(root / f"{name}.jsonl") for name in ("train", "eval")}}
    cache_dataset(ResolvedDataset(source=source, turns=True, max_bad_share=0.1), dataset, "datasets.words")
    split_dataset(dataset, "2,4,4", 1, root / "results/split/words-2/rows")
    make_tokenizer("byte-bpe").save_pretrained(root / "model")
    tokenize(dataset, root / "model", root / "results/tokens/policy-3", chat_template=TEMPLATE)
    tokenize(dataset, root / "model", root / "results/tokens/reward-4")
    for kind, tokens in (("sft", "policy-3"), ("reward", "reward-4")):
        for path in root.glob(f"results/{kind}/*/manifest.json"):
            source = {"split": "words-2", "dataset": "words-1", "hub": None, "data_split": "2,4,4", "split_seed": 1}
            facts = {"lineage": {"datasets": [source]}, "spec": {"upstream": {"tokens": [tokens]}}}
            write_json(path, read_json(path) | facts)
    return root


def read(root: Path) -> Experiment:
    runs = [ExperimentRun(**run) for run in json.loads((root / "runs.json").read_text())]
    return read_experiment("reviews", runs, root)


def test_rows_are_those_of_the_data_stages(project: Path) -> None:
    found = data_of(read(project))
    assert len(found) == 1  # two seeds, one dataset
    train, unseen = data_rows(found)
    cached = {split: load_cached(project / "resources/datasets/words-1", split) for split in ("train", "eval")}
    assert (train["rows"], train["read"], train["left_out"], train["data_split"]) == (77, 80, 3, "2,4,4")
    assert train["groups"] == len(set(cached["train"]["prompt"]))
    assert train["sft"] + train["reward"] + train["ppo"] == 77
    assert [unseen[key] for key in ("rows", "groups", "seen", "sft", "reward", "ppo")] == [10, 10, 1, 10, 10, 10]


def test_every_reason_is_there_with_the_numbers_of_its_rows(project: Path) -> None:
    rows = left_out_rows(data_of(read(project)))
    assert {row["reason"]: row["first_rows"] for row in rows} == COUNTED
    assert {row["side"] for row in rows} == {"training"}


def test_lengths_are_those_of_the_ids(project: Path) -> None:
    rows = {(row["reader"], row["side"], row["text"]): row for row in length_rows(data_of(read(project)))}
    assert len(rows) == 2 * 2 * 2
    store = TokenStore(project / "results/tokens/reward-4", "train")
    lengths = store.lengths("prompt")
    row = rows["reward model", "training", "prompts"]
    assert (row["mean"], row["max"]) == (lengths.mean(), lengths.max())
    low, shape, high = re.fullmatch(r"(\d+) (.+) (\d+)", row["histogram"]).groups()  # type: ignore[union-attr]
    assert int(low) == lengths.min() and int(high) >= lengths.max() and len(shape) <= 20


def test_bars_are_as_high_as_their_counts() -> None:
    counts = [8, 0, 1, 4, 7]
    assert bars([{"from": n, "to": n, "count": count} for n, count in enumerate(counts)]) == "█·▁▄▇"
    assert bars([{"from": 0, "to": 0, "count": 5}, {"from": 1, "to": 1, "count": 5000}]) == "▁█"


def test_rows_are_shown_as_each_model_reads_them(project: Path) -> None:
    rows = trained_rows(data_of(read(project)))
    assert len(rows) == 6  # of which the policy's have the words of its template
    assert {row["reader"] for row in rows} == {"policy", "reward model"}
    for row in rows:
        given = ROWS[row["row"]]
        assert row["prompt"] == given["prompt"] + (":" if row["reader"] == "policy" else "")
        assert row["answer"] == given["chosen"]


def test_page_table_and_figure_hold_all_of_it(project: Path) -> None:
    files = summarise(read(project), CODE, project / "results/experiments/reviews", 3)
    for name in ("index.md", "data.md", "data.html"):
        text = files[name]
        for reason, numbers in COUNTED.items():
            written = reason if name.endswith("html") else reason.replace("_", r"\_")
            assert written in text and numbers in text
        assert "█" in text and "trained on too" in text
        assert re.search(r"Say word (&lt;|<)now", text)
    table = list(csv.DictReader(io.StringIO(files["data.csv"])))
    assert [(row["side"], row["rows"], row["seen"]) for row in table] == [("training", "77", ""), ("unseen", "10", "1")]
    assert ElementTree.fromstring(files["lengths.svg"]).tag.endswith("svg")
    for said in ("Prompts", "Answers", "tokens of the policy", "tokens of the reward model"):
        assert f"<!-- {said} -->" in files["lengths.svg"]


def test_what_was_removed_meanwhile_is_left_out(project: Path, tmp_path: Path) -> None:
    (tmp_path / "runs.json").write_text((project / "runs.json").read_text())
    for name in ("results", "benchmarks"):
        (tmp_path / name).symlink_to(project / name)
    (tmp_path / "resources").mkdir()
    for kind, identifier in (("datasets", "reviews-1"), ("models", "tiny-1")):
        (tmp_path / "resources" / kind / identifier).mkdir(parents=True)
    train, _ = data_rows(data_of(read(tmp_path)))
    assert "rows" not in train and train["sft"] > 0
    bare = tmp_path / "bare"
    (bare / "runs.json").parent.mkdir()
    runs = make_experiment(bare)
    (bare / "runs.json").write_text(json.dumps(runs))
    files = summarise(read(bare), CODE, bare / "out", 3)
    assert "No manifest says which data was read." in files["index.md"] and "no lengths" in files["lengths.svg"]
