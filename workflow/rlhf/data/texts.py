"""What a row's text is: words that a format or a chat template wrote, and words of the data, told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, NamedTuple, Protocol

Row = dict[str, Any]  # of a cached dataset


class Piece(NamedTuple):
    """A part of a text; special tokens are special in a format's or template's `own` words, and characters in data."""

    text: str
    own: bool = False


Text = list[Piece]


@dataclass(frozen=True)
class Answer:
    """What follows a prompt, up to the EOS.

    Attributes:
        lead: what a chat template writes before the answer; the rest of the attributes in the order of the text.
        body: the answer.
        closing: what a chat template writes between the answer and EOS.
    """

    lead: str
    body: Text
    closing: str

    @property
    def text(self) -> Text:
        """All of it."""
        return [Piece(self.lead, own=True), *self.body, Piece(self.closing, own=True)]


@dataclass(frozen=True)
class Written:
    """The text of a row: each answer follows the prompt directly, without anything between them.

    Attributes:
        prompt: before every answer.
        answers: chosen and rejected ones.
        opened: whether the prompt begins as the model's texts do; else the tokenizer puts its BOS before it.
    """

    prompt: Text
    answers: list[Answer]
    opened: bool


class Writer(Protocol):
    """Decides what a row's text is; all ids are made from that."""

    def write(self, row: Row) -> Written:
        """The text of a row of a cached dataset."""


class PlainText:
    """The writer of rows whose formats were applied when they were cached."""

    def write(self, row: Row) -> Written:
        """The texts as they are cached."""
        prompt, *answers = own_texts(row)
        return Written(prompt, [Answer("", answer, "") for answer in answers], opened=False)


class Formatted(str):
    """A text that knows which of its characters are a format's own words.

    Attributes:
        own: (first, last + 1) of each run of them.
    """

    own: tuple[tuple[int, int], ...] = ()


def formatted(template: str, **fields: str) -> Formatted:
    """The template with its fields filled in, as `str.format` does it."""
    pieces: Text = []
    for literal, name, spec, conversion in Formatter().parse(template):
        pieces.append(Piece(literal, own=True))
        if name is not None:
            field = f"{{{name}{f'!{conversion}' if conversion else ''}{f':{spec}' if spec else ''}}}"
            pieces.append(Piece(field.format(**fields)))
    text, own = Formatted(joined(pieces)), []
    start = 0
    for piece in pieces:
        if piece.own and piece.text:
            own.append((start, start + len(piece.text)))
        start += len(piece.text)
    text.own = tuple(own)
    return text


def own_spans(texts: Sequence[str]) -> list[list[int]] | None:
    """Column `own` of a cached dataset: for each text, first and last + 1 of each run of a format's words, or None."""
    spans = [[place for span in getattr(text, "own", ()) for place in span] for text in texts]
    return spans if any(spans) else None


def own_texts(row: Row) -> list[Text]:
    """Prompt, chosen and rejected texts of a row of a cached dataset, as pieces."""
    texts = [row["prompt"], row["chosen"], *row["rejected"]]
    return [_pieces(text, spans) for text, spans in zip(texts, row["own"] or [[]] * len(texts), strict=True)]


def _pieces(text: str, spans: list[int]) -> Text:
    """A text cut where a format's words begin and end."""
    places = [0, *spans, len(text)]
    return [
        Piece(text[start:end], own=number % 2 == 1)
        for number, (start, end) in enumerate(zip(places, places[1:], strict=False))
        if end > start
    ]


def cut(text: Text, start: int, end: int) -> Text:
    """The characters from `start` to `end` of a text, as pieces."""
    kept, place = [], 0
    for piece in text:
        part = piece.text[max(0, start - place) : max(0, end - place)]
        if part:
            kept.append(Piece(part, piece.own))
        place += len(piece.text)
    return kept


def joined(text: Text) -> str:
    """The characters of a text."""
    return "".join(piece.text for piece in text)
