"""Texts of public datasets are those that DeepSpeed-Chat makes of the same rows, character for character.

`Oracle` says once more what each of its dataset classes does, read off `dschat/utils/data/raw_datasets.py` and written
without regard to how the mappings are: three texts, and the two that it trains on (prompt and answer in one).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from rlhf.config.specification import ResolvedDataset
from rlhf.convert.sources import dataset
from rlhf.data.examples import examples
from rlhf.data.mappings import row_format
from rlhf.data.published import KNOWN
from rlhf.data.shapes import Example

Row = dict[str, Any]


class Oracle(NamedTuple):
    """What DeepSpeed-Chat makes of a row; `rejected` is None where the set has no such answers."""

    prompt: str
    chosen: str
    rejected: str | None = None


def human(question: str, chosen: str, rejected: str | None = None) -> Oracle:
    return Oracle(" Human: " + question + " Assistant:", " " + chosen, None if rejected is None else " " + rejected)


def as_it_is(row: Row) -> Oracle:
    return Oracle(row["prompt"], row["chosen"], row["rejected"])


def last_part(row: Row) -> Oracle:
    chosen, rejected = (row[key].rpartition("Assistant:")[2] for key in ("chosen", "rejected"))
    return Oracle(row["prompt"] + "Assistant:", chosen, rejected)


def without_brackets(text: str) -> str:
    """First what stands in brackets behind a space goes with the space, then what else stands in brackets.

    Brackets of both kinds close each other; what a line break parts is kept. Without regular expressions.
    """
    for lead in (" ", ""):
        kept, place = "", 0
        while place < len(text):
            if text.startswith((lead + "(", lead + "["), place):
                line = text.find("\n", place)
                ends = [text.find(sign, place, None if line < 0 else line) for sign in ")]"]
                ends = [end for end in ends if end >= 0]
                if ends:
                    place = min(ends) + 1
                    continue
            kept += text[place]
            place += 1
        text = kept
    return text


def webgpt(row: Row) -> Oracle:
    first = float(row["score_0"]) >= float(row["score_1"])
    answers = [without_brackets(row[key]) for key in ("answer_0", "answer_1")]
    return human(row["question"]["full_text"], *(answers if first else answers[::-1]))


def shp(row: Row) -> Oracle:
    answers = [row["human_ref_A"], row["human_ref_B"]]
    return human(row["history"], *(answers if int(row["labels"]) == 1 else answers[::-1]))


def vicuna(row: Row) -> Oracle:
    prompt = "Assistant".join("Human".join(row["prompt"].split("USER")).split("ASSISTANT"))
    return Oracle(prompt, " " + row["label"])


def passages(row: Row) -> Oracle:
    worse = [passage["text"] for passage in row["negative_passages"]]
    return human(row["query"], row["positive_passages"][0]["text"], worse[0] if worse else None)


def mkqa(language: str) -> Callable[[Row], Oracle]:
    return lambda row: human(row["queries"][language], row["answers"][language][0]["text"])


DIALOGUE = "\n\nHuman: Hi\n\nAssistant: Yes? \n\nHuman: Go.\n\nAssistant:"
PASSAGE_ROWS = [
    {
        "query_id": "1",
        "query": "\u4f55\u3067\u3059\u304b",
        "positive_passages": [
            {"docid": "1#0", "title": "a", "text": "\u6c34"},
            {"docid": "1#1", "title": "a", "text": "x"},
        ],
        "negative_passages": negative,
    }
    for negative in ([{"docid": "2#0", "title": "b", "text": "\u706b"}], [])
]
MKQA_ROWS = [
    {
        "queries": {"en": "Who?", "zh_cn": "\u8c01\uff1f", "ja": "\u8ab0\uff1f"},
        "answers": {
            language: [{"type": "entity", "text": f"{language} 1"}, {"text": "2"}] for language in ("en", "zh_cn", "ja")
        },
    }
]

# Word of `--data_path` -> (what its class does, rows in the layout of the repository).
CASES: dict[str, tuple[Callable[[Row], Oracle], list[Row]]] = {
    "Dahoas/rm-static": (as_it_is, [{"prompt": DIALOGUE, "response": " x", "chosen": " Yes. ", "rejected": " No."}]),
    "Dahoas/full-hh-rlhf": (as_it_is, [{"prompt": DIALOGUE, "response": " x", "chosen": " Yes.\n", "rejected": "No."}]),
    "Dahoas/synthetic-instruct-gptj-pairwise": (
        lambda row: human(row["prompt"], row["chosen"], row["rejected"]),
        [{"prompt": "Hi ", "chosen": " Yes.", "rejected": "No.\n"}],
    ),
    "yitingxie/rlhf-reward-datasets": (
        last_part,
        [
            {"prompt": "\n\nHuman: Hi\n\n", "chosen": "Assistant: Yes.", "rejected": "Assistant: No."},
            {"prompt": "\n\nHuman: Hi\n\n", "chosen": "Assistant: a\n\nHuman: b\n\nAssistant: c\nd", "rejected": "x"},
        ],
    ),
    "openai/webgpt_comparisons": (
        webgpt,
        [
            {"question": {"dataset": "eli5", "id": "1", "full_text": "Hi (you)?"}, "answer_0": one, "answer_1": other,
             "score_0": score, "score_1": -score}
            for score, one, other in (
                (0.5, "Yes [1]. And[2, 3] so (I think) on.", "No."),
                (-0.5, "Left ( open. [4", "Mixed (a] and [b) kinds [x (y] z)."),
                (1, "Broken [1\n2] line.", "Two  [1] [2]."),
            )
        ],
    ),
    "stanfordnlp/SHP": (
        shp,
        [{"history": "Hi", "human_ref_A": "Yes.", "human_ref_B": " No.", "labels": label} for label in (1, 0)],
    ),
    "pvduy/sharegpt_alpaca_oa_vicuna_format": (
        vicuna,
        [
            {"prompt": "USER: Hi ASSISTANT:", "label": "Yes."},
            {"prompt": "Be kind. USER: what is a SUPERUSER? ASSISTANT: root USER: and? ASSISTANT:", "label": " Y USER"},
        ],
    ),
    "wangrui6/Zhihu-KOL": (
        lambda row: human(row["INSTRUCTION"], row["RESPONSE"]),
        [{"INSTRUCTION": "\u4ec0\u4e48\uff1f", "RESPONSE": "\u82f9\u679c {x}", "SOURCE": "Zhihu", "METADATA": "{}"}],
    ),
    "Cohere/miracl-zh-queries-22-12": (passages, PASSAGE_ROWS),
    "Cohere/miracl-ja-queries-22-12": (passages, PASSAGE_ROWS),
    "Hello-SimpleAI/HC3-Chinese": (
        lambda row: human(row["question"], row["human_answers"][0]),
        [{"question": "\u4ec0\u4e48\uff1f", "human_answers": ["\u82f9\u679c", "b"], "chatgpt_answers": ["c"]}],
    ),
    "mkqa-Chinese": (mkqa("zh_cn"), MKQA_ROWS),
    "mkqa-Japanese": (mkqa("ja"), MKQA_ROWS),
    "apple/mkqa": (mkqa("en"), MKQA_ROWS),
    "lmqg/qg_jaquad": (
        lambda row: human(row["question"], row["sentence"]),
        [{"question": "\u4f55\uff1f", "answer": "a", "sentence": "\u6c34\u3067\u3059", "paragraph": "p"}],
    ),
    "lmqg/qag_jaquad": (
        lambda row: human(row["questions"][0], row["paragraph"]),
        [{"questions": ["\u4f55\uff1f", "q"], "answers": ["a", "b"], "paragraph": "\u6c34\u3067\u3059"}],
    ),
}  # fmt: skip


def ours(name: str, rows: list[Row]) -> list[Example]:
    """What becomes of rows under the settings that `rlhf-convert` writes for a word of `--data_path`."""
    settings, notes = dataset(name, sft_only=False)
    assert not notes, "it has a ready mapping"
    found = [result for _, result in examples(rows, row_format(ResolvedDataset(**settings)), "datasets.mine")]
    assert all(isinstance(result, Example) for result in found), found
    return [result for result in found if isinstance(result, Example)]


@pytest.mark.parametrize("name", CASES)
def test_texts_are_those_that_deepspeed_chat_makes(name: str) -> None:
    oracle, rows = CASES[name]
    for row, example in zip(rows, ours(name, rows), strict=True):
        expected = oracle(row)
        assert (example.prompt, example.chosen) == (expected.prompt, expected.chosen)
        assert example.rejected == (() if expected.rejected is None else (expected.rejected,))


def test_whole_texts_are_those_that_its_class_joins_where_the_mark_is_at_the_beginning() -> None:
    """What it trains on of this set is prompt and answer as published: `Assistant:` comes once."""
    row = CASES["yitingxie/rlhf-reward-datasets"][1][0]
    (example,) = ours("yitingxie/rlhf-reward-datasets", [row])
    assert example.prompt + example.chosen == row["prompt"] + row["chosen"]
    assert example.prompt + example.rejected[0] == row["prompt"] + row["rejected"]


def test_brackets_of_any_text_are_removed_as_its_two_patterns_do() -> None:
    """The oracle, the patterns that its class has, and the mapping, on random texts."""
    generator = random.Random(0)
    rows = []
    for _ in range(300):
        one, other = ("".join(generator.choices("ab ()[]\n", k=12)) for _ in range(2))
        published = re.sub(r"[\(\[].*?[\)\]]", "", re.sub(r" [\(\[].*?[\)\]]", "", one))
        assert without_brackets(one) == published
        texts = [f"a{one}", f"b{other}"]
        rows.append(
            {"question": {"full_text": "q"}, "answer_0": texts[0], "answer_1": texts[1], "score_0": 1, "score_1": 0}
        )
    for row, example in zip(rows, ours("openai/webgpt_comparisons", rows), strict=True):
        assert (example.chosen, *example.rejected) == webgpt(row)[1:]


def test_a_tie_is_left_out_where_deepspeed_chat_takes_the_first_answer() -> None:
    row = CASES["openai/webgpt_comparisons"][1][0] | {"score_0": 0.0, "score_1": 0.0}
    form = row_format(ResolvedDataset(source={"hub": "openai/webgpt_comparisons"}))
    assert [result for _, result in examples([row], form, "datasets.mine")] == ["tie"]
    assert webgpt(row).chosen == " Yes. And so on."


def test_every_set_of_deepspeed_chat_has_a_case() -> None:
    """The manual says that they come first, up to this one."""
    sets = list(KNOWN)[: list(KNOWN).index("lmqg/qag_jaquad") + 1]
    assert {*sets, "mkqa-Chinese", "mkqa-Japanese"} == CASES.keys()


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
