"""Conversations as datasets have them, read as the turns before an answer and the answers; pure functions.

A message is `{"role": ..., "content": ...}` or, as ShareGPT has it, `{"from": ..., "value": ...}`. The answers to a
prompt come as messages alone or as whole conversations that begin with the prompt, as LLaMA-Factory and TRL have them.
What the system says, and the turns before the last question, may stand in columns of their own.
"""

from __future__ import annotations

from typing import Any

from rlhf.data.example import BadRow, Messages, Row, as_text

SPEAKERS = {
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "bard", "bing", "claude", "chatbot", "bot", "model"),
    "system": ("system",),
}
ROLES = {name: role for role, names in SPEAKERS.items() for name in names}
MARKS = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: ", "system": ""}


def turns_of(value: Any, field: str) -> Messages:
    """The turns of a message or a list of them.

    Args:
        value: of a row.
        field: its role, for the reason.

    Raises:
        BadRow: it is something else, somebody unknown speaks, or what is said is no text.
    """
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise BadRow(f"wrong type: {field}")
    return [_turn(message, field) for message in messages]


def _turn(message: dict[str, Any], field: str) -> tuple[str, str]:
    share_gpt = message.get("role") is None and "from" in message
    speaker, said = ("from", "value") if share_gpt else ("role", "content")
    name = message.get(speaker)
    if not isinstance(name, str) or name.lower() not in ROLES:
        raise BadRow(f"unknown role: {field}")
    return ROLES[name.lower()], as_text(message.get(said), field)


def conversation(fields: Row) -> tuple[Messages, str, str | None]:
    """The turns before the answer, the answer, and the one it was preferred to, if there is one.

    Args:
        fields: `messages`, a whole conversation or, beside `chosen`, the turns before the answers; `chosen` and
            `rejected`, answers alone or behind the turns before them. One of `messages` and `chosen` is there.
            `system`: what the system says, where no message does.

    Raises:
        BadRow: these are no such messages, or do not fit each other.
    """
    if "messages" not in fields:
        prompt, chosen = _ended(turns_of(fields["chosen"], "chosen"), "chosen")
    else:
        prompt, chosen = _given(fields)
    if not prompt:
        raise BadRow(f"nothing before the answer: {'messages' if 'messages' in fields else 'chosen'}")
    rejected = _answer(fields["rejected"], prompt, "rejected") if "rejected" in fields else None
    return _with_system(fields, prompt), chosen, rejected


def two_conversations(fields: Row, roles: tuple[str, str]) -> tuple[Messages, list[str]]:
    """The turns before the answers of two conversations that differ in their last answer alone, and the answers.

    Args:
        fields: of a row; perhaps with `system`, as in `conversation`.
        roles: of the two.

    Raises:
        BadRow: they are no such conversations.
    """
    (prompt, answer), (other, other_answer) = (_ended(turns_of(fields[role], role), role) for role in roles)
    if prompt != other:
        raise BadRow("prompt differs")
    return _with_system(fields, prompt), [answer, other_answer]


def asked_turns(fields: Row) -> Messages:
    """The turns of a prompt that is a list of messages, behind what `system` and `history` say before it.

    Args:
        fields: `prompt`; perhaps `system` and `history`, as in `earlier_turns`.

    Raises:
        BadRow: these are no messages, or the user does not speak last.
    """
    turns = turns_of(fields["prompt"], "prompt")
    if not turns or turns[-1][0] != "user":
        raise BadRow("no user turn at the end: prompt")
    return _with_system(fields, [*_history(fields.get("history") or []), *turns])


def earlier_turns(fields: Row) -> Messages:
    """What is said before a prompt.

    Args:
        fields: perhaps `system`, a text, and `history`, pairs of a question with its answer, or messages.

    Raises:
        BadRow: they hold something else.
    """
    return [*_system(fields), *_history(fields.get("history") or [])]


def _system(fields: Row) -> Messages:
    said = as_text(fields.get("system", ""), "system")
    return [("system", said)] if said.strip() else []


def _with_system(fields: Row, turns: Messages) -> Messages:
    system = _system(fields)
    if system and turns[:1] != system and any(role == "system" for role, _ in turns):
        raise BadRow("other words than those of the messages: system")
    return turns if turns[:1] == system else [*system, *turns]


def _history(value: Any) -> Messages:
    if not isinstance(value, list):
        raise BadRow("wrong type: history")
    turns: Messages = []
    for part in value:
        if isinstance(part, list) and len(part) == 2:
            turns += [("user", as_text(part[0], "history")), ("assistant", as_text(part[1], "history"))]
        else:
            turns += turns_of(part, "history")
    if turns and turns[-1][0] != "assistant":
        raise BadRow("no answer to the last turn: history")
    return turns


def _given(fields: Row) -> tuple[Messages, str]:
    given = fields["messages"]
    if "chosen" not in fields:
        return _ended(turns_of(given, "messages"), "messages")
    whole = [("user", given)] if isinstance(given, str) else turns_of(given, "messages")
    if not whole or whole[-1][0] != "assistant":
        return whole, _answer(fields["chosen"], whole, "chosen")
    prompt, answer = _ended(whole, "messages")
    if _answer(fields["chosen"], prompt, "chosen") != answer:
        raise BadRow("other answer than that of messages: chosen")
    return prompt, answer


def _ended(turns: Messages, field: str) -> tuple[Messages, str]:
    """What stands before the answer with which the turns end, and the answer."""
    if not turns or turns[-1][0] != "assistant":
        raise BadRow(f"no assistant turn: {field}")
    return turns[:-1], turns[-1][1]


def _answer(value: Any, prompt: Messages, field: str) -> str:
    """An answer that is given as a text, as a message, or behind the prompt's turns."""
    if isinstance(value, str):
        return value
    before, answer = _ended(turns_of(value, field), field)
    if before and before != prompt:
        raise BadRow("prompt differs")
    return answer


def each_answer(fields: Row) -> list[Row]:
    """The fields of one example for each assistant turn after a user's; the last has what is said of its answers.

    Raises:
        BadRow: see `conversation`.
    """
    prompt, _, _ = conversation(fields)
    users = [place for place, (role, _) in enumerate(prompt) if role == "user"]
    alone = {role: value for role, value in fields.items() if role not in ("chosen", "rejected", "margin")}
    messages = [{"role": role, "content": text} for role, text in prompt]
    earlier = [
        alone | {"messages": messages[: place + 1]}
        for place, (role, _) in enumerate(prompt)
        if role == "assistant" and users and place > users[0]
    ]
    return [*earlier, fields]


def dialogue(turns: Messages) -> str:
    """The turns as plain text, with marks before what is said, up to the mark of the answer."""
    return spoken(turns) + "\n\nAssistant:"


def spoken(turns: Messages) -> str:
    """The turns as plain text, with marks before what is said."""
    text = "".join(MARKS[role] + said for role, said in turns)
    return text if turns and turns[0][0] == "system" else text.removeprefix("\n\n")
