"""Tokenizers for models that start from scratch, the special tokens every model needs, and texts of ids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlhf.config.sources import TokenizerSettings
from rlhf.errors import UserError
from rlhf.runtime.seeds import seed_everything

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"


def train_tokenizer(texts: Iterable[str], settings: TokenizerSettings) -> PreTrainedTokenizerFast:
    """Train a tokenizer with distinct padding, end and unknown tokens.

    Args:
        texts: training texts.
        settings: `kind` (`words`: one token per whitespace-separated word, or `bpe`: byte-level BPE) and `vocab_size`
            (special tokens included).
    """
    special = [PAD, EOS, UNKNOWN]
    if settings.kind == "words":
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer: Any = trainers.WordLevelTrainer(vocab_size=settings.vocab_size, special_tokens=special)
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=settings.vocab_size,
            special_tokens=special,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
    tokenizer.train_from_iterator(sorted(texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )


def settle_special_tokens(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, eos_token: str | None, pad_token: str | None, place: str
) -> None:
    """Give tokenizer and model an EOS token and a different padding token.

    A padding token equal to EOS would mask EOS out of the loss, so that stopping is never trained. A missing one is
    added, with a row in the embedding.

    Args:
        tokenizer: changed in place.
        model: its embedding and configuration are changed in place.
        eos_token: token from the configuration that replaces the tokenizer's EOS, or None.
        pad_token: token from the configuration that replaces the tokenizer's padding, or None.
        place: configuration path of the model, for messages.

    Raises:
        UserError: a token of the configuration is not in the vocabulary, or there is no EOS token.
    """
    if eos_token is not None:
        tokenizer.eos_token = _known(tokenizer, eos_token, f"{place}.eos_token")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{place}: the tokenizer has no EOS token; name one of its tokens in {place}.eos_token")
    if pad_token is not None:
        tokenizer.pad_token = _known(tokenizer, pad_token, f"{place}.pad_token")
        if tokenizer.pad_token_id == tokenizer.eos_token_id:
            raise UserError(f"{place}.pad_token: {pad_token!r} is the EOS token too; choose another, or leave it unset")
    elif tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.add_special_tokens({"pad_token": PAD})
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        seed_everything(0)  # the new row is random
        model.resize_token_embeddings(len(tokenizer))
    for config in (model.config, model.generation_config):
        if config is not None:
            config.eos_token_id = tokenizer.eos_token_id
            config.pad_token_id = tokenizer.pad_token_id


def _known(tokenizer: PreTrainedTokenizerBase, token: str, key: str) -> str:
    if token not in tokenizer.get_vocab():
        raise UserError(f"{key}: {token!r} is not one of this model's {len(tokenizer)} tokens; see its tokenizer.json")
    return token


def decode(tokenizer: PreTrainedTokenizerBase, sequences: list[np.ndarray]) -> list[str]:
    """Texts of id sequences, special tokens left out."""
    ids = [sequence.tolist() for sequence in sequences]
    texts: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts
