"""Prompts as text beside their ids: what another model than the one that the ids are for reads instead."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from rlhf.data.texts import Row, Text, Writer, Written, cut, joined

STAND_IN = "x"  # in the place of an answer that no template may change or refuse


@dataclass(frozen=True)
class Question:
    """A prompt as text.

    Attributes:
        chat_template: `tokenizer`: each model's own; a Jinja template; None: plain text.
        row: of the cached dataset: `prompt` and its `own` words, `turns` and number.
        before: text that belongs to the prompt, or to the template, but is among the answer's ids: see
            `rlhf.data.encoding`.
        after: text that the template writes between an answer and EOS.
    """

    chat_template: str | None
    row: Row
    before: str
    after: str

    def answered(self, writer: Writer, answer: Text) -> Written:
        """The prompt with another answer, as another model's writer writes it.

        Args:
            writer: of a tokenizer and `chat_template`.
            answer: what follows the prompt's ids, without EOS.
        """
        written = writer.write({**self.row, "chosen": STAND_IN, "rejected": []})
        text = joined(answer)
        start = len(self.before) if text.startswith(self.before) else 0
        end = len(text) - (len(self.after) if text[start:].endswith(self.after) else 0)
        return replace(written, answers=[replace(written.answers[0], body=cut(answer, start, end))])


def question(row: Row, written: Written, spanning: str) -> str:
    """What the token store keeps of a prompt, as JSON.

    Args:
        row: of the cached dataset.
        written: its text.
        spanning: the end of the prompt's text that is among the answer's ids.
    """
    kept = {name: row[name] for name in ("prompt", "turns", "row")}
    kept["own"] = [row["own"][0], []] if row["own"] else None
    answer = written.answers[0]
    return json.dumps({"row": kept, "before": spanning + answer.lead, "after": answer.closing}, ensure_ascii=False)
