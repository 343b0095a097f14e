"""The token store: what it keeps of texts, and gives back."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf.data.tokens import BATCH, TokenStore, tokenize, tokenizer_fingerprint
from rlhf.errors import UserError
from rlhf.files import read_json
from tests.unit.conftest import cached_dataset, edit_json, make_model

SPECIAL = {"eos_token": "<eos>", "pad_token": "<pad>", "clean_up_tokenization_spaces": False}
ROWS = {
    "train": [
        {"prompt": "w3 w4 w5", "chosen": " w6", "rejected": [" w7 w8", " w9"], "ratings": [3, 2.5, 0.5], "subset": "b"},
        {"prompt": "w10", "chosen": " w11 w12 w13 w14"},
        {"prompt": "w15 w16", "chosen": " w17 w18", "rejected": [" w19"], "ranks": [0, 0], "subset": "a"},
        {"prompt": "w20 w21 w22 w23 w24 w25", "chosen": " w26", "subset": "b"},
    ],
    "eval": [{"prompt": "w30", "chosen": " w31 w32", "subset": "c"}],
}


def ids_of(text: str) -> list[int]:
    return [int(word[1:]) for word in text.split()]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    cached_dataset(folder / "dataset", **ROWS)
    make_model(folder / "model", "gpt2")  # word wN has id N
    tokenize(folder / "dataset", folder / "model", folder / "tokens")
    return folder


@pytest.mark.parametrize("split", ["train", "eval"])
def test_the_store_gives_every_row_its_own_ids(made, split):
    store = TokenStore(made / "tokens", split)
    assert store.rows == len(ROWS[split])
    for number, row in enumerate(ROWS[split]):
        answers = [[*ids_of(answer), 1] for answer in (row["chosen"], *row.get("rejected", ()))]
        assert store.prompt(number).tolist() == ids_of(row["prompt"])
        assert store.chosen(number).tolist() == answers[0]
        assert [ids.tolist() for ids in store.answers(number)] == answers
        assert store.prompt(number).dtype == store.chosen(number).dtype == np.int64
        judged = store.judgements(number)
        assert judged["length"].tolist() == [len(answer) for answer in answers]
        assert judged["rank"].tolist() == row.get("ranks", list(range(len(answers))))
        ratings = row.get("ratings", [float("nan")] * len(answers))
        np.testing.assert_array_equal(judged["rating"], np.array(ratings, np.float32))
        assert store.subset(number) == row.get("subset")
        assert store.longest_answers()[number] == max(map(len, answers))
        assert store.longest_answers().dtype == np.int64
        lengths = [int(store.lengths(field)[number]) for field in ("prompt", "chosen", "rejected")]
        assert lengths == [len(ids_of(row["prompt"])), len(answers[0]), sum(map(len, answers[1:]))]


def test_answers_that_come_late_are_stored_as_well(made, tmp_path):
    """Of the first rows nothing tells what a rejected answer is."""
    rows = [{"prompt": "w3", "chosen": " w4"}] * BATCH + [{"prompt": "w5", "chosen": " w6", "rejected": [" w7"]}]
    cached_dataset(tmp_path / "dataset", train=rows, eval=rows[:1])
    tokenize(tmp_path / "dataset", made / "model", tmp_path / "tokens")
    store = TokenStore(tmp_path / "tokens", "train")
    assert [len(store.answers(row)) for row in (0, BATCH - 1, BATCH)] == [1, 1, 2]
    assert [ids.tolist() for ids in store.answers(BATCH)] == [[6, 1], [7, 1]]


def test_the_facts_describe_what_is_stored(made):
    facts = read_json(made / "tokens/tokens.json")
    store = TokenStore(made / "tokens", "train")
    for field in ("prompt", "chosen", "rejected"):
        lengths = store.lengths(field)
        assert facts["statistics"]["train"][field] == {
            "tokens": lengths.sum(), "mean": lengths.mean(), "p95": np.percentile(lengths, 95), "max": lengths.max(),
        }  # fmt: skip
    assert facts["statistics"]["eval"]["chosen"]["tokens"] == 3
    assert (facts["rows"], facts["subsets"]) == ({"train": 4, "eval": 1}, {"train": ["a", "b"], "eval": ["c"]})
    assert (facts["schema_version"], facts["dtype"], facts["chat_template"]) == (4, "uint16", None)
    assert (facts["pad_token_id"], facts["eos_token_id"]) == (store.pad_token_id, store.eos_token_id) == (0, 1)
    assert facts["dataset_fingerprint"] == "sha256:rows"
    fingerprint = tokenizer_fingerprint(made / "model")
    assert facts["tokenizer_fingerprint"] == store.tokenizer_fingerprint == fingerprint


def test_several_processes_store_the_same(made, tmp_path):
    tokenize(made / "dataset", made / "model", tmp_path / "tokens", workers=2)
    files = sorted(path.name for path in (made / "tokens").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "tokens").iterdir())
    for name in files:
        assert (made / "tokens" / name).read_bytes() == (tmp_path / "tokens" / name).read_bytes()


@pytest.mark.parametrize(("tokens", "dtype"), [(2**16, "uint16"), (2**16 + 1, "int32")])
def test_ids_of_large_vocabularies_are_stored_whole(tmp_path, tokens, dtype):
    names = {"<pad>": 0, "<eos>": 1} | {f"w{number}": number for number in range(2, tokens)}
    words = Tokenizer(models.WordLevel(names, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, **SPECIAL).save_pretrained(tmp_path / "model")
    row = {"prompt": f"w{tokens - 1} w2", "chosen": f" w{tokens - 2}"}
    cached_dataset(tmp_path / "dataset", train=[row], eval=[row])
    tokenize(tmp_path / "dataset", tmp_path / "model", tmp_path / "tokens")
    store = TokenStore(tmp_path / "tokens", "train")
    assert store.prompt(0).tolist() == [tokens - 1, 2]
    assert store.chosen(0).tolist() == [tokens - 2, 1]
    assert read_json(tmp_path / "tokens/tokens.json")["dtype"] == dtype


def test_the_fingerprint_changes_with_the_tokenizers_files_alone(tmp_path):
    folder = make_model(tmp_path / "model", "gpt2")
    before = tokenizer_fingerprint(folder)
    assert before.startswith("sha256:")
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    (copy / "README.md").write_text("A card.")
    assert tokenizer_fingerprint(copy) == before
    seen = {before}
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "tokenizer.model"):
        changed = shutil.copytree(folder, tmp_path / name)
        with (changed / name).open("a") as file:
            file.write("\n")
        seen.add(tokenizer_fingerprint(changed))
    assert len(seen) == 6


def test_a_tokenizer_without_two_ends_is_refused(made, tmp_path):
    model = shutil.copytree(made / "model", tmp_path / "model")
    edit_json(model / "tokenizer_config.json", pad_token="<eos>")
    with pytest.raises(UserError, match=r"padding \(id 1\) and EOS \(id 1\) must be two tokens"):
        tokenize(made / "dataset", model, tmp_path / "tokens")
    edit_json(model / "tokenizer_config.json", pad_token=None)
    with pytest.raises(UserError, match=r"padding \(id None\) and EOS \(id 1\) must be two tokens"):
        tokenize(made / "dataset", model, tmp_path / "tokens")
    edit_json(model / "tokenizer_config.json", pad_token="<pad>", eos_token=None)
    with pytest.raises(UserError, match=r"padding \(id 0\) and EOS \(id None\) must be two tokens"):
        tokenize(made / "dataset", model, tmp_path / "tokens")
    with pytest.raises(UserError, match=r"nothing: no tokenizer can be loaded"):
        tokenize(made / "dataset", tmp_path / "nothing", tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()
