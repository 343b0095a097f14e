"""Sentencepiece models without tokenizer.json: the fast tokenizer gives sentencepiece's own ids, or is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import PreTrainedTokenizerBase

from rlhf.config.sources import ModelSettings
from rlhf.errors import UserError
from rlhf.models.cache import cache_model
from rlhf.models.loading import load_tokenizer
from tests.unit.conftest import FAMILIES, save_random_model

WORDS = (("cat", "house", "river", "moon"), ("Paris", "tea", "night"), ("green", "seldom", "lost", "found"))
LINES = [f"the {a} of {b} is {c} and not {a}{c}, he said; 1{len(a)}2 ways?" for a, b, c in itertools.product(*WORDS)]
PLAIN = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "bpe", **PLAIN},
    "bpe": {"model_type": "bpe"},
    "bpe without space in front": {"model_type": "bpe", **PLAIN, "add_dummy_prefix": False},
    "unigram": {"model_type": "unigram"},
    "unigram as it stands": {"model_type": "unigram", **PLAIN},
    "unigram without bytes": {"model_type": "unigram", "byte_fallback": False},
    "own symbols": {"model_type": "bpe", **PLAIN, "user_defined_symbols": ["<|turn|>"], "pad_id": 3},
}


def published(folder: Path, options: dict[str, Any], **config: Any) -> Path:
    """A model as it is published: weights, tokenizer.model and tokenizer_config.json."""
    folder.mkdir()
    SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=350,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"byte_fallback": True, "split_digits": True, **options},
    )
    (folder / "tokenizer.vocab").unlink()
    save_random_model(folder, "llama", FAMILIES["llama"], pieces_of(folder).vocab_size())
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def pieces_of(folder: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def cached(folder: Path, output: Path) -> PreTrainedTokenizerBase:
    cache_model(ModelSettings(source={"path": str(folder)}), output, "models.mine")
    assert (output / "model/tokenizer.json").exists()
    return load_tokenizer(output / "model")


@pytest.fixture(scope="module", params=KINDS)
def both(request: Any, tmp_path_factory: Any) -> tuple[SentencePieceProcessor, PreTrainedTokenizerBase]:
    folder = tmp_path_factory.mktemp("pieces")
    source = published(folder / "source", KINDS[request.param], tokenizer_class="LlamaTokenizer")
    return pieces_of(source), cached(source, folder / "cache")


TEXT = st.text(
    st.sampled_from("theca tofPris.,;  \t😀你好öéﬁ①０") | st.characters(codec="utf-8", exclude_categories=["C"])
)


@given(text=TEXT | st.sampled_from(LINES))
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_ids_are_those_of_sentencepiece(both: Any, text: str) -> None:
    pieces, tokenizer = both
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == pieces.encode(text)


def test_a_text_comes_back(both: Any) -> None:
    pieces, tokenizer = both
    for line in LINES[:5]:
        ids = pieces.encode(line)
        assert tokenizer.decode(ids) == pieces.decode(ids) == line


def test_special_tokens_are_those_of_the_model(both: Any) -> None:
    pieces, tokenizer = both
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (pieces.bos_id(), pieces.eos_id())
    assert tokenizer.unk_token_id == pieces.unk_id()
    assert tokenizer("the cat")["input_ids"] == [pieces.bos_id(), *pieces.encode("the cat")]
    assert tokenizer("the cat</s>", add_special_tokens=False)["input_ids"][-1] == pieces.eos_id()
    if pieces.pad_id() >= 0:
        assert tokenizer.pad_token_id == pieces.pad_id()


def test_files_beside_it_count(tmp_path: Path) -> None:
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "chat_template": "{{ messages[0].content }}"}
    source = published(tmp_path / "source", KINDS["llama"], **config)
    (source / "added_tokens.json").write_text(json.dumps({"<|end|>": pieces_of(source).vocab_size()}))
    (source / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<unk>"}))
    save_random_model(source, "llama", FAMILIES["llama"], pieces_of(source).vocab_size() + 1)
    tokenizer = cached(source, tmp_path / "cache")
    ids = pieces_of(source).encode("the cat")
    assert tokenizer("the cat")["input_ids"] == ids
    assert tokenizer("the cat<|end|>")["input_ids"] == [*ids, pieces_of(source).vocab_size()]
    assert tokenizer.pad_token == "<unk>"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "x"


@pytest.mark.parametrize("options", [{"treat_whitespace_as_suffix": True}, {"model_type": "char"}])
def test_a_model_with_other_rules_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    source = published(tmp_path / "source", {"model_type": "bpe", "byte_fallback": False, **options})
    with pytest.raises(UserError, match="tokenizer.model is a sentencepiece model of a kind that is not read here"):
        cached(source, tmp_path / "cache")


def test_other_ids_are_refused(tmp_path: Path) -> None:
    """This rule replaces both characters of a Windows line end, the fast tokenizers' library the pair as one."""
    source = published(tmp_path / "source", {"model_type": "bpe", "remove_extra_whitespaces": False})
    with pytest.raises(UserError, match=r"tokenizer.model: no fast tokenizer gives its ids: 'def f\(x\)"):
        cached(source, tmp_path / "cache")


@pytest.mark.parametrize("content", [b"IQ== 0\nIg== 1\n", b"", b"\xff\xfe\x00damaged"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    """Transformers makes a tokenizer of three tokens from the first of them, which is tiktoken's."""
    source = published(tmp_path / "source", KINDS["llama"], tokenizer_class="LlamaTokenizer")
    (source / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match="tokenizer.model is no sentencepiece model: it is damaged, or the vocabulary"):
        cached(source, tmp_path / "cache")
