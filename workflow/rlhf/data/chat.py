"""Conversations as a chat template writes them, with the template's special tokens and none that a text spells out."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf.data.clock import without_clock
from rlhf.data.groups import answer_groups, grouped_ids
from rlhf.data.special import OrdinaryText
from rlhf.errors import UserError

OF_TOKENIZER = "tokenizer"
MARK = re.compile("\ue000(\\d+)\ue001")  # from a private area of Unicode


@dataclass(frozen=True)
class Piece:
    """A part of a written conversation: the template's own text, or (`turn`) that of the turn of this number."""

    text: str
    turn: int | None = None


class Chat:
    """Token ids of conversations.

    Args:
        tokenizer: with distinct EOS and padding tokens.
        template: `tokenizer`, or a Jinja template.

    Raises:
        UserError: the tokenizer has no template of its own, or cannot tell where its tokens come from.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        self._tokenizer = tokenizer
        self._template = None if template == OF_TOKENIZER else template
        name = tokenizer.name_or_path
        if self._template is None and not tokenizer.chat_template:
            raise UserError(f"{name}: the tokenizer has no chat template; write one as chat_template of the dataset")
        try:
            self._template = without_clock(tokenizer.get_chat_template(self._template))
        except ValueError as error:  # it has several, and none is the default
            raise UserError(f"{name}: {error}; write the one that you mean as chat_template of the dataset") from None
        if not tokenizer.is_fast:
            raise UserError(f"{name}: chat_template needs a tokenizer with a tokenizer.json (a fast one)")
        self._ordinary = OrdinaryText(tokenizer)

    def encode(self, batch: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        """Columns of the token store: ids of prompts, and of answers as they follow them, EOS included.

        Args:
            batch: columns `turns`, `chosen`, `rejected`, `row` of a cached dataset.

        Raises:
            UserError: the template fails, refuses a role, changes a text, ends answers with another special token than
                EOS, or does not continue the prompt when it writes the answer.
        """
        prompts: list[list[Piece]] = []
        answers: list[list[Piece]] = []
        groups = answer_groups(batch)
        for turns, group, row in zip(batch["turns"], groups, batch["row"], strict=True):
            messages = json.loads(turns)
            try:
                prompts.append(self._write(messages, add_generation_prompt=True))
                answers += [self._answer(messages, prompts[-1], answer) for answer in group]
            except (TemplateError, TypeError, ValueError) as error:
                raise UserError(f"chat_template: row {row} cannot be written with it: {error}") from None
        end = self._tokenizer.eos_token_id
        ids = [[*answer, end] for answer in self._ids(answers)]
        return {"prompt": self._ids(prompts), **grouped_ids(groups, ids)}

    def _answer(self, messages: list[dict[str, str]], prompt: list[Piece], answer: str) -> list[Piece]:
        """What the template adds to the prompt for an answer, up to its end; EOS, which ends it, is left out."""
        whole = self._write([*messages, {"role": "assistant", "content": answer}], add_generation_prompt=False)
        places = [place for place, piece in enumerate(whole) if piece.turn == len(messages)]
        if len(places) != 1:
            raise ValueError(f"it writes an answer {len(places)} times")
        lead = _text(whole[: places[0]])
        if not lead.startswith(_text(prompt)):
            raise ValueError("with an answer, it writes the prompt in another way than without")
        closing, ended, _ = _text(whole[places[0] + 1 :]).partition(self._tokenizer.eos_token)
        for token in self._ordinary.names:
            if token in closing:
                raise ValueError(
                    f"it ends answers with {token!r}, but the model's EOS is {self._tokenizer.eos_token!r}; name it in "
                    "eos_token of the model"
                )
        # A closing without EOS is the template's own way to end a turn, whose place EOS takes.
        return [Piece(lead[len(_text(prompt)) :]), whole[places[0]], Piece(closing if ended else "")]

    def _write(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> list[Piece]:
        """The template's text with marks in the place of the turns' texts, so that both can be told apart."""
        hollow = [{**message, "content": f"\ue000{turn}\ue001"} for turn, message in enumerate(messages)]
        parts = MARK.split(self._apply(hollow, add_generation_prompt))
        pieces = [Piece(parts[0])]
        for turn, text in zip(map(int, parts[1::2]), parts[2::2], strict=True):
            pieces += [Piece(messages[turn]["content"], turn), Piece(text)]
        if _text(pieces) != self._apply(messages, add_generation_prompt):
            raise ValueError("it changes the text of a turn, so that special tokens in it cannot be told from its own")
        return pieces

    def _apply(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        text: str = self._tokenizer.apply_chat_template(
            messages,
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
        return text

    def _ids(self, texts: list[list[Piece]]) -> list[list[int]]:
        """Ids of written texts; a special token that touches the text of a turn is read as ordinary characters."""
        encoded = self._tokenizer(list(map(_text, texts)), add_special_tokens=False, return_offsets_mapping=True)
        rows = zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return [self._ordinary.restore(_text(pieces), ids, offsets, _spans(pieces)) for pieces, ids, offsets in rows]


def _text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _spans(pieces: list[Piece]) -> list[tuple[int, int]]:
    """(first, last + 1) characters of the turns' texts."""
    spans, start = [], 0
    for piece in pieces:
        if piece.turn is not None:
            spans.append((start, start + len(piece.text)))
        start += len(piece.text)
    return spans
