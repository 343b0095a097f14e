"""What `tokenize_dataset` tells of texts, and the ids that it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import normalizers

from rlhf.config.specification import ResolvedDataset
from rlhf.data.dataset import cache_dataset, load_cached
from rlhf.data.split import split_dataset
from rlhf.data.tokens import TokenStore, tokenize
from rlhf.errors import UserError
from rlhf.files import read_json, write_jsonl
from rlhf.training.frame import keep_usable
from rlhf.training.reward import GroupPreference
from rlhf.training.stage import StagePaths
from tests.tokenizers import ASSISTANT, BOS, END, EOS, KINDS, USER, make_tokenizer
from tests.unit.conftest import save_word_tokenizer

FORMATS = {"prompt_format": f"{USER}{{prompt}}{END}{ASSISTANT}", "answer_format": f"{{answer}}{END}"}
ROWS = [{"prompt": f"Once upon {number} ", "chosen": f"a time {number}", "rejected": "no"} for number in range(20)]


def made(folder: Path, kind: str, rows: list[dict[str, Any]], **settings: Any) -> Path:
    """results/tokens of rows, all of them read for training and unseen alike."""
    write_jsonl(folder / "rows.jsonl", rows)
    source = {"path": dict.fromkeys(("train", "eval"), str(folder / "rows.jsonl"))}
    cache_dataset(ResolvedDataset(source=source, **settings), folder / "dataset", "datasets.mine")
    make_tokenizer(kind).save_pretrained(folder / "model")
    tokenize(folder / "dataset", folder / "model", folder / "tokens")
    return folder / "tokens"


@pytest.mark.parametrize("kind", KINDS)
def test_three_rows_are_shown_as_text_and_as_ids(tmp_path: Path, kind: str) -> None:
    tokens = made(tmp_path, kind, ROWS, **FORMATS)
    report, store, tokenizer = read_json(tokens / "report.json"), TokenStore(tokens, "train"), make_tokenizer(kind)
    assert len(report["examples"]) == 3
    for number, shown in enumerate(report["examples"]):
        place = load_cached(tmp_path / "dataset", "train")["row"].index(shown["row"])
        row = ROWS[shown["row"]]
        assert shown["prompt"] == f"{USER}{row['prompt']}{END}{ASSISTANT}"
        assert shown["answer"] == f"{row['chosen']}{END}"
        assert shown["prompt_ids"] == store.prompt(place).tolist()
        assert shown["answer_ids"] == store.chosen(place).tolist()
        assert shown["prompt_tokens"][:2] == [BOS, USER] and shown["answer_tokens"][-2:] == [END, EOS], number
        assert shown["answer_tokens"] == tokenizer.convert_ids_to_tokens(shown["answer_ids"])


def test_what_a_user_may_not_have_meant_is_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"prompt": "Human:", "chosen": " hello", "rejected": " no"},
        {"prompt": "Human: ", "chosen": "hello", "rejected": "no"},  # the space is in the answer's first token
        {"prompt": "def f", "chosen": "x", "rejected": "(x)"},
        {"prompt": f"{BOS}什么？", "chosen": f"苹果{EOS}", "rejected": "苹"},
    ]
    report = read_json(made(tmp_path, "byte-bpe", rows) / "report.json")
    for split in ("train", "eval"):
        found = report["splits"][split]
        assert found["rows"] == 4
        assert found["border_tokens"] == {"count": 1, "first_rows": [1]}
        assert found["unseparated"] == {"count": 1, "first_rows": [2]}
        assert found["spelled_special_tokens"] == {"count": 1, "first_rows": [3]}
        assert found["spelled"] == [EOS, BOS]
    assert report["check"] == {"rows": 4, "answers": 8, "compared": 6, "decoded_as_given": 8}
    said = caplog.text
    for words in ("spans the border", "write it into answer_format", "data spells out special tokens (</s>, <s>)"):
        assert words in said


def test_answers_that_are_the_same_tokens_are_counted_and_no_comparison(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Words that the vocabulary lacks all become one: texts differ, ids do not."""
    rows = [
        {"prompt": "w3", "chosen": " w4", "rejected": " w5"},
        {"prompt": "w4", "chosen": " sun", "rejected": " moon"},
        {"prompt": "w5", "chosen": " w4 sun", "rejected": " w4"},
    ]
    save_word_tokenizer(tmp_path / "words")
    made(tmp_path, "byte-bpe", rows)
    tokens = tmp_path / "other"
    tokenize(tmp_path / "dataset", tmp_path / "words", tokens)
    assert read_json(tokens / "report.json")["splits"]["train"]["equal_answers"] == {"count": 1, "first_rows": [1]}
    assert "are the same tokens" in caplog.text
    split_dataset(tmp_path / "dataset", "0,1,0", 0, tmp_path / "split")
    paths = StagePaths([tokens], [tmp_path / "split"], tmp_path, tmp_path)
    corpus = paths.corpus("train", "reward")
    dropped = keep_usable(corpus, GroupPreference(), 3, "reward")
    assert (len(corpus), dropped.equal, dropped.too_long) == (1, 1, 1)
    assert corpus.place(0) == (0, 0)
    alone = [rows[1] | {"prompt": f"w{number}"} for number in range(3, 9)]
    with pytest.raises(UserError, match="reward: answers that are the same tokens excludes all 6 rows"):
        folder = tmp_path / "alone"
        folder.mkdir()
        made(folder, "byte-bpe", alone)
        tokenize(folder / "dataset", tmp_path / "words", folder / "other")
        split_dataset(folder / "dataset", "0,1,0", 0, folder / "split")
        corpus = StagePaths([folder / "other"], [folder / "split"], folder, folder).corpus("train", "reward")
        keep_usable(corpus, GroupPreference(), 9, "reward")


def test_a_dataset_without_any_of_it_is_told_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made(tmp_path, "byte-bpe", [{"prompt": "Human:", "chosen": " hello", "rejected": f" no {n}"} for n in range(9)])
    assert not [record for record in caplog.records if record.name == "rlhf.data.text_check"]


def test_ids_that_are_not_those_of_the_tokenizers_file_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    """As those of a class that puts its own rules in the place of the file's."""
    tokens = made(tmp_path, "prepend", ROWS)
    shutil.rmtree(tokens)
    other = make_tokenizer("prepend")
    other.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(" ", "▁")])
    monkeypatch.setattr("rlhf.data.tokens._load_tokenizer", lambda model: other)
    with pytest.raises(UserError, match=r"dataset: row \d+: the ids are not those that .*/tokenizer\.json gives"):
        tokenize(tmp_path / "dataset", tmp_path / "model", tokens)
    assert not tokens.exists()


def test_lengths_are_counted_in_bins_of_one_width(tmp_path: Path) -> None:
    """Of all answers, with their EOS; the numbers are those of the store."""
    rows = [{"prompt": f"{'word ' * number}:", "chosen": " a", "rejected": " b c"} for number in range(1, 41)]
    tokens = made(tmp_path, "byte-bpe", rows)
    report, store = read_json(tokens / "report.json")["splits"]["train"]["lengths"], TokenStore(tokens, "train")
    answers = [len(answer) for row in range(store.rows) for answer in store.answers(row)]
    for name, found in (("prompt", store.lengths("prompt")), ("answer", np.array(answers))):
        bins = report[name]["bins"]
        assert len(bins) <= 20 and sum(part["count"] for part in bins) == len(found)
        assert len({part["to"] - part["from"] for part in bins}) == 1
        assert [part["to"] + 1 for part in bins[:-1]] == [part["from"] for part in bins[1:]]
        for part in bins:
            assert part["count"] == int(((found >= part["from"]) & (found <= part["to"])).sum())
        assert (report[name]["mean"], report[name]["max"]) == (found.mean(), found.max())
        assert bins[-1]["count"] and bins[-1]["to"] >= found.max()
