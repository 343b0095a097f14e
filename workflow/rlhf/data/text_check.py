"""What a user sees of the texts that are trained, and a check of their ids against the tokenizer's own file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from rlhf.data.encoding import Encoded, Encoder
from rlhf.data.example import is_answered
from rlhf.data.texts import Piece, Row, Writer, Written, joined
from rlhf.errors import UserError
from rlhf.records.dataset import Bin, Check, Found, Lengths, ShownRow, TokensSplit, found, named
from rlhf.runtime.logging import get_logger

logger = get_logger(__name__)

CHECKED_ROWS = 200
SHOWN_ROWS = 3
MOST_BINS = 20


def split_report(ids: datasets.Dataset, bad: Mapping[str, Found]) -> TokensSplit:
    """The report of a split's rows, from the columns of their ids; those of `bad` rows have none."""
    usable = ids.select([place for place, reason in enumerate(ids["refused"]) if reason is None])
    spelled = [set(tokens) for tokens in usable["spelled"]]
    texts = {
        "prompt": [len(prompt) for prompt in usable["prompt"]],
        "answer": [length for row in usable if row["answered"] for length in row["lengths"]],
    }
    return {
        "rows": len(usable),
        "bad_rows": dict(bad),
        "lengths": {name: lengths_of(np.array(lengths)) for name, lengths in texts.items() if lengths},
        "border_tokens": _where(usable["row"], usable["spanning"]),
        "unseparated": _where(usable["row"], usable["unseparated"]),
        "equal_answers": _where(usable["row"], usable["equal"]),
        "spelled_special_tokens": _where(usable["row"], map(bool, spelled)),
        "spelled": sorted(set().union(*spelled)),
    }


def lengths_of(tokens: np.ndarray) -> Lengths:
    """What a report says of lengths in tokens, [texts] int64, at least one: a histogram with bins of one width."""
    low, high = int(tokens.min()), int(tokens.max())
    width = -(-(high - low + 1) // MOST_BINS)
    counts = np.bincount((tokens - low) // width).tolist()
    bins: list[Bin] = [
        {"from": low + place * width, "to": low + (place + 1) * width - 1, "count": count}
        for place, count in enumerate(counts)
    ]
    return {"mean": float(tokens.mean()), "p95": float(np.percentile(tokens, 95)), "max": high, "bins": bins}


def _where(rows: Iterable[int], mask: Iterable[bool]) -> Found:
    return found(int(row) for row, true in zip(rows, mask, strict=True) if true)


def log_report(report: TokensSplit, split: str) -> None:
    """Warn of what a user may not have meant, with what to do."""
    hints = {
        "border_tokens": "a token spans the border of prompt and answer, and is trained as part of the answer; the "
        "prompt's ids end before it: let prompts end where a token ends, for example without a space",
        "unseparated": "neither does the prompt end nor the answer begin with white space or a sign; where one belongs "
        "between them, write it into answer_format, for example ' {answer}'",
        "equal_answers": "answers that differ as texts are the same tokens, so reward training and evaluation leave "
        "the rows out; a vocabulary that lacks their words is the usual cause",
        "spelled_special_tokens": f"data spells out special tokens ({', '.join(report['spelled'])}), which are trained "
        "as the characters they are written with; let prompt_format, answer_format or chat_template write them",
    }
    counts: dict[str, Any] = dict(report)
    for name, hint in hints.items():
        rows: Found = counts[name]
        if rows["count"]:
            logger.warning(
                "%d of %d %s rows: %s (first rows: %s)", rows["count"], report["rows"], split, hint, rows["first_rows"]
            )
    if report["bad_rows"]:
        logger.warning("%s rows that are left out: %s", split, named(report["bad_rows"]))


def is_unseparated(row: Written) -> bool:
    """Whether a word of the prompt and a word of an answer touch, in a script that separates words by spaces."""
    end = joined(row.prompt)[-1:]
    return any(_of_a_word(end) and _of_a_word(joined(answer.text)[:1]) for answer in row.answers)


def _of_a_word(character: str) -> bool:
    return character.isascii() and character.isalnum()


def spelled_tokens(row: Written, encoder: Encoder) -> list[str]:
    """Special tokens that the data of a row spells out."""
    texts = (row.prompt, *(answer.body for answer in row.answers))
    return sorted({token for text in texts for token in encoder.spells(text)})


class TextCheck:
    """Compares ids with those that the tokenizer's own file gives for the same characters.

    Args:
        tokenizer: as it was loaded.
        model: its folder.
        writer: of the rows' texts.
        encoder: of their ids.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: Path, writer: Writer, encoder: Encoder) -> None:
        self._tokenizer, self._model, self._writer, self._encoder = tokenizer, model, writer, encoder
        self._file = Tokenizer.from_file(str(model / "tokenizer.json"))
        self._file.no_truncation()
        self._file.no_padding()

    def report(self, texts: datasets.Dataset, name: str) -> tuple[Check, list[ShownRow]]:
        """Check a sample of rows, and show the first of them.

        Args:
            texts: of a cached dataset, all of which can be written.
            name: of the dataset, for messages.

        Returns:
            How many rows and answers were compared, how many of these have the same ids in the file, how many give back
            their text when decoded; and some rows as text and ids.

        Raises:
            UserError: an answer has other ids than the file gives for its text.
        """
        places = np.unique(np.linspace(0, len(texts) - 1, min(CHECKED_ROWS, len(texts))).astype(int))
        rows = [dict(row) for row in texts.select(places)]
        written = [self._writer.write(row) for row in rows]
        check: Check = {"rows": len(rows), "answers": 0, "compared": 0, "decoded_as_given": 0}
        encoded = self._encoder.encode(written)
        for row, text, ids in zip(rows, written, encoded, strict=True):
            for number, answer in enumerate(ids.answers):
                given = joined([*text.prompt, *text.answers[number].text])
                check["answers"] += 1
                check["decoded_as_given"] += self._decoded([*ids.prompt, *answer[:-1]]) in (
                    given,
                    f"{self._tokenizer.bos_token}{given}",
                )
                if not self._special(text, number):
                    check["compared"] += 1
                    self._require_same(given, [*ids.prompt, *answer], f"{name}: row {row['row']}")
        shown = zip(rows[:SHOWN_ROWS], written, encoded, strict=False)
        return check, [self._shown(row, text, ids) for row, text, ids in shown]

    def _special(self, text: Written, number: int) -> bool:
        """Whether a text has special tokens, of which the file cannot tell whether they are data."""
        whole = [Piece(joined([*text.prompt, *text.answers[number].text]))]
        return bool(self._encoder.spells(whole))

    def _require_same(self, text: str, ids: list[int], place: str) -> None:
        expected = [*self._file.encode(text, add_special_tokens=False).ids, self._tokenizer.eos_token_id]
        if ids[-len(expected) :] != expected:
            raise UserError(
                f"{place}: the ids are not those that {self._model}/tokenizer.json gives for the text, because the "
                "class that its tokenizer_config.json names changes them; remove the folder and run again"
            )

    def _decoded(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text

    def _shown(self, row: Row, text: Written, ids: Encoded) -> ShownRow:
        answer, answer_ids = (joined(text.answers[0].text), ids.answers[0]) if is_answered(row) else ("", [])
        return {
            "row": row["row"],
            "prompt": joined(text.prompt),
            "answer": answer,
            "prompt_ids": ids.prompt,
            "answer_ids": answer_ids,
            "prompt_tokens": self._tokenizer.convert_ids_to_tokens(ids.prompt),
            "answer_tokens": self._tokenizer.convert_ids_to_tokens(answer_ids),
        }
