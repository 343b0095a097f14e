"""Vocabularies of a few hundred tokens in the formats of published tokenizers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from tests.hub.repository import as_json
from tests.hub.texts import texts


@cache
def byte_merges(count: int = 160) -> tuple[tuple[str, str], ...]:
    return _merges("bytes", count)


@cache
def piece_merges(count: int = 160) -> tuple[tuple[str, str], ...]:
    return _merges("pieces", count)


def _merges(kind: str, count: int) -> tuple[tuple[str, str], ...]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    start = pre_tokenizers.ByteLevel(add_prefix_space=False) if kind == "bytes" else pre_tokenizers.Metaspace()
    tokenizer.pre_tokenizer = start
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if kind == "bytes" else sorted(set("".join(texts())) - {" "})
    size = len(alphabet) + count + (kind == "pieces")
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    return tuple(tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"])


def byte_vocabulary(front: Iterable[str] = (), back: Iterable[str] = ()) -> dict[str, int]:
    from tokenizers import pre_tokenizers

    ordinary = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in byte_merges())]
    return {token: place for place, token in enumerate(dict.fromkeys([*front, *ordinary, *back]))}


def piece_vocabulary(front: Iterable[str], back: Iterable[str] = ()) -> dict[str, int]:
    merged = ["".join(pair) for pair in piece_merges()]
    letters = sorted({letter for pair in piece_merges() for letter in "".join(pair)} | set("".join(texts())) - {" "})
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    return {token: place for place, token in enumerate(dict.fromkeys([*front, *bytes_, *merged, *letters, "▁", *back]))}


def added_tokens(
    vocabulary: dict[str, int], special: Iterable[str], ordinary: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Entries of `added_tokens`; `ordinary` ones are found whole in a text, but are no special tokens."""
    names = {**dict.fromkeys(special, True), **dict.fromkeys(ordinary, False)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    found = [{"id": vocabulary[name], "content": name, **flags, "special": names[name]} for name in names]
    return sorted(found, key=lambda token: token["id"])


def begin_with(token: str, vocabulary: dict[str, int], *more: str) -> dict[str, Any]:
    """A post-processor that puts tokens in front of each text."""
    first = [token, *more]
    pieces = [{"SpecialToken": {"id": name, "type_id": 0}} for name in first]
    return {
        "type": "TemplateProcessing",
        "single": [*pieces, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [*pieces, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [vocabulary[name]], "tokens": [name]} for name in first},
    }


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
WORD = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _words(pattern: str) -> dict[str, Any]:
    """A pre-tokenizer that cuts by a pattern, as newer families have it."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, {**BYTES, "use_regex": False}]}


ONE_DIGIT, THREE_DIGITS = _words(WORD.replace("DIGITS", r"\p{N}")), _words(WORD.replace("DIGITS", r"\p{N}{1,3}"))
OF_BLOOM = _words(" ?[^(\\s|[.,!?…。，、।۔،])]+")
OF_SMOLLM = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTES]}
OF_FALCON = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Punctuation", "behavior": "Contiguous"},
        BYTES,
        {"type": "Digits", "individual_digits": False},
        {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": False},
    ],
}


def byte_tokenizer(
    vocabulary: dict[str, int],
    added: list[dict[str, Any]],
    post: dict[str, Any] | None = None,
    words: dict[str, Any] | None = None,
    normalizer: dict[str, Any] | None = None,
) -> bytes:
    """tokenizer.json of a byte-level BPE."""
    # Tokens behind the ordinary ones stand in the list of added ones alone; tokens between them are in both.
    last = max(place for token, place in vocabulary.items() if token not in {one["content"] for one in added})
    return as_json(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": normalizer,
            "pre_tokenizer": words or BYTES,
            "post_processor": post or {**BYTES, "trim_offsets": False},
            "decoder": BYTES,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": {token: place for token, place in vocabulary.items() if place <= last},
                "merges": [" ".join(pair) for pair in byte_merges()],
            },
        }
    )


def piece_tokenizer(
    vocabulary: dict[str, int], added: list[dict[str, Any]], begin: str | None, prefix: bool, first: bool = False
) -> bytes:
    """tokenizer.json of a SentencePiece BPE with byte fallback.

    `prefix`: a space is put before each text, and after each special token in it; `first`: only before a text that does
    not begin with one.
    """
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizer = (
        {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]} if prefix else replace
    )
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    return as_json(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None if first else normalizer,
            "pre_tokenizer": space if first else None,
            "post_processor": begin_with(begin, vocabulary) if begin else None,
            "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": "<unk>",
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": True,
                "vocab": vocabulary,
                "merges": [" ".join(pair) for pair in piece_merges()],
            },
        }
    )


def sentencepiece(vocabulary: dict[str, int], control: Iterable[str], prefix: bool) -> bytes:
    """tokenizer.model: a SentencePiece ModelProto, written by hand."""

    def number(value: int) -> bytes:
        out = b""
        while value > 127:
            out, value = out + bytes([value & 127 | 128]), value >> 7
        return out + bytes([value])

    def message(field: int, content: bytes) -> bytes:
        return number(field << 3 | 2) + number(len(content)) + content

    def varint(field: int, value: int) -> bytes:
        return number(field << 3) + number(value)

    import struct

    out = b""
    for token, place in vocabulary.items():
        kind = 2 if token == "<unk>" else 3 if token in set(control) else 6 if re.fullmatch("<0x..>", token) else 1
        score = number(2 << 3 | 5) + struct.pack("<f", -float(place))
        out += message(1, message(1, token.encode()) + score + varint(3, kind))
    trainer = varint(3, 2) + varint(35, 1)
    for field, name in ((40, "<unk>"), (41, "<s>"), (42, "</s>"), (43, "<pad>")):
        if name in vocabulary:
            trainer += varint(field, vocabulary[name])
    normalizer = message(1, b"identity") + varint(3, int(prefix)) + varint(4, 0) + varint(5, 1)
    return out + message(2, trainer) + message(3, normalizer)


def merge_file() -> bytes:
    return ("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in byte_merges()) + "\n").encode()


def decoder_entries(added: list[dict[str, Any]]) -> dict[str, Any]:
    return {str(token["id"]): {key: token[key] for key in token if key != "id"} for token in added}
