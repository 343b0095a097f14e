"""Rows in the forms in which they are published: read as meant, refused with the shape to write, or counted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rlhf.config import resolve
from rlhf.config.specification import ResolvedDataset
from rlhf.data.dataset import cache_dataset, load_cached
from rlhf.data.example import Example, Row
from rlhf.data.examples import examples
from rlhf.data.mappings import row_format
from rlhf.data.shapes import SHAPES
from rlhf.errors import UserError
from rlhf.files import read_json
from tests.project import tiny_config


def read(shape: str | None, *rows: Any, **settings: Any) -> list[Example | str]:
    """What becomes of rows: examples, or the reason why not."""
    dataset = ResolvedDataset(source={"path": "rows.jsonl"}, shape=shape, **settings)
    return [result for _, result in examples(rows, row_format(dataset), "datasets.mine")]


def refused(shape: str | None, *rows: Any, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(shape, *rows, **settings)
    return str(caught.value)


def said(*texts: str, first: str = "user") -> list[dict[str, str]]:
    """Messages by turns."""
    names = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": names[place % 2], "content": text} for place, text in enumerate(texts)]


def share_gpt(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]


PROMPT = "Human: Hi\n\nAssistant: Yes?\n\nHuman: Go.\n\nAssistant:"
BEFORE = ("Hi", "Yes?", "Go.")
FORMS: dict[str, Row] = {
    "conversation": {"messages": said(*BEFORE, "Gone."), "rejected": said(*BEFORE, "No.")},
    "worse answer alone": {"messages": said(*BEFORE, "Gone."), "rejected": said("No.", first="assistant")},
    "ShareGPT": {"conversations": share_gpt(*BEFORE, "Gone."), "rejected": {"from": "gpt", "value": "No."}},
    "LLaMA-Factory": {
        "conversations": share_gpt(*BEFORE),
        "chosen": {"from": "gpt", "value": "Gone."},
        "rejected": {"from": "gpt", "value": "No."},
    },
    "TRL": {
        "prompt": said(*BEFORE),
        "chosen": said("Gone.", first="assistant"),
        "rejected": said("No.", first="assistant"),
    },
    "TRL, implicit prompt": {"chosen": said(*BEFORE, "Gone."), "rejected": said(*BEFORE, "No.")},
    "all of them": {
        "prompt": "Hi",
        "messages": said(*BEFORE, "Gone."),
        "chosen": said(*BEFORE, "Gone."),
        "rejected": said(*BEFORE, "No."),
    },
    "texts as answers": {"prompt": said(*BEFORE), "chosen": "Gone.", "rejected": "No."},
}


@pytest.mark.parametrize("name", FORMS)
def test_a_preference_is_the_same_in_every_form(name: str) -> None:
    (example,) = read("messages", FORMS[name])
    assert isinstance(example, Example)
    assert (example.prompt, example.chosen, example.rejected) == (PROMPT, " Gone.", (" No.",))
    (chat,) = read("messages", FORMS[name], turns=True)
    assert isinstance(chat, Example)
    assert (json.loads(chat.turns or ""), chat.chosen, chat.rejected) == (said(*BEFORE), "Gone.", ("No.",))


def test_a_prompt_as_text_is_the_users_turn_and_a_completion_the_answer() -> None:
    whole = {"prompt": "Hi", "chosen": said("Hi", "Yes?"), "rejected": said("Hi", "No.")}
    completed = {"prompt": said("Hi"), "completion": said("Yes?", first="assistant")}
    pair, alone = read("messages", whole, completed)
    assert isinstance(pair, Example)
    assert isinstance(alone, Example)
    assert pair.prompt == alone.prompt == "Human: Hi\n\nAssistant:"
    assert (pair.rejected, alone.rejected) == ((" No.",), ())
    (plain,) = read("pairs", {"prompt": "p", "completion": "c"})
    assert isinstance(plain, Example)
    assert (plain.prompt, plain.chosen) == ("p", "c")


def test_messages_that_cannot_be_read_are_counted_with_their_role() -> None:
    good = {"messages": said("Hi", "Yes?")}
    bad: list[tuple[Row, str]] = [
        ({"messages": said("Hi")}, "no assistant turn: messages"),
        ({"messages": "Hi"}, "wrong type: messages"),
        ({"messages": [{"role": "tool", "content": "3"}, *said("Hi", "Yes?")]}, "unknown role: messages"),
        ({"messages": [{"role": ["user"], "content": "3"}, *said("Hi", "Yes?")]}, "unknown role: messages"),
        ({"messages": [*said("Hi"), {"role": "assistant", "content": None}]}, "wrong type: messages"),
        ({"messages": [*said("Hi"), {"from": "gpt", "value": ["Yes?"]}]}, "wrong type: messages"),
        ({"messages": said("Hi", " ")}, "empty answer: messages"),
        (good | {"rejected": said("Ho", "No.")}, "prompt differs"),
        (good | {"rejected": said("Ho")}, "no assistant turn: rejected"),
        (good | {"rejected": 3}, "wrong type: rejected"),
        (good | {"chosen": "No."}, "other answer than that of messages: chosen"),
        ({"messages": said("Hi"), "chosen": said("Ho", "Yes?")}, "prompt differs"),
        ({"messages": None}, "missing field: messages or chosen"),
        ({"messages": said("Yes?", first="assistant")}, "nothing before the answer: messages"),
        ({"chosen": said("Yes?", first="assistant")}, "nothing before the answer: chosen"),
    ]
    assert read("messages", good, *(row for row, _ in bad))[1:] == [reason for _, reason in bad]


@pytest.mark.parametrize(
    ("shape", "row", "columns", "written"),
    [
        (None, FORMS["ShareGPT"], {}, "`shape: messages`"),
        (None, FORMS["LLaMA-Factory"], {}, "`shape: messages`"),
        ("pairs", FORMS["TRL"], {}, "`shape: messages`"),
        ("dialogues", FORMS["TRL, implicit prompt"], {}, "`shape: messages`"),
        ("pairs", FORMS["conversation"], {}, "`shape: messages`"),
        (
            "pairs",
            {"talk": said("Hi"), "good": "Yes?", "poor": "No."},
            {"prompt": "talk", "chosen": "good", "rejected": "poor"},
            "`shape: messages` with columns: {messages: talk, chosen: good, rejected: poor}",
        ),
        (None, {"instruction": "Add.", "input": "", "output": "4"}, {}, "`shape: instructions`"),
        ("pairs", {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}, {},
         "`shape: dialogues`"),
        ("messages", {"prompt": "p", "answers": ["a", "b"]}, {}, "`shape: ranked`"),
    ],
)  # fmt: skip
def test_rows_of_another_shape_name_the_shape_to_write(
    shape: str | None, row: Row, columns: dict[str, str], written: str
) -> None:
    message = refused(shape, *[row] * 30, columns=columns)
    assert message.startswith("datasets.mine.")
    assert f"write {written}" in message


def test_a_single_usable_row_leaves_the_shape_as_it_is() -> None:
    results = read("pairs", *[FORMS["TRL"]] * 3, {"prompt": "p", "chosen": "a"})
    assert results[:3] == ["wrong type: prompt"] * 3


def test_rows_of_no_shape_are_counted() -> None:
    assert read("pairs", {"prompt": 1, "chosen": 2}) == ["wrong type: prompt"]


TALK = said("a", "b", "c", "d", "e", "f")


def test_each_assistant_turn_can_be_an_answer() -> None:
    """Written out by hand; the rejected answer and the margin are the last turn's."""
    row = {"messages": TALK, "rejected": "g", "margin": 2, "subset": "x"}
    found = read("messages", row, assistant_turns="each")
    assert [(one.prompt, one.chosen, one.rejected, one.ratings) for one in found if isinstance(one, Example)] == [
        ("Human: a\n\nAssistant:", " b", (), None),
        ("Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", " d", (), None),
        ("Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d\n\nHuman: e\n\nAssistant:", " f", (" g",), (2.0, 0.0)),
    ]
    assert [one.subset for one in found if isinstance(one, Example)] == ["x"] * 3
    (last,) = read("messages", row)
    assert last == found[-1]


def test_an_assistants_greeting_answers_nothing() -> None:
    greeting = {"messages": [*said("Welcome.", first="assistant"), *said("a", "b")]}
    assert len(read("messages", greeting, assistant_turns="each")) == 1


def test_an_empty_turn_makes_a_bad_row_where_it_would_be_an_answer() -> None:
    row = {"messages": said("a", " ", "c", "d")}
    assert isinstance(read("messages", row)[0], Example)
    good = {"messages": said("a", "b")}
    assert read("messages", good, row, assistant_turns="each")[1:] == ["empty answer: messages"]


@pytest.mark.parametrize("keep", ["prompt", "row"])
def test_answers_of_a_conversation_stay_together(tmp_path: Path, keep: str) -> None:
    """Also with those of another one that has the same beginning, where prompts stay together."""
    rows = [{"messages": said(f"a{n // 2}", "b", f"c{n}", "d", "e", "f")} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": str(tmp_path / "rows.jsonl"), "eval_share": 0.3}
    settings = ResolvedDataset(source=source, shape="messages", assistant_turns="each", keep_together=keep)
    cache_dataset(settings, tmp_path / "dataset", "datasets.mine")
    train, unseen = (load_cached(tmp_path / "dataset", split) for split in ("train", "eval"))
    assert len(train) + len(unseen) == 120
    assert not set(train["row"]) & set(unseen["row"])
    assert bool(set(train["prompt"]) & set(unseen["prompt"])) == (keep == "row")
    report = read_json(tmp_path / "dataset/report.json")["splits"]["train"]
    assert (report["rows_read"], report["bad_share"]) == (40, 0)


def arena(winner: str, first: list[dict[str, str]], second: list[dict[str, str]]) -> Row:
    """A row with the columns of lmsys/chatbot_arena_conversations."""
    return {
        "question_id": "58210e39b3fd4441a2bd4a518bb44c2d",
        "model_a": "chatglm-6b",
        "model_b": "koala-13b",
        "winner": winner,
        "judge": "arena_user_14",
        "conversation_a": first,
        "conversation_b": second,
        "turn": len(first) // 2,
        "anony": True,
        "language": "English",
        "tstamp": 1682351591.1322,
        "openai_moderation": {"flagged": False},
        "toxic_chat_tag": {"roberta-large": {"flagged": False, "probability": 0.01}},
    }


def test_the_conversations_of_an_arena_are_compared() -> None:
    short, long = said("Hi", "Yes?"), said(*BEFORE, "Gone.")
    rows = [
        arena("model_b", said("Hi", "No."), short),
        arena("model_a", long, said(*BEFORE, "No.")),
        arena("tie (bothbad)", short, said("Hi", "No.")),
        arena("model_a", long, said("Hi", "What?", "Go.", "No.")),  # what is judged has other beginnings
        arena("model_a", short, None),  # type: ignore[arg-type]
        arena("model_a", said("Hi"), short),
    ]
    first, second, *others = read("comparisons", *rows)
    assert isinstance(first, Example)
    assert isinstance(second, Example)
    assert (first.prompt, first.chosen, first.rejected) == ("Human: Hi\n\nAssistant:", " Yes?", (" No.",))
    assert (second.prompt, second.chosen, second.rejected, second.ranks) == (PROMPT, " Gone.", (" No.",), (0, 1))
    assert others == ["tie", "prompt differs", "missing field: conversation_1", "no assistant turn: conversation_0"]
    (chat,) = read("comparisons", rows[1], turns=True)
    assert isinstance(chat, Example)
    assert (json.loads(chat.turns or ""), chat.chosen) == (said(*BEFORE), "Gone.")
    assert "write `shape: comparisons`" in refused(None, *rows[:2])
    text = "columns.prompt: no row has a column 'prompt'; the columns are question, answer_0"
    assert text in refused("comparisons", {"question": "p", "answer_0": "x", "answer_1": "y", "label": 1})


SYSTEM = {"role": "system", "content": "Be brief."}
HISTORIES = {"pairs": [["Hi", "Yes?"]], "messages": said("Hi", "Yes?"), "ShareGPT": share_gpt("Hi", "Yes?")}
ASKED: list[tuple[str, Row, str]] = [  # shape, row, chosen
    ("pairs", {"prompt": "Go.", "chosen": "Gone.", "rejected": "No."}, "Gone."),
    ("comparisons", {"prompt": "Go.", "answer_0": "Gone.", "answer_1": "No.", "label": 1}, "Gone."),
    ("ranked", {"prompt": "Go.", "answers": ["Gone.", "No."]}, "Gone."),
    ("instructions", {"instruction": "Go.", "input": "", "output": "Gone."}, " Gone."),
]


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize(("shape", "row", "chosen"), ASKED, ids=[shape for shape, _, _ in ASKED])
def test_what_stands_in_columns_of_its_own_comes_before_the_prompt(
    shape: str, row: Row, chosen: str, history: str
) -> None:
    """With the marks of `messages` in plain text, and as turns of a chat."""
    form = {} if shape == "instructions" else {"prompt_format": "Human: {prompt}\n\nAssistant:"}
    before = {"system": "Be brief.", "history": HISTORIES[history]}
    none: list[Row] = [{"system": "", "history": []}, {"system": None, "history": None}, {"history": ""}]
    (whole,) = read(shape, row | before, **form)
    assert isinstance(whole, Example)
    assert (whole.prompt, whole.chosen) == (f"Be brief.\n\n{PROMPT}", chosen)
    bare = "Human: Go.\n\nAssistant:"
    assert [getattr(one, "prompt", one) for one in read(shape, *(row | part for part in none), **form)] == [bare] * 3
    chats = read(shape, row | before, row, turns=True)
    turns = [json.loads(chat.turns or "") for chat in chats if isinstance(chat, Example)]
    assert turns == [[SYSTEM, *said("Hi", "Yes?", "Go.")], said("Go.")]
    wrong = [{"system": 3}, {"history": "Hi"}, {"history": [["Hi"]]}, {"history": [["Hi", None]]}, {"history": [3]}]
    reasons = read(shape, row, *(row | part for part in wrong), row | {"history": said("Hi")}, **form)[1:]
    assert reasons == ["wrong type: system", *["wrong type: history"] * 4, "no answer to the last turn: history"]


def test_ratings_of_one_prompt_under_other_words_are_of_other_prompts() -> None:
    rows = [{"prompt": "p", "answer": f"a{n}", "rating": n, "system": "xy"[n // 2]} for n in range(4)]
    found = read("ratings", *rows)
    assert [(one.prompt, one.chosen) for one in found if isinstance(one, Example)] == [
        ("x\n\np", "a1"),
        ("y\n\np", "a3"),
    ]


def test_the_system_speaks_once_in_messages() -> None:
    talk = {"conversations": share_gpt("Hi", "Yes?")}
    own = {"messages": [SYSTEM, *said("Hi", "Yes?")]}
    rows = [talk | {"system": "Be brief."}, own | {"system": "Be brief."}, own | {"system": ""}]
    for result in read("messages", *rows):
        assert isinstance(result, Example)
        assert result.prompt == "Be brief.\n\nHuman: Hi\n\nAssistant:"
    other = own | {"system": "Be long."}
    assert read("messages", own, other)[1] == "other words than those of the messages: system"
    whole = {"messages": TALK, "system": "Be brief."}
    found = read("messages", whole, assistant_turns="each")
    assert [one.prompt.count("Be brief.\n\nHuman: a") for one in found if isinstance(one, Example)] == [1, 1, 1]


def test_an_optional_column_is_not_read_where_it_is_named_for_another_role_or_left_out() -> None:
    """SHP has its prompt in a column `history`; other sets have the name of a program in `system`."""
    row = {"history": "What?", "chosen": "a", "rejected": "b", "system": "gpt-4"}
    (example,) = read("pairs", row, columns={"prompt": "history", "system": ""})
    assert isinstance(example, Example)
    assert example.prompt == "What?"
    (example,) = read("pairs", row, columns={"prompt": "history", "subset": "system"})
    assert isinstance(example, Example)
    assert (example.prompt, example.subset) == ("gpt-4\n\nWhat?", "gpt-4")
    assert "columns.chosen: shape pairs needs it" in refused("pairs", row, columns={"chosen": ""})


def test_instructions_may_have_a_worse_answer_and_other_usual_names() -> None:
    row = {"instruction": "Add.", "context": "2 2"}
    pair, dolly = read("instructions", row | {"chosen": "4", "rejected": "5"}, row | {"response": "4"})
    assert isinstance(pair, Example)
    assert isinstance(dolly, Example)
    assert pair.prompt == dolly.prompt == "Human: Add.\n2 2\n\nAssistant:"
    assert (pair.chosen, pair.rejected, dolly.chosen, dolly.rejected) == (" 4", (" 5",), " 4", ())


QUESTION = {"prompt": "p", "answer_0": "x", "answer_1": "y"}
LABELS: list[tuple[Any, str]] = [
    (1, "x"), (2, "y"), (0, "tie"), ("1", "x"), (" 2 ", "y"), (1.0, "x"), (2.0, "y"), ("a", "x"), ("B", "y"),
    ("model_a", "x"), ("model_b", "y"), ("tie", "tie"), ("tie (bothbad)", "tie"), ("First", "x"), ("second", "y"),
    ([1], "unknown label: label"), ("", "unknown label: label"), (float("nan"), "unknown label: label"),
    (None, "missing field: score_0 or score_1 or label or preference"),
]  # fmt: skip


@pytest.mark.parametrize("column", ["label", "winner"])
def test_a_label_says_which_answer_is_better(column: str) -> None:
    results = read("comparisons", *(QUESTION | {column: label} for label, _ in LABELS))
    for (label, expected), result in zip(LABELS, results, strict=True):
        assert (result.chosen if isinstance(result, Example) else result) == expected, label
        assert not isinstance(result, Example) or (result.ranks, result.ratings) == ((0, 1), None)


@pytest.mark.parametrize(("labels", "said"), [([0, 1, 1, 0], "2 is in no row"), ([True, False], "truth values")])
def test_labels_that_can_be_read_in_two_ways_are_refused(labels: list[Any], said: str) -> None:
    message = refused("comparisons", *(QUESTION | {"label": label} for label in labels))
    assert message.startswith("datasets.mine.columns.label: ")
    assert said in message
    assert "map score_0 in the place of label" in message


@pytest.mark.parametrize("label", [3, -1, 1.5, "x", "model_a_wins", float("inf")])
def test_a_label_that_no_shape_has_is_refused_though_one_row_in_many_has_it(label: Any) -> None:
    usual = [QUESTION | {"label": 1}, QUESTION | {"label": 2}] * 50
    message = refused("comparisons", *usual, QUESTION | {"label": label})
    assert message.startswith(f"datasets.mine.columns.label: {str(label)!r} is no label; ")
    assert "answer_1: 2, b, model_b, second" in message


def test_labels_that_no_shape_has_are_named_up_to_five() -> None:
    message = refused("comparisons", *(QUESTION | {"label": f"l{number}"} for number in range(8)))
    assert "'l0', 'l1', 'l2', 'l3', 'l4' and 3 more" in message


PREFERENCES: list[tuple[Any, str, tuple[float, ...] | None]] = [
    (-3, "x", (3.0, 0.0)), ("-1", "x", (1.0, 0.0)), (-0.5, "x", (0.5, 0.0)), (2, "y", (2.0, 0.0)),
    (3.0, "y", (3.0, 0.0)), (0, "tie", None), ("much", "wrong type: preference", None),
    (float("nan"), "number not finite: preference", None),
]  # fmt: skip


@pytest.mark.parametrize("column", ["preference", "overall_preference", "preference_strength"])
def test_a_preference_says_which_answer_is_better_and_by_how_much(column: str) -> None:
    results = read("comparisons", *(QUESTION | {column: value} for value, *_ in PREFERENCES))
    for (value, expected, ratings), result in zip(PREFERENCES, results, strict=True):
        assert (result.chosen if isinstance(result, Example) else result) == expected, value
        assert not isinstance(result, Example) or result.ratings == ratings


def test_a_preference_beyond_its_scale_is_refused() -> None:
    """HelpSteer2 writes -100 where both answers are wrong."""
    message = refused("comparisons", *[QUESTION | {"preference": 1}] * 50, QUESTION | {"preference": -100})
    assert message.startswith("datasets.mine.columns.preference: '-100' is not from -3 to 3; ")


def test_scores_and_labels_come_before_a_preference_where_none_is_configured() -> None:
    row = QUESTION | {"label": 1, "preference": 3}
    (labelled,), (preferred,) = read("comparisons", row), read("comparisons", row, columns={"preference": "preference"})
    assert isinstance(labelled, Example)
    assert isinstance(preferred, Example)
    assert (labelled.chosen, preferred.chosen) == ("x", "y")
    assert "score_0 and preference take the place" in refused(
        "comparisons", row, columns={"preference": "preference", "score_0": "s"}
    )


def test_compared_answers_may_answer_a_conversation() -> None:
    row = {"prompt": said(*BEFORE), "answer_0": "Gone.", "answer_1": "No.", "preference": -1}
    system = [{"role": "system", "content": "Be kind."}]
    plain, (chat,) = read("comparisons", row, row | {"system": "Be kind."}), read("comparisons", row, turns=True)
    assert [(one.prompt, one.chosen, one.rejected) for one in plain if isinstance(one, Example)] == [
        (PROMPT, " Gone.", (" No.",)),
        (f"Be kind.\n\n{PROMPT}", " Gone.", (" No.",)),
    ]
    assert isinstance(chat, Example)
    assert (json.loads(chat.turns or ""), chat.chosen) == (said(*BEFORE), "Gone.")
    (with_system,) = read("comparisons", row | {"system": "Be kind."}, turns=True)
    assert isinstance(with_system, Example)
    assert json.loads(with_system.turns or "") == [*system, *said(*BEFORE)]
    assert (
        read("comparisons", row, row | {"prompt": said("Hi", "Yes?")}, row | {"prompt": []})[1:]
        == ["no user turn at the end: prompt"] * 2
    )


def test_a_truth_value_or_a_share_is_a_score_of_one_answer() -> None:
    for column, value, best in (
        ("score_0", True, "x"), ("score_0", False, "y"), ("score_1", True, "y"), ("score_1", 0, "x"),
        ("score_0", 0.7, "x"),
    ):  # fmt: skip
        (example,) = read("comparisons", QUESTION | {column: value})
        assert isinstance(example, Example)
        assert (example.chosen, example.ratings) == (best, None)
    good = QUESTION | {"score_0": 0.9, "score_1": 0.1}
    alone, lost = read("comparisons", good, QUESTION | {"score_1": 4}, good | {"score_0": None})[1:]
    assert alone == "not from 0 to 1, and alone: score_1"
    assert lost == "missing field: score_0"


def test_what_is_configured_takes_the_place_of_what_is_not() -> None:
    row = QUESTION | {"score_0": 1, "score_1": 0, "label": 2}
    (scored,), (labelled,) = read("comparisons", row), read("comparisons", row, columns={"label": "label"})
    assert isinstance(scored, Example)
    assert isinstance(labelled, Example)
    assert (scored.chosen, labelled.chosen) == ("x", "y")
    both = {"label": "label", "score_1": "s"}
    assert "score_1 and label take the place of each other" in refused("comparisons", row, columns=both)
    lists = {"ranks": "r", "ratings": "s"}
    assert "ratings and ranks take the place of each other" in refused("ranked", row, columns=lists)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": "pairs", "columns": {"answer": "a"}}, "columns: answer: shape pairs has the roles prompt, chosen"),
        ({"shape": "pairs", "assistant_turns": "each"}, "assistant_turns: shape pairs has one answer"),
        ({"shape": "messages", "chat_template": "tokenizer", "prompt_format": "{prompt}"}, "prompt_format: the chat"),
        ({"prompt_format": "{question}"}, "prompt_format: '{question}' is no template of {prompt}"),
        ({"columns": {"group": "id"}, "keep_together": "row"}, "keep_together has no effect beside the role `group`"),
    ],
)
def test_a_key_that_does_not_apply_is_refused_before_a_row_is_read(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = tiny_config()
    config["datasets"]["reviews"] |= settings
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        (dataset,) = resolve(config, lambda path, key: "content").of_kind("dataset")
        cache_dataset(dataset.settings, tmp_path / "out", "datasets.reviews")
    assert "datasets.reviews" in str(caught.value)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_rows_of_the_manual_are_read_as_it_says(shape: str) -> None:
    results = read(shape, *SHAPES[shape].rows.values())
    assert results
    for result in results:
        assert isinstance(result, Example), result
        if shape == "prompts":
            assert (result.ranks, result.rejected) == ((-1,), ())
            continue
        assert result.chosen.strip() in {"4", "6"}
        assert {answer.strip() for answer in result.rejected} <= {"3", "5"}


class Odd:
    """A value of a generator's row that fails whatever is done with it."""

    def __str__(self) -> str:
        raise RuntimeError("odd, and no text")


@pytest.mark.parametrize(
    ("value", "reason"),
    [("\ud800", "broken Unicode"), (10**5000, "ValueError: Exceeds the limit"), (Odd(), "RuntimeError: odd, and no")],
    ids=["half a character", "long number", "odd"],
)
@pytest.mark.parametrize("role", ["group", "subset"])
def test_a_value_that_fails_costs_its_row(role: str, value: Any, reason: str) -> None:
    rows: list[Row] = [{"prompt": "p", "chosen": f"a{n}", "x": n} for n in range(3)]
    rows[1]["x"] = value
    first, bad, last = read("pairs", *rows, columns={role: "x"})
    assert isinstance(first, Example)
    assert isinstance(last, Example)
    assert isinstance(bad, str)
    assert bad.startswith(reason)


def test_a_label_beyond_all_numbers_is_unknown() -> None:
    assert read("comparisons", QUESTION | {"label": 1}, QUESTION | {"label": 10**5000})[1] == "unknown label: label"
