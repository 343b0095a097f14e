"""A tokenizer gives the ids of its tokenizer.json, whatever class its folder names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from rlhf.config.sources import ModelSettings
from rlhf.data.tokens import TokenStore, tokenize
from rlhf.errors import UserError
from rlhf.models.cache import cache_model
from rlhf.models.loading import load_tokenizer
from rlhf.models.tokenizers import changed_rules
from tests.tokenizers import ASSISTANT, EOS, KINDS, USER, make_tokenizer
from tests.unit.conftest import FAMILIES, cached_dataset, edit_json, save_random_model

TEXTS = ["### Response:\nYes", f"{USER}hello{ASSISTANT}It is.", " two  spaces ", "什么？ 🙂"]


def published(folder: Path, kind: str, tokenizer_class: str | None = None) -> Path:
    """A model folder as people publish it."""
    tokenizer = make_tokenizer(kind)
    save_random_model(folder, "llama", FAMILIES["llama"], len(tokenizer))
    tokenizer.save_pretrained(folder)
    if tokenizer_class:
        edit_json(folder / "tokenizer_config.json", tokenizer_class=tokenizer_class)
    return folder


def cached(folder: Path, output: Path) -> Path:
    cache_model(ModelSettings.model_validate({"source": {"path": str(folder)}}), output, "models.mine")
    return output / "model"


@pytest.mark.parametrize(
    "tokenizer_class", ["LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", "GPT2Tokenizer"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_file_counts_and_not_the_class(tmp_path: Path, kind: str, tokenizer_class: str) -> None:
    source = published(tmp_path / "source", kind, tokenizer_class)
    loaded, file = (
        load_tokenizer(cached(source, tmp_path / "cache")),
        Tokenizer.from_file(str(source / "tokenizer.json")),
    )
    for text in TEXTS:
        assert loaded(text, add_special_tokens=False)["input_ids"] == file.encode(text, add_special_tokens=False).ids
    assert (loaded.eos_token, loaded.pad_token) == (EOS, "<pad>")
    assert loaded("Yes")["input_ids"] == file.encode("Yes").ids  # BOS as the file has it


def test_a_class_that_changes_rules_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = published(tmp_path / "source", "prepend", "LlamaTokenizer")
    assert changed_rules(load_tokenizer(source), source / "tokenizer.json")[:2] == ["normalizer", "pre_tokenizer"]
    cached(source, tmp_path / "cache")
    assert "models.mine.source.path: LlamaTokenizer changes normalizer, pre_tokenizer" in caplog.text


def test_a_file_whose_rules_no_class_keeps_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    source = published(tmp_path / "source", "prepend", "LlamaTokenizer")
    monkeypatch.setattr("rlhf.models.tokenizers.changed_rules", lambda tokenizer, file: ["normalizer"])
    with pytest.raises(UserError, match=r"models\.mine\.source\.path: .* changes normalizer of its tokenizer\.json"):
        cached(source, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_tokenizer_without_offsets_is_refused(tmp_path: Path) -> None:
    source = published(tmp_path / "source", "byte-bpe", "CTRLTokenizer")
    (source / "tokenizer.json").unlink()
    (source / "vocab.json").write_text(json.dumps({"<unk>": 0, "a</w>": 1, "</s>": 2, "<pad>": 3}))
    (source / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match="CTRLTokenizer, which has no tokenizer.json"):
        cached(source, tmp_path / "cache")


@pytest.mark.parametrize("tokenizer_class", ["LlamaTokenizer", "PreTrainedTokenizerFast"])
def test_an_answer_of_a_llama_has_no_space_that_the_text_has_not(tmp_path: Path, tokenizer_class: str) -> None:
    model = cached(published(tmp_path / "source", "prepend", tokenizer_class), tmp_path / "cache")
    rows = [{"prompt": "### Response:\n", "chosen": "Yes"}, {"prompt": "Once upon a ", "chosen": "time"}]
    cached_dataset(tmp_path / "dataset", train=rows, eval=rows)
    tokenize(tmp_path / "dataset", model, tmp_path / "tokens")
    store, file = TokenStore(tmp_path / "tokens", "train"), Tokenizer.from_file(str(tmp_path / "source/tokenizer.json"))
    for number, row in enumerate(rows):
        joint = [*file.encode(row["prompt"] + row["chosen"]).ids, file.token_to_id(EOS)]
        assert [*store.prompt(number), *store.chosen(number)] == joint
        assert file.decode(store.prompt(number).tolist()) == row["prompt"].rstrip(" ")
