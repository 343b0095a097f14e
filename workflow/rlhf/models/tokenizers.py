"""Tokenizers for models that start from scratch, the special tokens every model needs, and texts of ids."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlhf.config.sources import TokenizerSettings
from rlhf.errors import UserError
from rlhf.models.pieces import tokenizer_of_pieces
from rlhf.runtime.logging import get_logger

logger = get_logger(__name__)

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


def load_as_published(folder: Path, options: dict[str, Any], place: str, name: str) -> PreTrainedTokenizerBase:
    """A tokenizer that gives the ids which its tokenizer.json gives, or without one its sentencepiece model.

    The class that tokenizer_config.json names may put its own rules in the place of those of the file: `LlamaTokenizer`
    does, and words after a special token then begin without the space that the file puts there. The file is what other
    programs read too.

    Args:
        folder: with its files.
        options: of `from_pretrained`.
        place: configuration path of the source, for messages.
        name: of the source.

    Raises:
        UserError: nothing gives the ids of the file, or the tokenizer has no such file and cannot be made one.
    """

    def find(part: str) -> Path | None:
        return folder / part if (folder / part).exists() else None

    file = find("tokenizer.json")
    made = tokenizer_of_pieces(find, f"{place}: {name!r}") if file is None else None
    if made is not None:
        return made
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **options)
    if not tokenizer.is_fast:
        raise UserError(
            f"{place}: {name!r} has a {type(tokenizer).__name__}, which has no tokenizer.json (no fast one) and "
            "cannot tell where a prompt ends; convert it with transformers, and save model and tokenizer again"
        )
    if file is None:
        return tokenizer
    changed = changed_rules(tokenizer, file)
    if not changed:
        return tokenizer
    logger.warning(
        "%s: %s changes %s of %s; the file counts, and the tokenizer is saved without this class",
        place,
        type(tokenizer).__name__,
        ", ".join(changed),
        file.name,
    )
    plain: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder, **options)
    changed = changed_rules(plain, file)
    if changed:
        raise UserError(f"{place}: {name!r}: loading the tokenizer changes {', '.join(changed)} of its tokenizer.json")
    return plain


def changed_rules(tokenizer: PreTrainedTokenizerBase, file: Path) -> list[str]:
    """What of a tokenizer.json a tokenizer does otherwise; what precedes and follows a text (BOS, EOS) is not meant.

    Args:
        tokenizer: a fast one.
        file: tokenizer.json.
    """
    own = json.loads(tokenizer.backend_tokenizer.to_str())
    published = json.loads(Tokenizer.from_file(str(file)).to_str())
    changed = [rule for rule in ("normalizer", "pre_tokenizer", "model") if own[rule] != published[rule]]
    added, expected = ({(token["content"], token["id"]) for token in t["added_tokens"]} for t in (own, published))
    return [*changed, *(["added_tokens"] if expected - added else [])]


def settle_special_tokens(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, eos_token: str | None, pad_token: str | None, place: str
) -> None:
    """Give tokenizer and model an EOS token and a different padding token.

    A padding token equal to EOS would mask EOS out of the loss, so that stopping is never trained. A missing one is
    added, with a row in the embedding: what the row holds is for whoever writes the weights to say.

    Args:
        tokenizer: changed in place.
        model: its embedding and configuration are changed in place; it may be without storage.
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
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for config in (model.config, model.generation_config):
        if config is not None:
            config.eos_token_id = tokenizer.eos_token_id
            config.pad_token_id = tokenizer.pad_token_id


def _known(tokenizer: PreTrainedTokenizerBase, token: str, key: str) -> str:
    if token not in tokenizer.get_vocab():
        raise UserError(f"{key}: {token!r} is not one of this model's {len(tokenizer)} tokens; see its tokenizer.json")
    return token


def decode(tokenizer: PreTrainedTokenizerBase, sequences: list[np.ndarray], special: bool = False) -> list[str]:
    """Texts of id sequences.

    Args:
        tokenizer: which made the ids.
        sequences: id arrays.
        special: whether special tokens are written too, such as the marks of a chat's turns; else they are left out.
    """
    ids = [sequence.tolist() for sequence in sequences]
    texts: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=not special)
    return texts
