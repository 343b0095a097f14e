"""Rows of several tokenised datasets under one numbering."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rlhf.data.corpus import Corpus
from rlhf.data.tokens import tokenize
from rlhf.errors import UserError
from tests.unit.conftest import cached_dataset, edit_json, make_model

ROWS = {
    "first": [
        {"prompt": "w3 w4 w5", "chosen": " w6", "rejected": [" w7 w8"], "subset": "easy"},
        {"prompt": "w9", "chosen": " w10 w11 w12", "rejected": [" w13"]},
        {"prompt": "w14 w15", "chosen": " w16 w17", "rejected": [" w18", " w19 w20 w21 w22"]},
    ],
    "second": [
        {"prompt": "w23 w24 w25 w26", "chosen": " w27 w28 w29", "rejected": [" w30"], "subset": "hard"},
        {"prompt": "w31 w32", "chosen": " w33", "rejected": [" w34 w35"], "ratings": [4.0, 1.0]},
    ],
}
# Rows of the phase: of the first dataset the last two, of the second both, one after the other.
PHASE = {"first": [1, 2], "second": [0, 1]}
EXPECTED = [ROWS["first"][1], ROWS["first"][2], *ROWS["second"]]
PLACES = [(0, 1), (0, 2), (1, 0), (1, 1)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("corpus")
    model = make_model(folder / "model", "gpt2")  # word wN has id N
    for name, rows in ROWS.items():
        cached_dataset(folder / name / "dataset", train=rows, eval=rows[:1])
        tokenize(folder / name / "dataset", model, folder / name / "tokens")
        (folder / name / "split").mkdir()
        np.save(folder / name / "split/train.sft.npy", np.array(PHASE[name]))
        np.save(folder / name / "split/eval.sft.npy", np.array([0] if name == "second" else [], np.int64))
    return [folder / name for name in ROWS]


def corpus(folders: list[Path], split: str = "train") -> Corpus:
    return Corpus([folder / "tokens" for folder in folders], [folder / "split" for folder in folders], split, "sft")


def ids(text: str) -> list[int]:
    return [int(word[1:]) for word in text.split()]


def test_every_row_is_that_of_its_dataset_and_place(folders):
    rows = corpus(folders)
    assert len(rows) == rows.rows_per_epoch == 4
    for index, row in enumerate(EXPECTED):
        answers = [[*ids(answer), 1] for answer in (row["chosen"], *row["rejected"])]
        assert rows.prompt(index).tolist() == ids(row["prompt"])
        assert rows.chosen(index).tolist() == answers[0]
        assert [one.tolist() for one in rows.answers(index)] == answers
        assert rows.judgements(index)["length"].tolist() == [len(answer) for answer in answers]
        assert rows.subset(index) == row.get("subset")
        assert rows.place(index) == PLACES[index]
        assert rows.lengths("prompt")[index] == len(ids(row["prompt"]))
        assert rows.lengths("chosen")[index] == len(answers[0])
        assert rows.longest_answers()[index] == max(map(len, answers))
    assert rows.judgements(3)["rating"].tolist() == [4.0, 1.0]
    assert (rows.eos_token_id, rows.pad_token_id) == (1, 0)
    assert rows.tokenizer_fingerprint.startswith("sha256:")
    assert rows.lengths("prompt").dtype == np.int64


def test_unseen_rows_are_those_of_their_split(folders):
    unseen = corpus(folders, "eval")
    assert [unseen.prompt(row).tolist() for row in range(len(unseen))] == [[23, 24, 25, 26]]
    assert unseen.place(0) == (1, 0)


def test_rows_that_are_dropped_are_counted_and_gone(folders):
    rows = corpus(folders)
    assert rows.keep(rows.lengths("prompt") <= 2, "a.limit: 2") == 1
    assert [rows.place(row) for row in range(len(rows))] == [(0, 1), (0, 2), (1, 1)]
    assert rows.lengths("chosen").tolist() == [4, 3, 2]
    assert rows.keep(np.ones(3, bool), "a.limit: 2") == 0
    with pytest.raises(UserError, match=r"a\.limit: 0 excludes all 3 rows; raise it"):
        rows.keep(rows.lengths("prompt") <= 0, "a.limit: 0")


def test_a_phase_without_rows_is_refused(folders):
    with pytest.raises(UserError, match="no row of the eval data belongs to phase sft"):
        corpus(folders[:1], "eval")


def test_datasets_of_different_tokenizers_are_refused(folders, tmp_path):
    other = make_model(tmp_path / "model", "gpt2")
    edit_json(other / "tokenizer_config.json", model_max_length=77)
    tokenize(folders[1] / "dataset", other, tmp_path / "tokens")
    with pytest.raises(UserError, match="made with different tokenizers"):
        Corpus([folders[0] / "tokens", tmp_path / "tokens"], [folder / "split" for folder in folders], "train", "sft")
