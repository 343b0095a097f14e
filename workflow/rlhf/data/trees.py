"""Trees of messages, one message a row, as OpenAssistant publishes them: every question with its answers.

The answers to a question are its children that an assistant wrote; what was said before it are its ancestors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from rlhf.data.conversations import ROLES, dialogue
from rlhf.data.example import BadRow, Example, Formats, Messages, Row, as_number, as_text, checked, in_order

SPACED = " {answer}"  # behind a prompt that ends with `Assistant:`


@dataclass(frozen=True)
class Message:
    """A message of a tree.

    Attributes:
        number: of its row in the source.
        fields: of the row, by role.
        role: `user`, `assistant` or `system`.
        text: what is said.
        parent: identifier of the message that it answers; None: it begins a tree.
        rank: among the answers to the same message, 0 being the best; None: nobody ranked it.
    """

    number: int
    fields: Row
    role: str
    text: str
    parent: str | None
    rank: float | None


def message_of(number: int, fields: Row) -> Message:
    """A row as a message.

    Args:
        number: of the row.
        fields: `id`, `role`, `text`, perhaps `parent` and `rank`.

    Raises:
        BadRow: somebody unknown speaks, or what is said is no text.
    """
    speaker = fields["role"]
    if not isinstance(speaker, str) or speaker.lower() not in ROLES:
        raise BadRow("unknown role: role")
    rank = as_number(fields["rank"], "rank") if "rank" in fields else None
    parent = str(fields["parent"]) if "parent" in fields else None
    return Message(number, fields, ROLES[speaker.lower()], as_text(fields["text"], "text"), parent, rank)


def answered_questions(messages: list[Message], formats: Formats) -> Iterator[tuple[int, Example | str]]:
    """One example per question with ranked answers, one per answer where nobody ranked them.

    Of several answers, those without a rank beside ranked ones are left out.

    Args:
        messages: of all trees, in any order.
        formats: of the dataset.

    Yields:
        The row of the best answer, and an example that stays together with its tree, or the reason why there is none.
    """
    known = {str(message.fields["id"]): message for message in messages}
    replies: dict[str, list[Message]] = defaultdict(list)
    for message in messages:
        if message.role == "assistant":
            replies[message.parent or ""].append(message)
    for parent, answers in replies.items():
        ranked = [answer for answer in answers if answer.rank is not None]
        for group in [ranked] if len(ranked) > 1 else [[answer] for answer in answers]:
            best = min(group, key=lambda answer: answer.rank or 0)
            try:
                yield best.number, _example(_thread(parent, known), group, formats)
            except BadRow as reason:
                yield best.number, str(reason)


def _thread(identifier: str, known: dict[str, Message]) -> list[Message]:
    """The messages from the beginning of a tree to one of them."""
    thread: list[Message] = []
    place: str | None = identifier
    while place is not None:
        if place not in known:
            raise BadRow("no such message: parent")
        if len(thread) > len(known):
            raise BadRow("messages in a circle: parent")
        thread.append(known[place])
        place = known[place].parent
    return thread[::-1]


def _example(thread: list[Message], answers: list[Message], formats: Formats) -> Example:
    if thread[-1].role != "user":
        raise BadRow("roles do not alternate: role")
    before: Messages = [(message.role, message.text) for message in thread]
    prompt = formats.format_prompt("{prompt}", prompt=dialogue(before))
    texts = [formats.format_answer(answer.text, "text", SPACED) for answer in answers]
    question = thread[-1].fields
    subset = str(question["subset"]) if "subset" in question else None
    grades = [-(answer.rank or 0) for answer in answers]
    example = in_order(prompt, texts, grades, subset, formats.turns(prompt, before))
    return replace(checked(example), group=str(question.get("group", thread[0].fields["id"])))
