"""Tiny tokenizers of the kinds that published models have, all with the same special tokens."""

from __future__ import annotations

import functools
import json
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD, UNKNOWN = "<s>", "</s>", "<pad>", "<unk>"
USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL = [UNKNOWN, BOS, EOS, PAD, USER, ASSISTANT, END]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TEXTS = [
    "Once upon a time there was a model. def f(x):\n    return x\n",
    "### Response:\nYes, it is. http://example.org/ Human: hello Assistant: hi there",
    "<s> </s> <pad> <|user|> <|end|> <|assistant|> </s></s></s> <|user|><|user|>",  # merges that spell special tokens
    "什么是苹果？苹果是一种水果。 é ü ß 🙂🎉",
] * 3
KINDS = ("byte-bpe", "metaspace-first", "metaspace-always", "prepend", "words")


def make_tokenizer(kind: str, bos: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer trained on a few lines.

    Args:
        kind: one of `KINDS`.
        bos: whether it puts BOS before a text.
    """
    tokenizer = Tokenizer.from_str(_trained(kind))
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT, END],
        clean_up_tokenization_spaces=False,
    )


@functools.cache
def _trained(kind: str) -> str:
    tokenizer = _words() if kind == "words" else _byte_bpe() if kind == "byte-bpe" else _metaspace(kind)
    text: str = tokenizer.to_str()
    return text


def _byte_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    _train(tokenizer, trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet))
    return tokenizer


def _metaspace(kind: str) -> Tokenizer:
    """As sentencepiece: a space is a letter, bytes stand for what is unknown, and a text begins with a space."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # no token of several words
    _train(tokenizer, trainers.BpeTrainer(vocab_size=600, special_tokens=[*SPECIAL, *BYTES]))
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in SPECIAL]
    tokenizer = Tokenizer.from_str(json.dumps(content | {"pre_tokenizer": None}))
    if kind == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        scheme: Any = kind.removeprefix("metaspace-")
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def _words() -> Tokenizer:
    """Whole words, and letters for others; its trainer would make another vocabulary in each process."""
    words = sorted({word for text in TEXTS for word in text.split()} - set(SPECIAL))
    letters = sorted(set("".join(words)))
    vocabulary = [
        *SPECIAL,
        *words,
        *(letter for letter in letters if letter not in words),
        *(f"##{c}" for c in letters),
    ]
    tokenizer = Tokenizer(models.WordPiece({token: n for n, token in enumerate(vocabulary)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def _train(tokenizer: Tokenizer, trainer: Any) -> None:
    trainer.show_progress = False
    tokenizer.train_from_iterator(TEXTS, trainer)
