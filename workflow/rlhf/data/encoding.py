"""Token ids of texts: those of prompt and answer together, special tokens only where a format or template wrote them.

A prompt's ids are the beginning of the ids of the whole text. A token that spans the border of prompt and answer
belongs to the answer: the prompt must be the same before every answer, and must not tell how its answer begins.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from rlhf.data.texts import Piece, Text, Written
from rlhf.errors import UserError


@dataclass(frozen=True)
class Encoded:
    """Ids of a row.

    Attributes:
        prompt: what all answers follow.
        answers: of each answer, EOS included.
        spanning: the end of the prompt's text that is in the answers' first token; mostly empty.
    """

    prompt: list[int]
    answers: list[list[int]]
    spanning: str


class Encoder:
    """Token ids of written texts.

    Args:
        tokenizer: with a tokenizer.json (a fast one) and an EOS token.

    Raises:
        UserError: it is not a fast one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        require_fast(tokenizer)
        special = special_tokens(tokenizer)
        self._end = Piece(str(tokenizer.eos_token), own=True)
        # Nobody can know these names, so that no text has them.
        self._names = {token: f"{secrets.token_hex(16)}{number}x" for number, token in enumerate(special)}
        self._hidden = {name: token for token, name in self._names.items()}
        self._pattern = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
        self._tokenizer = _renamed(tokenizer, special, self._names)
        self._special = {special[token]: self._names[token] for token in special}
        self._opening = _opening(tokenizer)

    def encode(self, rows: Sequence[Written]) -> list[Encoded]:
        """Ids of each row."""
        texts = [self._protected([*row.prompt, *answer.text, self._end]) for row in rows for answer in row.answers]
        whole = iter(zip(texts, self._tokenizer.encode_batch(texts, add_special_tokens=False), strict=True))
        return [self._row(row, [next(whole) for _ in row.answers]) for row in rows]

    def whole(self, row: Written, ended: bool) -> list[int]:
        """Ids of the prompt and its only answer in one; with the EOS where the answer has `ended`."""
        (answer,) = row.answers
        text = self._protected([*row.prompt, *answer.text, *([self._end] if ended else [])])
        return [*self._before(row, text), *self._tokenizer.encode(text, add_special_tokens=False).ids]

    def spells(self, text: Text) -> list[str]:
        """Special tokens that the data of a text spells out, which stay characters."""
        return [token for piece in text if not piece.own for token in self._pattern.findall(piece.text)]

    def _row(self, row: Written, whole: list[tuple[str, Encoding]]) -> Encoded:
        border = len(self._protected(row.prompt))
        first = whole[0][1].ids
        shared = min(self._covered(text, encoding, border) for text, encoding in whole)
        while any(encoding.ids[:shared] != first[:shared] for _, encoding in whole):
            shared -= 1
        while shared and any(_tears_a_character(encoding, shared) for _, encoding in whole):
            shared -= 1
        begins = min(encoding.offsets[shared][0] for _, encoding in whole)
        return Encoded(
            [*self._before(row, whole[0][0]), *first[:shared]],
            [encoding.ids[shared:] for _, encoding in whole],
            self._shown(whole[0][0][min(begins, border) : border]),
        )

    def _covered(self, text: str, encoding: Encoding, border: int) -> int:
        """How many tokens lie before the border; one that strips spaces around it lies where its name is."""
        for number, (token, (start, end)) in enumerate(zip(encoding.ids, encoding.offsets, strict=True)):
            name = self._special.get(token, "")
            if name and name in text[start:end]:  # an unknown word has an id of a special token, but not its name
                end = text.index(name, start) + len(name)
            if not (start < border and end <= border):
                return number
        return len(encoding.ids)

    def _before(self, row: Written, text: str) -> list[int]:
        """What the tokenizer puts before a text (BOS), unless the text begins with it."""
        written = "".join(self._special.get(token, "") for token in self._opening)
        return [] if row.opened or text.startswith(written) else self._opening

    def _protected(self, text: Text) -> str:
        """The text as the tokenizer reads it: special tokens under their secret names, those in data as they are."""
        return "".join(
            self._pattern.sub(lambda found: self._names[found[0]], piece.text) if piece.own else piece.text
            for piece in text
        )

    def _shown(self, text: str) -> str:
        for name, token in self._hidden.items():
            text = text.replace(name, token)
        return text


def _tears_a_character(encoding: Encoding, place: int) -> bool:
    """Whether a character, of whose bytes several tokens are made, begins before a token and goes on in it."""
    return bool(encoding.offsets[place][0] < encoding.offsets[place - 1][1])


def require_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that cannot tell from which characters a token comes.

    Raises:
        UserError: it has no tokenizer.json.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"{tokenizer.name_or_path}: {type(tokenizer).__name__} is no tokenizer with a tokenizer.json (a fast one), "
            "and cannot tell where a prompt ends; convert it with transformers, and save model and tokenizer again"
        )


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Special tokens and their ids, in the order of the ids."""
    added = tokenizer.added_tokens_decoder.values()
    names = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
    ids = {name: int(tokenizer.convert_tokens_to_ids(name)) for name in names}
    return dict(sorted(ids.items(), key=lambda item: item[1]))


def _opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before every text: BOS, or nothing."""
    encoding = tokenizer("a", return_special_tokens_mask=True)
    mask = [*encoding["special_tokens_mask"], 0]
    ids: list[int] = encoding["input_ids"]
    return ids[: mask.index(0)]


def _renamed(tokenizer: PreTrainedTokenizerBase, special: dict[str, int], names: dict[str, str]) -> Tokenizer:
    """The same tokenizer, but that its special tokens have other names, in the vocabulary too.

    So a text that spells one out is read as any other text. The tokenizer's own switch (`encode_special_tokens`) is not
    enough: it is for all special tokens of a text or none, and a vocabulary of words, or one whose merges spell a
    special token, finds it among its ordinary entries.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content |= {"truncation": None, "padding": None, "post_processor": None}
    _rename_vocabulary(content["model"], names)
    ordinary = [token for token in content["added_tokens"] if token["content"] not in names]
    flags = {token["content"]: token for token in content["added_tokens"]}
    plain = {"lstrip": False, "rstrip": False}
    renamed = [
        {**plain, **flags.get(token, {}), "id": number, "content": names[token], "special": True}
        | {"normalized": False, "single_word": False}
        for token, number in special.items()
    ]
    content["added_tokens"] = sorted([*ordinary, *renamed], key=lambda token: int(token["id"]))
    made = Tokenizer.from_str(json.dumps(content))
    moved = [token for token, number in special.items() if made.token_to_id(names[token]) != number]
    if moved:
        raise UserError(f"{tokenizer.name_or_path}: tokenizer.json has no consistent id for {', '.join(moved)}")
    return made


def _rename_vocabulary(model: dict[str, Any], names: dict[str, str]) -> None:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    else:  # Unigram: pieces with their scores
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [
            (left, right)
            for left, right in (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
            if not {left, right, left + right.removeprefix(prefix)} & set(names)
        ]
