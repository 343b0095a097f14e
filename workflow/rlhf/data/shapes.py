"""The shapes in which datasets come, and how one row of each becomes a prompt with answers; pure functions."""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlhf.data.conversations import (
    asked_turns,
    conversation,
    dialogue,
    earlier_turns,
    spoken,
    two_conversations,
)
from rlhf.data.example import TIE, UNANSWERED, BadRow, Example, Formats, Messages, Row, as_number, as_text, in_order
from rlhf.data.labels import grades_of, grades_of_preference
from rlhf.data.questions import STAND_IN
from rlhf.data.trees import SPACED


@dataclass(frozen=True)
class Role:
    """What a column holds.

    Attributes:
        meaning: in words, for the manual.
        optional: a source may lack it.
        also: other usual names of its column, looked for where none is configured and there is none of the role's name.
    """

    meaning: str
    optional: bool = False
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shape:
    """A row shape.

    Attributes:
        meaning: in words, for the manual.
        roles: by the name of their default column.
        read: from the fields of a row, by role, to an example; None where an example has several rows.
        rows: examples, by what they show.
        needs: optional roles of which one at least has to be there.
        instead: choices between groups of roles of which one takes the place of the others: the one that is configured,
            else the first.
        plain: nearly any text can be read by it, so that it says nothing of the data that this is possible.
    """

    meaning: str
    roles: dict[str, Role]
    read: Callable[[Row, Formats], Example] | None
    rows: dict[str, Row]
    needs: tuple[str, ...] = ()
    instead: tuple[tuple[tuple[str, ...], ...], ...] = ()
    plain: bool = False

    @property
    def columns(self) -> set[str]:
        """The usual names of columns."""
        return {column for name, role in self.roles.items() for column in (name, *role.also)}

    def missing(self, present: set[str]) -> list[str]:
        """The roles that a row or a source lacks, those of which one is enough as one."""
        lacking = [
            name
            for name, role in self.roles.items()
            if not role.optional and name not in present and not present & set(self.replacing(name))
        ]
        return lacking if not self.needs or present & set(self.needs) else [*lacking, " or ".join(self.needs)]

    def replacing(self, role: str) -> list[str]:
        """The roles that take the place of one."""
        choices = [groups for groups in self.instead if any(role in group for group in groups)]
        return [name for groups in choices for group in groups if role not in group for name in group]


def _subset(fields: Row) -> str | None:
    return str(fields["subset"]) if "subset" in fields else None


def _asked(fields: Row, formats: Formats, default: str, **texts: str) -> tuple[str, str | None]:
    """The text of a prompt behind what `system` and `history` say before it, and its turns for a chat template.

    Args:
        fields: of the row.
        formats: of the dataset.
        default: template of the prompt alone.
        texts: fields of the template.
    """
    before, asked = earlier_turns(fields), formats.format_prompt(default, **texts)
    prompt = formats.format_prompt(default, before=spoken(before), **texts)
    return prompt, formats.turns(asked, [*before, ("user", asked)])


def _prompt(fields: Row, formats: Formats) -> tuple[str, str | None]:
    return _asked(fields, formats, "{prompt}", prompt=as_text(fields["prompt"], "prompt"))


def _of_turns(before: Messages, formats: Formats) -> tuple[str, str | None]:
    """The text of a conversation up to its answer, and its turns for a chat template."""
    prompt = formats.format_prompt("{prompt}", prompt=dialogue(before))
    return prompt, formats.turns(prompt, before)


def _pairs(fields: Row, formats: Formats) -> Example:
    prompt, turns = _prompt(fields, formats)
    chosen = formats.format_answer(fields["chosen"], "chosen")
    rejected = formats.format_answer(fields["rejected"], "rejected") if "rejected" in fields else None
    return _pair(prompt, chosen, rejected, fields, turns)


def _implicit(fields: Row, formats: Formats) -> Example:
    """The prompt is what both texts begin with; a space before the first difference belongs to the answers."""
    texts = [as_text(fields[role], role) for role in ("chosen", "rejected")]
    common = os.path.commonprefix(texts).removesuffix(" ")
    if not common.strip():
        raise BadRow("no common beginning")
    prompt = formats.format_prompt("{prompt}", prompt=common)
    chosen, rejected = (formats.format_answer(fields[role][len(common) :], role) for role in ("chosen", "rejected"))
    return _pair(prompt, chosen, rejected, fields, formats.turns(prompt))


def _prompts(fields: Row, formats: Formats) -> Example:
    if isinstance(fields["prompt"], list):
        prompt, turns = _of_turns(asked_turns(fields), formats)
    else:
        prompt, turns = _prompt(fields, formats)
    stand_in = formats.format_answer(STAND_IN, "prompt", SPACED)  # apart from the prompt's last word
    return Example(prompt, stand_in, subset=_subset(fields), ranks=(UNANSWERED,), turns=turns)


def _pair(prompt: str, chosen: str, rejected: str | None, fields: Row, turns: str | None) -> Example:
    """A pair with its margin, where the row has one; a margin is the rating of the better answer above a zero."""
    if rejected is None:
        return Example(prompt, chosen, subset=_subset(fields), turns=turns)
    margin = as_number(fields["margin"], "margin") if "margin" in fields else None
    if margin is not None and margin < 0:
        raise BadRow("negative margin")
    ratings = None if margin is None else (margin, 0.0)
    return Example(prompt, chosen, (rejected,), _subset(fields), (0, 1), ratings, turns)


def _dialogues(fields: Row, formats: Formats) -> Example:
    chosen_prompt, chosen = _last_turn(fields["chosen"], "chosen")
    rejected_prompt, rejected = _last_turn(fields["rejected"], "rejected")
    if chosen_prompt != rejected_prompt:
        raise BadRow("prompt differs")
    if formats.chat:
        chosen, rejected = _after_mark(chosen), _after_mark(rejected)
    prompt = formats.format_prompt("{prompt}", prompt=chosen_prompt)
    turns = formats.turns(prompt, _marked_turns(prompt)) if formats.chat else None
    answers = formats.format_answer(chosen, "chosen"), formats.format_answer(rejected, "rejected")
    return _pair(prompt, *answers, fields, turns)


def _marked_turns(text: str) -> Messages:
    """The turns before the answer; chat templates want users and assistants by turns."""
    first, *parts, _ = re.split(r"\n\n(Human|Assistant):", text)
    names, texts = parts[0::2], parts[1::2]  # the last mark is the answer's
    if first.strip() or names != ["Human", "Assistant"] * (len(names) // 2):
        raise BadRow("roles do not alternate: chosen")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [(roles[name], _after_mark(text)) for name, text in zip(names, texts, strict=False)]


def _after_mark(text: str) -> str:
    """A turn's text without the space that separates it from its mark."""
    return text.removeprefix(" ")


def _last_turn(value: Any, role: str) -> tuple[str, str]:
    """Everything through the last `Assistant:` mark, and the answer after it."""
    mark = "\n\nAssistant:"
    head, found, answer = as_text(value, role).rpartition(mark)
    if not found:
        raise BadRow(f"no assistant turn: {role}")
    return head + mark, answer


def _instructions(fields: Row, formats: Formats) -> Example:
    instruction, extra = as_text(fields["instruction"], "instruction"), as_text(fields.get("input", ""), "input")
    default = "{instruction}\n{input}" if extra else "{instruction}"
    if not formats.chat:
        default = f"Human: {default}\n\nAssistant:"
    prompt, turns = _asked(fields, formats, default, instruction=instruction, input=extra)
    answer = formats.format_answer(fields["output"], "output", SPACED)
    other = formats.format_answer(fields["rejected"], "rejected", SPACED) if "rejected" in fields else None
    return _pair(prompt, answer, other, fields, turns)


def _messages(fields: Row, formats: Formats) -> Example:
    before, chosen, rejected = conversation(fields)
    prompt, turns = _of_turns(before, formats)
    answer = formats.format_answer(chosen, "chosen" if "chosen" in fields else "messages", SPACED)
    other = None if rejected is None else formats.format_answer(rejected, "rejected", SPACED)
    return _pair(prompt, answer, other, fields, turns)


def _comparisons(fields: Row, formats: Formats) -> Example:
    grades, rated = _grades(fields)
    if grades[0] == grades[1]:
        raise BadRow(TIE)
    if "answer_0" not in fields and "conversation_0" in fields:
        roles = ("conversation_0", "conversation_1")
        if roles[1] not in fields:
            raise BadRow(f"missing field: {roles[1]}")
        return _compared_turns(fields, formats, roles, *two_conversations(fields, roles))
    roles = ("answer_0", "answer_1")
    if isinstance(fields["prompt"], list):
        return _compared_turns(fields, formats, roles, asked_turns(fields), [fields[role] for role in roles])
    answers = [formats.format_answer(fields[role], role) for role in roles]
    prompt, turns = _prompt(fields, formats)
    return in_order(prompt, answers, grades, _subset(fields), turns, rated)


def _compared_turns(
    fields: Row, formats: Formats, roles: tuple[str, str], before: Messages, said: list[Any]
) -> Example:
    """Two answers to a conversation."""
    grades, rated = _grades(fields)
    answers = [formats.format_answer(answer, role, SPACED) for answer, role in zip(said, roles, strict=True)]
    prompt, turns = _of_turns(before, formats)
    return in_order(prompt, answers, grades, _subset(fields), turns, rated)


def _grades(fields: Row) -> tuple[list[float], bool]:
    """Grades of the two answers, and whether they say by how much one is better; a label or one score does not."""
    scores = {role: as_number(fields[role], role) for role in ("score_0", "score_1") if role in fields}
    if not scores and "label" in fields:
        return grades_of(fields["label"]), False
    if not scores:
        return grades_of_preference(fields["preference"]), True
    for role, score in scores.items():
        if len(scores) == 1 and not 0 <= score <= 1:
            raise BadRow(f"not from 0 to 1, and alone: {role}")
    return [scores.get("score_0", 0.5), scores.get("score_1", 0.5)], len(scores) == 2


def _ratings(fields: Row, formats: Formats) -> Example:
    """One rated answer; `rejected` is filled in when the answers of a prompt are put in order."""
    prompt, turns = _prompt(fields, formats)
    answer = formats.format_answer(fields["answer"], "answer")
    return Example(prompt, answer, subset=_subset(fields), turns=turns)


def _ranked(fields: Row, formats: Formats) -> Example:
    """Answers best first, unless ratings (higher is better) or ranks (lower is better) give another order."""
    answers = [formats.format_answer(answer, "answers") for answer in _list(fields, "answers")]
    if not answers:
        raise BadRow("empty answer: answers")
    grades = [float(-place) for place in range(len(answers))]
    role = next((role for role in ("ratings", "ranks") if role in fields), None)
    if role is not None:
        sign = 1 if role == "ratings" else -1
        grades = [sign * as_number(number, role) for number in _list(fields, role)]
    if len(grades) != len(answers):
        raise BadRow(f"not as many as answers: {role}")
    prompt, turns = _prompt(fields, formats)
    return in_order(prompt, answers, grades, _subset(fields), turns, rated=role == "ratings")


def _list(fields: Row, role: str) -> list[Any]:
    value = fields[role]
    if not isinstance(value, list):
        raise BadRow(f"wrong type: {role}")
    return value


PROMPT = Role("text")
MARGIN = Role("number of at least 0: by how much the chosen answer is better", optional=True)
SUBSET = Role("a name for the reports", optional=True)
SYSTEM = Role("text: what the system says before all turns", optional=True)
HISTORY = Role(
    "turns before the prompt: a list of pairs of a question with its answer, or of messages; written with `Human:` and "
    "`Assistant:` before the prompt, or by the chat template",
    optional=True,
)
BEFORE = {"system": SYSTEM, "history": HISTORY}


def _said(*turns: str) -> list[dict[str, str]]:
    """Messages of a user and an assistant by turns."""
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(turns)]


def _share_gpt(*turns: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(turns)]


SHAPES = {
    "pairs": Shape(
        "A prompt with an answer, and perhaps one that it was preferred to.",
        {
            "prompt": PROMPT,
            "chosen": Role("text", also=("completion",)),
            "rejected": Role("text", optional=True),
            "margin": MARGIN,
            **BEFORE,
            "subset": SUBSET,
        },
        _pairs,
        {
            "a pair": {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"},
            "with the system's words": {"system": "Be exact.", "prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"},
            "for SFT alone, as TRL has it": {"prompt": "2 + 2 =", "completion": " 4"},
        },
    ),
    "dialogues": Shape(
        "Two dialogues as text, equal up to the last answer.",
        {
            "chosen": Role("text with `\\n\\nHuman:` and `\\n\\nAssistant:` before what is said"),
            "rejected": Role("such a text"),
            "margin": MARGIN,
            "subset": SUBSET,
        },
        _dialogues,
        {
            "as Anthropic/hh-rlhf": {
                "chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4",
                "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 5",
            }
        },
    ),
    "instructions": Shape(
        "An instruction with an answer.",
        {
            "instruction": Role("text"),
            "input": Role("text that the instruction is about", optional=True, also=("context",)),
            "output": Role("text: the answer", also=("response", "chosen")),
            "rejected": Role("text: a worse answer", optional=True),
            "margin": MARGIN,
            **BEFORE,
            "subset": SUBSET,
        },
        _instructions,
        {
            "as Alpaca": {"instruction": "Add the numbers.", "input": "2 2", "output": "4"},
            "with turns before it, as LLaMA-Factory has them": {
                "system": "Be exact.",
                "history": [["Who are you?", "A calculator."]],
                "instruction": "Add the numbers.",
                "input": "2 2",
                "output": "4",
            },
            "preferences": {"instruction": "Add the numbers.", "input": "2 2", "chosen": "4", "rejected": "5"},
        },
    ),
    "messages": Shape(
        "A conversation as a list of messages: `role` (user, assistant, system) with `content`, or `from` (human, gpt, "
        "system) with `value`.",
        {
            "messages": Role(
                "a conversation that ends with the assistant's answer; beside `chosen`: the messages, or the user's "
                "text, before the answer",
                optional=True,
                also=("conversations", "prompt"),
            ),
            "chosen": Role(
                "the answer as a message, a list of one, a text, or behind all that is said before it",
                optional=True,
                also=("completion",),
            ),
            "rejected": Role("the worse answer, in one of these forms", optional=True),
            "margin": MARGIN,
            "system": Role("text: what the system says, where no message does", optional=True),
            "subset": SUBSET,
        },
        _messages,
        {
            "a conversation": {"messages": _said("2 + 2?", "4", "And 3 + 3?", "6")},
            "as ShareGPT": {"conversations": _share_gpt("2 + 2?", "4", "And 3 + 3?", "6")},
            "with the system's words apart": {"system": "Be exact.", "conversations": _share_gpt("2 + 2?", "4")},
            "with a worse answer": {"messages": _said("2 + 2?", "4"), "rejected": _said("2 + 2?", "5")},
            "preferences as LLaMA-Factory has them": {
                "conversations": _share_gpt("2 + 2?"),
                "chosen": {"from": "gpt", "value": "4"},
                "rejected": {"from": "gpt", "value": "5"},
            },
            "preferences as TRL has them": {
                "prompt": _said("2 + 2?"),
                "chosen": _said("2 + 2?", "4")[1:],
                "rejected": _said("2 + 2?", "5")[1:],
            },
            "the same without the prompt apart": {"chosen": _said("2 + 2?", "4"), "rejected": _said("2 + 2?", "5")},
            "for SFT alone, as TRL has it": {"prompt": _said("2 + 2?"), "completion": _said("2 + 2?", "4")[1:]},
        },
        needs=("messages", "chosen"),
    ),
    "implicit": Shape(
        "Two texts with the same beginning, which is the prompt, as TRL has them.",
        {
            "chosen": Role("text: the prompt and the better answer"),
            "rejected": Role("text: the prompt and the worse answer"),
            "margin": MARGIN,
            "subset": SUBSET,
        },
        _implicit,
        {"a pair": {"chosen": "2 + 2 = 4", "rejected": "2 + 2 = 5"}},
        plain=True,
    ),
    "trees": Shape(
        "Messages of trees, one a row: every question of a tree with its answers is an example, all of a tree stay "
        "together. Beside ranked answers to a question, those without a rank are left out; where nobody ranked them, "
        "each answer is an example for SFT.",
        {
            "id": Role("identifier of the message", also=("message_id",)),
            "parent": Role(
                "identifier of the message that it answers; null: it begins a tree", optional=True, also=("parent_id",)
            ),
            "role": Role("who speaks: user or prompter, assistant"),
            "text": Role("what is said"),
            "rank": Role("number; 0 is the best answer to its parent", optional=True),
            "subset": SUBSET,
        },
        None,
        {
            "a question": {"message_id": "a", "parent_id": None, "role": "prompter", "text": "2 + 2?", "rank": None},
            "the best answer to it": {
                "message_id": "b",
                "parent_id": "a",
                "role": "assistant",
                "text": "4",
                "rank": 0,
            },
            "another one": {"message_id": "c", "parent_id": "a", "role": "assistant", "text": "5", "rank": 1},
        },
    ),
    "ratings": Shape(
        "One rated answer; all rows of a prompt become one example.",
        {
            "prompt": PROMPT,
            "answer": Role("text"),
            "rating": Role("number; higher is better"),
            **BEFORE,
            "subset": SUBSET,
        },
        _ratings,
        {
            "one answer": {"prompt": "2 + 2 =", "answer": " 4", "rating": 5},
            "another, to the same prompt": {"prompt": "2 + 2 =", "answer": " 5", "rating": 1},
        },
    ),
    "ranked": Shape(
        "A prompt with a list of answers.",
        {
            "prompt": PROMPT,
            "answers": Role("list of texts, best first where there are neither ratings nor ranks"),
            "ratings": Role("list of numbers; higher is better, equal ones are ties", optional=True),
            "ranks": Role("list of numbers in their place; lower is better, equal ones are ties", optional=True),
            **BEFORE,
            "subset": SUBSET,
        },
        _ranked,
        {"with ratings": {"prompt": "2 + 2 =", "answers": [" 3", " 4", " 5"], "ratings": [2, 5, 2]}},
        instead=((("ratings",), ("ranks",)),),
    ),
    "comparisons": Shape(
        "A prompt with two answers, and which of them is better.",
        {
            "prompt": Role("text, or a list of messages that ends with the user's"),
            "answer_0": Role("text"),
            "answer_1": Role("text"),
            "conversation_0": Role(
                "in the place of prompt and answers: a list of messages that ends with the answer",
                optional=True,
                also=("conversation_a",),
            ),
            "conversation_1": Role(
                "the same with the other answer; where what is said before differs, the row is left out",
                optional=True,
                also=("conversation_b",),
            ),
            "score_0": Role(
                "number; alone, from 0 to 1 or true or false: above 0.5, answer_0 is better", optional=True
            ),
            "score_1": Role("the same of answer_1", optional=True),
            "label": Role(
                "in the place of scores, in capitals or not: `1`, `a`, `model_a`, `first`: answer_0 is better; `2`, "
                "`b`, `model_b`, `second`: answer_1 is; `0`, `tie`, `tie (bothbad)`, `both`, `neither`: the row "
                "is left out",
                optional=True,
                also=("winner",),
            ),
            "preference": Role(
                "in the place of scores and label, a number from -3 to 3: below 0, answer_0 is better, above 0, "
                "answer_1 is, by so much; at 0 the row is left out",
                optional=True,
                also=("overall_preference", "preference_strength"),
            ),
            **BEFORE,
            "subset": SUBSET,
        },
        _comparisons,
        {
            "with scores": {"prompt": "2 + 2 =", "answer_0": " 4", "answer_1": " 5", "score_0": 0.9, "score_1": 0.2},
            "with a label": {"prompt": "2 + 2 =", "answer_0": " 4", "answer_1": " 5", "label": 1},
            "with a winner": {"prompt": "2 + 2 =", "answer_0": " 4", "answer_1": " 5", "winner": "model_a"},
            "as HelpSteer3": {
                "prompt": _said("2 + 2?"),
                "answer_0": "4",
                "answer_1": "5",
                "overall_preference": -2,
            },
            "as Chatbot Arena": {
                "model_a": "koala-13b",
                "model_b": "oasst-pythia-12b",
                "winner": "model_b",
                "conversation_a": _said("2 + 2?", "5"),
                "conversation_b": _said("2 + 2?", "4"),
            },
        },
        needs=("score_0", "score_1", "label", "preference"),
        instead=(
            (("score_0", "score_1"), ("label",), ("preference",)),
            (("prompt", "answer_0", "answer_1", "history"), ("conversation_0", "conversation_1")),
        ),
    ),
    "prompts": Shape(
        "A prompt without an answer: for PPO alone, with `data_split: 0,0,1`.",
        {
            "prompt": Role("text, or a list of messages that ends with the user's", also=("messages",)),
            **BEFORE,
            "subset": SUBSET,
        },
        _prompts,
        {"a text": {"prompt": "2 + 2 ="}, "messages, as TRL has them": {"prompt": _said("2 + 2?")}},
        plain=True,
    ),
}
