"""Texts of public datasets are those of DeepSpeed-Chat's dataset classes, character for character."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rlhf.config.specification import ResolvedDataset
from rlhf.data.examples import examples
from rlhf.data.mappings import row_format
from rlhf.data.shapes import Example

Row = dict[str, Any]


def as_it_is(row: Row) -> tuple[str, str]:
    return row["prompt"], row["chosen"]


def human(prompt: str, answer: str) -> tuple[str, str]:
    return f" Human: {prompt} Assistant:", f" {answer}"


# Dataset -> (a row in its layout, what DeepSpeed-Chat's class makes of it: prompt, and what follows it)
CASES: dict[str, tuple[Row, Callable[[Row], tuple[str, str]]]] = {
    "Dahoas/rm-static": (
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Yes.", "rejected": " No."},
        as_it_is,
    ),
    "Dahoas/full-hh-rlhf": (
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Yes.\n", "rejected": " No."},
        as_it_is,
    ),
    "Dahoas/synthetic-instruct-gptj-pairwise": (
        {"prompt": "Hi ", "chosen": " Yes.", "rejected": "No."},
        lambda row: human(row["prompt"], row["chosen"]),
    ),
    "yitingxie/rlhf-reward-datasets": (
        {"prompt": "\n\nHuman: Hi\n\n", "chosen": "Assistant: Yes.", "rejected": "Assistant: No."},
        lambda row: (row["prompt"] + "Assistant:", row["chosen"].split("Assistant:")[-1]),
    ),
    "openai/webgpt_comparisons": (
        {"question": {"full_text": "Hi"}, "answer_0": "Yes [1].", "answer_1": "No.", "score_0": 1, "score_1": -1},
        lambda row: human("Hi", "Yes ."),
    ),
    "stanfordnlp/SHP": (
        {"history": "Hi", "human_ref_A": "Yes.", "human_ref_B": "No.", "labels": 1},
        lambda row: human("Hi", "Yes."),
    ),
    "pvduy/sharegpt_alpaca_oa_vicuna_format": (
        {"prompt": "USER: Hi ASSISTANT:", "label": "Yes."},
        lambda row: (row["prompt"], " " + row["label"]),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_known_datasets_texts_are_those_of_its_class(name: str) -> None:
    row, expected = CASES[name]
    ((_, example),) = examples([row], row_format(ResolvedDataset(source={"hub": name})), "datasets.mine")
    assert isinstance(example, Example), example
    assert (example.prompt, example.chosen) == expected(row)
    if name == "yitingxie/rlhf-reward-datasets":
        assert example.prompt + example.chosen == row["prompt"] + row["chosen"]


@pytest.mark.parametrize(
    ("shape", "row", "prompt", "answer"),
    [
        ("pairs", {"prompt": "def f(", "chosen": "x):"}, "def f(", "x):"),
        (
            "instructions",
            {"instruction": "Add.", "input": "1 2", "output": " 3"},
            "Human: Add.\n1 2\n\nAssistant:",
            "  3",
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]},
            "Human: Hi\n\nAssistant:",
            " Yes.",
        ),
        (
            "messages",
            {
                "messages": [
                    {"role": "system", "content": "\n\nBe kind."},
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "Yes."},
                ]
            },
            "\n\nBe kind.\n\nHuman: Hi\n\nAssistant:",
            " Yes.",
        ),
        ("ranked", {"prompt": "什么？", "answers": ["苹果"]}, "什么？", "苹果"),
    ],
)
def test_a_shapes_texts_have_nothing_but_its_format(shape: str, row: Row, prompt: str, answer: str) -> None:
    form = row_format(ResolvedDataset(source={"path": "rows.jsonl"}, shape=shape))
    ((_, example),) = examples([row], form, "datasets.mine")
    assert isinstance(example, Example), example
    assert (example.prompt, example.chosen) == (prompt, answer)


def test_an_answer_format_takes_the_place_of_the_shapes_space() -> None:
    settings = ResolvedDataset(source={"path": "rows.jsonl"}, shape="instructions", answer_format="\n{answer}")
    ((_, example),) = examples([{"instruction": "Add.", "output": "3"}], row_format(settings), "datasets.mine")
    assert isinstance(example, Example)
    assert example.chosen == "\n3"
