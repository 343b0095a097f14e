"""The dataset cache: what "unseen" means, which rows belong together, and what one bad row costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf.config.specification import ResolvedDataset
from rlhf.data.dataset import cache_dataset, load_cached
from rlhf.data.mappings import mapped_source
from rlhf.data.split import split_dataset
from rlhf.errors import UserError
from rlhf.files import read_json
from rlhf.phases import PHASES

# Ten pairs for each of ten prompts.
ROWS = [{"prompt": f"question {row % 10}", "chosen": f" yes {row}", "rejected": f" no {row}"} for row in range(100)]


def cached(folder: Path, rows: list[Any], unseen: list[Any] | None = None, **settings: Any) -> Path:
    """A dataset made from a file of rows."""
    files = {"train": folder / "train.jsonl"} | ({} if unseen is None else {"eval": folder / "eval.jsonl"})
    for file, part in zip(files.values(), (rows, unseen), strict=False):
        file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in part or []))
    source = {"path": {name: str(file) for name, file in files.items()}} | settings.pop("source", {})
    cache_dataset(ResolvedDataset(source=source, **settings), folder / "dataset", "datasets.mine")
    return folder / "dataset"


def sides(dataset: Path, folder: Path, column: str) -> list[set[Any]]:
    """What the unseen rows and the training rows of each phase hold of a column."""
    split_dataset(dataset, "2,4,4", 3, folder / "split")
    train = load_cached(dataset, "train")
    parts = [train.select(np.load(folder / f"split/train.{phase}.npy")) for phase in ("sft", "reward", "ppo")]
    return [set(part[column]) for part in (load_cached(dataset, "eval"), *parts)]


def test_rows_of_a_prompt_are_on_one_side_and_in_one_phase(tmp_path):
    dataset = cached(tmp_path, ROWS, source={"eval_share": 0.2})
    prompts = sides(dataset, tmp_path, "prompt")
    assert [len(part) for part in prompts] == [2, 2, 3, 3]
    assert len(set.union(*prompts)) == 10
    assert read_json(dataset / "report.json")["splits"]["eval"]["seen_in_train"] == 0


def test_another_key_keeps_its_rows_together(tmp_path):
    rows = [row | {"thread": number // 4} for number, row in enumerate(ROWS)]
    dataset = cached(tmp_path, rows, source={"eval_share": 0.2}, columns={"group": "thread"})
    threads = sides(dataset, tmp_path, "group")
    assert len(set.union(*threads)) == sum(map(len, threads)) == 25
    assert "group 7" in set.union(*threads)


def test_rows_are_divided_one_by_one_where_that_is_asked_for(tmp_path):
    dataset = cached(tmp_path, ROWS, source={"eval_share": 0.2}, keep_together="row")
    assert len(load_cached(dataset, "eval")) == 20
    assert all(len(part) > 5 for part in sides(dataset, tmp_path, "prompt"))


def test_a_row_without_the_key_that_keeps_rows_together_is_bad(tmp_path):
    rows = [row | {"thread": number} for number, row in enumerate(ROWS)]
    rows.append({"prompt": "a", "chosen": " b", "rejected": " c"})
    report = read_json(cached(tmp_path, rows, columns={"group": "thread"}) / "report.json")
    assert report["splits"]["train"]["bad_rows"] == {"missing field: group": {"count": 1, "first_rows": [100]}}


def test_a_share_to_hold_out_is_refused_where_a_ready_mapping_knows_unseen_rows():
    settings = ResolvedDataset(source={"hub": "Anthropic/hh-rlhf", "eval_share": 0.2})
    with pytest.raises(UserError, match=r"datasets.mine.source.eval_share: no effect .* split 'test'"):
        mapped_source(settings, "datasets.mine")


def test_a_prompt_for_all_leaves_nothing_to_hold_out(tmp_path):
    rows = [row | {"prompt": "the same"} for row in ROWS]
    with pytest.raises(UserError, match="100 rows in 1 groups that stay together leaves 0 unseen rows"):
        cached(tmp_path, rows, source={"eval_share": 0.2})


def test_given_unseen_rows_are_counted_where_they_are_trained_on(tmp_path, caplog):
    unseen = [*ROWS[:3], {"prompt": "new", "chosen": " a", "rejected": " b"}]
    dataset = cached(tmp_path, ROWS, unseen)
    assert read_json(dataset / "report.json")["splits"]["eval"]["seen_in_train"] == 3
    assert "prompts or groups of 3 of 4 unseen rows are trained on too" in caplog.text


def test_prompts_that_are_trained_on_are_seen_whatever_keeps_rows_together(tmp_path):
    """Numbers of rows, by which rows stay apart, are of two files and say nothing."""
    unseen = [{"prompt": f"new {n}", "chosen": " a", "rejected": " b", "thread": n} for n in range(4)]
    rows = [row | {"thread": 3 + n} for n, row in enumerate(ROWS)]
    for settings, seen in (
        ({"keep_together": "row"}, [False] * 4 + [True]),
        ({"columns": {"group": "thread"}}, [False] * 3 + [True] * 2),
        ({}, [False] * 4 + [True]),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        dataset = cached(folder, rows, [*unseen, ROWS[3] | {"thread": 9000}], **settings)
        assert load_cached(dataset, "eval")["seen"] == seen, settings
        assert read_json(dataset / "report.json")["splits"]["eval"]["seen_in_train"] == sum(seen)
        assert not any(load_cached(dataset, "train")["seen"])


def test_rows_and_groups_are_counted(tmp_path):
    dataset = cached(tmp_path, [*ROWS, {"prompt": ""}], source={"eval_share": 0.2})
    report = read_json(dataset / "report.json")
    assert (report["rows_read"], report["rows_unusable"], report["max_bad_share"]) == (101, 1, 0.05)
    assert [report["splits"][name]["groups"] for name in ("train", "eval")] == [8, 2]
    sides(dataset, tmp_path, "prompt")
    record = read_json(tmp_path / "split/split.json")
    groups = {"train.sft": 2, "train.reward": 3, "train.ppo": 3} | {f"eval.{phase}": 2 for phase in PHASES}
    assert record["groups"] == groups
    assert record["rows"] == {name: 10 * count for name, count in groups.items()}


def test_what_cannot_be_read_costs_a_row_and_is_counted_with_its_number(tmp_path):
    rows = [*ROWS[:50], '{"prompt": "cut', *ROWS[50:]]
    report = read_json(cached(tmp_path, rows) / "report.json")["splits"]["train"]
    assert report["rows_read"] == 101
    assert report["bad_rows"] == {"line is no JSON": {"count": 1, "first_rows": [50]}}


def test_a_file_of_nothing_readable_is_refused_with_the_reason(tmp_path):
    with pytest.raises(UserError, match=r"100.0% of 4 rows are unusable.*4 x line is no JSON"):
        cached(tmp_path, ["prompt,chosen", "a,b", "c,d", "e,f"])
