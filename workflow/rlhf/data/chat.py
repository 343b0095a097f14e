"""Conversations as a chat template writes them."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from rlhf.config.sources import OF_TOKENIZER
from rlhf.data.clock import without_clock
from rlhf.data.encoding import require_fast, special_tokens
from rlhf.data.texts import Answer, Piece, PlainText, Row, Text, Writer, Written, cut, joined, own_texts
from rlhf.errors import UserError

LONGEST = 200  # characters of a template's words
MARK = re.compile("\ue000(\\d+)\ue001")  # from a private area of Unicode


class RefusedRow(UserError):
    """A row that a template cannot write.

    Args:
        reason: under which it is counted.
        row: its number in the source.
    """

    def __init__(self, reason: str, row: int) -> None:
        super().__init__(f"{reason} (row {row})")
        self.reason = reason


class Part(NamedTuple):
    """A part of a written conversation: the template's own text, or that of the turn of this number."""

    text: Text
    turn: int | None = None


class Turn(NamedTuple):
    """A turn before the template writes it."""

    role: str
    text: Text


class Chat:
    """The writer of rows whose prompts are turns of a chat.

    Args:
        tokenizer: with distinct EOS and padding tokens.
        template: `tokenizer`, or a Jinja template.

    Raises:
        UserError: the tokenizer has no template of its own, or cannot tell where its tokens come from.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        require_fast(tokenizer)
        self._tokenizer = tokenizer
        given, name = None if template == OF_TOKENIZER else template, tokenizer.name_or_path
        if given is None and not tokenizer.chat_template:
            raise UserError(f"{name}: the tokenizer has no chat template; write one as chat_template of the dataset")
        try:
            self._template = without_clock(tokenizer.get_chat_template(given))
        except ValueError as error:  # it has several, and none is the default
            raise UserError(f"{name}: {error}; write the one that you mean as chat_template of the dataset") from None
        self._special = special_tokens(tokenizer)

    def write(self, row: Row) -> Written:
        """The turns of a row as the template writes them.

        The template may leave out the white space around a turn's text, as many do; it must not change it otherwise.

        Raises:
            RefusedRow: the template fails, refuses a role, changes a text, ends answers with another special token than
                EOS, or does not continue the prompt when it writes the answer.
        """
        prompt, *answers = own_texts(row)
        messages = [Turn(turn["role"], [Piece(turn["content"])]) for turn in json.loads(row["turns"])]
        whole, asked = joined(prompt), joined(messages[-1].text) if messages else ""
        if asked and whole.endswith(asked):
            messages[-1] = Turn(
                messages[-1].role, cut(prompt, len(whole) - len(asked), len(whole))
            )  # words of a format
        try:
            written = joined_parts(self._write(messages, add_generation_prompt=True))
            continued = [self._answer(messages, joined(written), answer) for answer in answers]
        except MemoryError:
            raise
        except Exception as error:  # a template is a program: with one row it can fail in any way
            words = " ".join(str(error).split()) or type(error).__name__
            raise RefusedRow(f"chat_template cannot write it: {words[:LONGEST]}", row["row"]) from None
        return Written(written, continued, opened=True)

    def _answer(self, messages: list[Turn], prompt: str, answer: Text) -> Answer:
        """What the template adds to the prompt for an answer, up to its end; EOS, which ends it, is left out."""
        whole = self._write([*messages, Turn("assistant", answer)], add_generation_prompt=False)
        places = [place for place, part in enumerate(whole) if part.turn == len(messages)]
        if len(places) != 1:
            raise ValueError(f"it writes an answer {len(places)} times")
        lead = joined(joined_parts(whole[: places[0]]))
        if not lead.startswith(prompt):
            raise ValueError("with an answer, it writes the prompt in another way than without")
        closing, ended, _ = joined(joined_parts(whole[places[0] + 1 :])).partition(self._tokenizer.eos_token)
        for token in self._special:
            if token in closing:
                raise ValueError(
                    f"it ends answers with {token!r}, but the model's EOS is {self._tokenizer.eos_token!r}; name it in "
                    "eos_token of the model"
                )
        # A closing without EOS is the template's own way to end a turn, whose place EOS takes.
        return Answer(lead[len(prompt) :], whole[places[0]].text, closing if ended else "")

    def _write(self, messages: list[Turn], add_generation_prompt: bool) -> list[Part]:
        """The template's text, told from that of the turns by marks that stand in for these."""
        marked = [f"\ue000{number}\ue001" for number in range(len(messages))]
        pieces = MARK.split(self._apply(messages, marked, add_generation_prompt))
        own, turns = pieces[0::2], list(map(int, pieces[1::2]))
        texts = [joined(message.text) for message in messages]
        pattern = re.escape(own[0]) + "".join(
            f"({_perhaps_trimmed(texts[turn])}){re.escape(after)}" for turn, after in zip(turns, own[1:], strict=True)
        )
        found = re.fullmatch(pattern, self._apply(messages, texts, add_generation_prompt))
        if found is None:
            raise ValueError("it changes the text of a turn, so that special tokens in it cannot be told from its own")
        parts = [Part([Piece(own[0], own=True)])]
        for number, (turn, after) in enumerate(zip(turns, own[1:], strict=True), start=1):
            start = texts[turn].index(found[number])
            kept = cut(messages[turn].text, start, start + len(found[number]))
            parts += [Part(kept, turn), Part([Piece(after, own=True)])]
        return parts

    def _apply(self, messages: list[Turn], contents: list[str], add_generation_prompt: bool) -> str:
        conversation: list[dict[str, Any]] = [
            {"role": message.role, "content": content} for message, content in zip(messages, contents, strict=True)
        ]
        text: str = self._tokenizer.apply_chat_template(
            conversation,
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
        return text


def writer_of(tokenizer: PreTrainedTokenizerBase, template: str | None) -> Writer:
    """What decides the text of a dataset's rows.

    Args:
        tokenizer: of the model that reads them.
        template: `chat_template` of the dataset; None: plain text.

    Raises:
        UserError: see `Chat`.
    """
    return PlainText() if template is None else Chat(tokenizer, template)


def joined_parts(parts: list[Part]) -> Text:
    """The text of parts; own words that follow each other are one piece."""
    text: Text = []
    for part in parts:
        for piece in part.text:
            if text and text[-1].own and piece.own:
                text[-1] = Piece(text[-1].text + piece.text, own=True)
            else:
                text.append(piece)
    return text


def _perhaps_trimmed(text: str) -> str:
    """A pattern of a text with or without the white space around it."""
    core = text.strip()
    before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :] if core else ""
    return f"(?:{re.escape(before)})?{re.escape(core)}(?:{re.escape(after)})?"
