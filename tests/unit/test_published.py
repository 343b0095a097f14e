"""Public datasets as they are published: found where their rows lie, read as meant, by hand or by another's rule."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from rlhf.config import resolve
from rlhf.config.specification import ResolvedDataset
from rlhf.data.comparisons import compare
from rlhf.data.corpus import Corpus
from rlhf.data.dataset import cache_dataset, cached_texts, load_cached
from rlhf.data.example import Example, Row
from rlhf.data.examples import examples
from rlhf.data.mappings import largest_bad_share, mapped_source, row_format
from rlhf.data.published import KNOWN, PARTS
from rlhf.data.split import split_dataset
from rlhf.data.tokens import tokenize
from rlhf.errors import UserError
from rlhf.files import read_json
from tests.project import tiny_config
from tests.unit.conftest import make_model


def hub(name: str, **settings: Any) -> ResolvedDataset:
    source = {"hub": name, **settings.pop("source", {})}
    return ResolvedDataset(source=source, **settings)


def results(settings: ResolvedDataset, rows: list[Row]) -> list[Example | str]:
    return [result for _, result in examples(rows, row_format(settings), "datasets.mine")]


def read(settings: ResolvedDataset, *rows: Row) -> list[tuple[str, str, tuple[str, ...]]]:
    """Prompt, chosen and rejected texts of rows that can all be read."""
    found = results(settings, list(rows))
    assert all(isinstance(result, Example) for result in found), found
    return [(one.prompt, one.chosen, one.rejected) for one in found if isinstance(one, Example)]


def said(*texts: str) -> list[dict[str, str]]:
    return [{"content": text, "role": ("user", "assistant")[place % 2]} for place, text in enumerate(texts)]


WHOLE = ("Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", " good", (" bad",))
SHORT = ("Human: a\n\nAssistant:", " good", (" bad",))
# name -> (where its rows are, rows as published, what becomes of them)
LAYOUTS: dict[str, tuple[dict[str, str], list[Row], list[tuple[str, str, tuple[str, ...]]]]] = {
    "HuggingFaceH4/ultrafeedback_binarized": (
        {},
        [{"prompt": "a", "prompt_id": "0", "messages": said("a", "b", "c", "good"), "score_chosen": 8.0,
          "score_rejected": 5.0, "chosen": said("a", "b", "c", "good"), "rejected": said("a", "b", "c", "bad")}],
        [WHOLE],
    ),
    "trl-lib/ultrafeedback_binarized": (
        {},
        [{"chosen": said("a", "good"), "rejected": said("a", "bad"), "score_chosen": 8.0, "score_rejected": 5.0}],
        [SHORT],
    ),
    "argilla/ultrafeedback-binarized-preferences-cleaned": (
        {},
        [{"source": "s", "prompt": "c", "chosen": said("a", "b", "c", "good"), "chosen-rating": 5.0,
          "rejected": said("a", "b", "c", "bad"), "rejected-rating": 3.0}],
        [WHOLE],
    ),
    "argilla/dpo-mix-7k": (
        {},
        [{"dataset": "d", "chosen": [{"role": "system", "content": "s"}, *said("a", "good")],
          "rejected": [{"role": "system", "content": "s"}, *said("a", "bad")], "chosen_rating": 5.0}],
        [("s\n\nHuman: a\n\nAssistant:", " good", (" bad",))],
    ),
    "trl-lib/hh-rlhf-helpful-base": (
        {},
        [{"prompt": said("a", "b", "c"), "chosen": said("", "good")[1:], "rejected": said("", "bad")[1:]}],
        [WHOLE],
    ),
    "trl-lib/tldr": ({}, [{"prompt": "a\n\nTL;DR:", "completion": " good"}], [("a\n\nTL;DR:", " good", ())]),
    "trl-lib/Capybara": (
        {}, [{"source": "s", "num_turns": 2, "messages": said("a", "b", "c", "good")}], [(*WHOLE[:2], ())]
    ),
    "allenai/tulu-v2-sft-mixture": ({}, [{"dataset": "d", "messages": said("a", "good")}], [(*SHORT[:2], ())]),
    "allenai/tulu-3-sft-mixture": (
        {}, [{"id": "0", "source": "s", "messages": said("a", "b", "c", "good")}], [(*WHOLE[:2], ())]
    ),
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": (
        {},
        [{"id": "0", "source": "s", "prompt": "c", "chosen": said("a", "b", "c", "good"),
          "rejected": said("a", "b", "c", "bad")}],
        [WHOLE],
    ),
    "openai/gsm8k": ({}, [{"question": "a", "answer": "x <<1+1=2>>\n#### 2"}],
                     [("Human: a\n\nAssistant:", " x <<1+1=2>>\n#### 2", ())]),
    "nvidia/HelpSteer": (
        {},
        [{"prompt": "a", "response": answer, "helpfulness": grade, "correctness": 1, "coherence": 4}
         for answer, grade in (("bad", 1), ("good", 4), ("so", 2), ("so la", 2))],
        [("Human: a\n\nAssistant:", " good", (" so", " so la", " bad"))],
    ),
    "nvidia/HelpSteer2": (
        {},
        [{"prompt": "a\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nc", "response": answer, "helpfulness": grade}
         for answer, grade in (("bad", 1), ("good", 4))],
        [WHOLE],
    ),
    "nvidia/HelpSteer2: preference": (
        {"data_dir": "preference"},
        [{"split": "train", "prompt": "a", "response_1": "bad", "response_2": "good", "preference_strength": 2},
         {"split": "val", "prompt": "a", "response_1": "good", "response_2": "bad", "preference_strength": -1}],
        [SHORT, SHORT],
    ),
    "nvidia/HelpSteer3": (
        {},
        [{"domain": "stem", "language": "english", "context": said("a", "b", "c"), "response1": "good",
          "response2": "bad", "overall_preference": -3, "individual_preference": []}],
        [WHOLE],
    ),
    "Anthropic/hh-rlhf": (
        {"data_dir": "harmless-base"},
        [{"chosen": "\n\nHuman: a\n\nAssistant: good", "rejected": "\n\nHuman: a\n\nAssistant: bad"}],
        [("\n\nHuman: a\n\nAssistant:", " good", (" bad",))],
    ),
    "tatsu-lab/alpaca": (
        {}, [{"instruction": "a", "input": "b", "output": "good", "text": "t"}],
        [("Human: a\nb\n\nAssistant:", " good", ())],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_as_they_are_published_are_read_as_they_are_meant(name: str) -> None:
    source, rows, expected = LAYOUTS[name]
    assert read(hub(name.split(":")[0], source=source), *rows) == expected


@pytest.mark.parametrize("name", [*KNOWN, *PARTS], ids=str)
def test_the_manuals_row_is_one(name: str | tuple[str, str]) -> None:
    known = KNOWN[name] if isinstance(name, str) else PARTS[name]
    settings = hub(name) if isinstance(name, str) else hub(name[0], source={"data_dir": name[1]})
    rows = [known.row]
    if known.shape == "ratings":
        rows.append(known.row | {"response": "5", "helpfulness": 1})
    if known.shape == "trees":
        rows.append(known.row | {"message_id": "a", "parent_id": None, "role": "prompter", "text": "2 + 2?"})
    for turns in (None, True):
        (example,) = results(settings.model_copy(update={"turns": turns}), rows)
        assert isinstance(example, Example), example
        assert "4" in example.chosen or known.shape == "prompts"
        assert all("5" in answer for answer in example.rejected)


def test_margins_of_preferences_and_ratings_are_kept() -> None:
    three, two = (LAYOUTS[f"nvidia/{name}"] for name in ("HelpSteer3", "HelpSteer2"))
    (strong,) = results(hub("nvidia/HelpSteer3"), three[1])
    (rated,) = results(hub("nvidia/HelpSteer2"), two[1])
    assert isinstance(strong, Example)
    assert isinstance(rated, Example)
    assert (strong.ratings, strong.subset, rated.ratings) == ((3.0, 0.0), "stem", (4.0, 1.0))


def test_what_is_set_takes_the_place_of_what_is_known() -> None:
    rows = [
        {"prompt": "a", "response": text, "helpfulness": 1, "correctness": grade}
        for text, grade in (("b", 1), ("c", 2))
    ]
    settings = hub("nvidia/HelpSteer2", columns={"rating": "correctness"}, prompt_format="{prompt}!")
    assert read(settings, *rows) == [("a!", " c", (" b",))]
    assert read(hub("openai/gsm8k", shape="pairs", columns={"prompt": "question", "chosen": "answer"}),
                {"question": "q", "answer": "a"}) == [("q", "a", ())]  # fmt: skip


# name -> what is asked of the library that reads hubs
PLACES: dict[str, dict[str, str | None]] = {
    "openai/webgpt_comparisons": {"revision": "refs/convert/parquet", "train": "train"},
    "Hello-SimpleAI/HC3-Chinese": {"revision": "refs/convert/parquet", "data_dir": "all", "train": "train"},
    "HuggingFaceH4/ultrafeedback_binarized": {"train": "train_prefs", "eval": "test_prefs"},
    "nvidia/HelpSteer3": {"name": "preference", "train": "train", "eval": "validation"},
    "openai/gsm8k": {"name": "main", "train": "train", "eval": "test"},
    "Cohere/miracl-ja-queries-22-12": {"train": "train", "eval": "dev"},
    "Dahoas/rm-static": {"train": "train", "eval": "test"},
}


@pytest.mark.parametrize("name", PLACES)
def test_rows_are_fetched_from_where_they_are_in_the_repository(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def load(hub: str, configuration: str | None, **keys: Any) -> datasets.Dataset:
        assert hub == name
        asked.append({"name": configuration, **keys})
        return datasets.Dataset.from_list([{**KNOWN[name].row, **prompt} for prompt in _prompts(name, 10)])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    cache_dataset(hub(name), tmp_path / "out", "datasets.mine")
    expected = PLACES[name]
    for key in ("name", "revision", "data_dir"):
        assert {call[key] for call in asked} == {expected.get(key)}
    splits = [expected["train"], *([expected["eval"]] if "eval" in expected else [])]
    assert [call["split"] for call in asked] == splits


def _prompts(name: str, count: int) -> list[Row]:
    """Different questions in the columns of a dataset."""
    column = next(column for column in ("question", "query", "context", "prompt") if column in KNOWN[name].row)
    given = KNOWN[name].row[column]
    for number in range(count):
        text = f"{number} + 2?"
        yield_row = {"full_text": text} if isinstance(given, dict) else said(text) if isinstance(given, list) else text
        if name == "HuggingFaceH4/ultrafeedback_binarized":
            yield {"chosen": said(text, "4"), "rejected": said(text, "5")}
        else:
            yield {column: yield_row}


def test_places_that_are_set_are_kept() -> None:
    given = {"name": "socratic", "revision": "0" * 40, "train_split": "train[:9]"}
    source = mapped_source(hub("openai/gsm8k", source=given), "datasets.mine")
    assert (source.name, source.revision, source.train_split) == ("socratic", "0" * 40, "train[:9]")
    assert source.eval_split == "test"


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("mkqa-Chinese", "apple/mkqa"),
        ("webgpt_comparisons", "openai/webgpt_comparisons"),
        ("Helpsteer-2", "nvidia/HelpSteer2"),
        ("shp", "stanfordnlp/SHP"),
    ],
)
def test_a_name_without_its_owner_is_refused_before_anything_is_asked(name: str, written: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        cache_dataset(hub(name), tmp_path / "out", "datasets.mine")
    message = f"datasets.mine.source.hub: {name!r}: a dataset's name on the hub begins with its owner; write {written}"
    assert str(caught.value) == message


def test_a_name_that_a_dataset_had_is_followed_and_said(caplog: pytest.LogCaptureFixture) -> None:
    source = mapped_source(hub("gsm8k"), "datasets.mine")
    assert (source.hub, source.name, source.eval_split) == ("openai/gsm8k", "main", "test")
    assert "gsm8k: the hub calls it openai/gsm8k now; write that" in caplog.text
    assert read(hub("gsm8k"), {"question": "q", "answer": "a"}) == [("Human: q\n\nAssistant:", " a", ())]


def test_other_names_are_the_hubs_business() -> None:
    for name in ("imdb", "somebody/webgpt_comparisons"):
        assert mapped_source(hub(name), "datasets.mine").hub == name


def test_a_share_of_rows_that_the_data_itself_has_is_allowed_unless_another_is_set() -> None:
    assert largest_bad_share(hub("apple/mkqa")) == 0.5
    assert largest_bad_share(hub("apple/mkqa", max_bad_share=0.2)) == 0.2
    assert (
        largest_bad_share(hub("Dahoas/rm-static")) == largest_bad_share(ResolvedDataset(source={"path": "a"})) == 0.05
    )


def cached(folder: Path, rows: list[Row], name: str = "dataset", **settings: Any) -> Path:
    """A dataset made from a file of rows."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": str(file)} | settings.pop("source", {})
    cache_dataset(ResolvedDataset(source=source, **settings), folder / name, "datasets.mine")
    return folder / name


# Ties


def test_ties_are_no_bad_rows_and_counted_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A third of the rows, where one in twenty may be bad; one row in ninety is."""
    caplog.set_level("INFO")
    rows = [
        {"prompt": f"p{number}", "answer_0": "a", "answer_1": "b", "score_0": number % 3, "score_1": 1}
        for number in range(89)
    ]
    report = read_json(cached(tmp_path, [*rows, {"prompt": "p"}], shape="comparisons") / "report.json")["splits"][
        "train"
    ]
    assert report["ties"] == {"count": 30, "first_rows": list(range(1, 31, 3))}
    assert report["bad_share"] == 1 / 90
    assert list(report["bad_rows"]) == ["missing field: answer_0, answer_1, score_0 or score_1 or label or preference"]
    assert report["rows_read"] == 90
    assert "90 rows, 59 usable: 1 x missing field" in caplog.text
    assert "30 x tie (1, 4, 7, " in caplog.text


def test_nothing_but_ties_leaves_nothing(tmp_path: Path) -> None:
    row = {"prompt": "p", "answer_0": "a", "answer_1": "b", "label": "tie"}
    with pytest.raises(UserError, match="no usable row is left of 4: 4 x tie"):
        cached(tmp_path, [row] * 4, shape="comparisons")


# Texts with a common beginning


def trl_prompt(chosen: str, rejected: str) -> tuple[str, str, str]:
    """TRL's rule: the prompt is what is equal; a space before the first other character is the answers'."""
    place = 0
    while place < min(len(chosen), len(rejected)) and chosen[place] == rejected[place]:
        place += 1
    if place and chosen[place - 1] == " ":
        place -= 1
    return chosen[:place], chosen[place:], rejected[place:]


def test_an_implicit_prompt_is_what_trl_takes_for_it() -> None:
    generator = random.Random(1)
    pairs = [("The sky is blue.", "The sky is green."), ("2 + 2 = 4", "2 + 2 = 5"), ("Ask: yes", "Ask: no")]
    for _ in range(100):
        start, *ends = ("".join(generator.choices("ab ", k=6)) for _ in range(3))
        pairs.append((f"q{start}{ends[0]}c", f"q{start}{ends[1]}d"))
    settings = ResolvedDataset(source={"path": "rows.jsonl"}, shape="implicit")
    found = read(settings, *({"chosen": chosen, "rejected": rejected} for chosen, rejected in pairs))
    assert [(prompt, chosen, rejected[0]) for prompt, chosen, rejected in found] == [
        trl_prompt(*pair) for pair in pairs
    ]


def test_texts_without_a_common_beginning_are_counted() -> None:
    settings = ResolvedDataset(source={"path": "rows.jsonl"}, shape="implicit")
    good = {"chosen": "p a", "rejected": "p b"}
    bad = [good | {"chosen": "a"}, good | {"chosen": " a", "rejected": " b"}, good | {"chosen": 1}, {"chosen": "p"}]
    assert results(settings, [good, *bad, good | {"chosen": "p b c"}])[1:] == [
        "no common beginning", "no common beginning", "wrong type: chosen", "missing field: rejected",
        "empty answer: rejected",
    ]  # fmt: skip


def test_rows_of_two_texts_name_the_shape_to_write() -> None:
    settings = ResolvedDataset(source={"path": "rows.jsonl"}, shape="pairs")
    with pytest.raises(UserError, match=r"write `shape: implicit`"):
        results(settings, [{"chosen": "2 + 2 = 4", "rejected": "2 + 2 = 5"}] * 3)
    with pytest.raises(UserError, match=r"write `shape: prompts`"):
        results(settings, [{"prompt": "2 + 2 ="}] * 3)
    with pytest.raises(UserError) as caught:  # an answer in a column of another name is no prompt alone
        results(settings, [{"prompt": "2 + 2 =", "reply": "4"}] * 3)
    assert "shape: prompts" not in str(caught.value)


# Trees


def message(name: str, parent: str | None, role: str, text: str, rank: int | None = None, **more: Any) -> Row:
    return {"message_id": name, "parent_id": parent, "role": role, "text": text, "rank": rank, "lang": "en", **more}


TREE = [
    message("a", None, "prompter", "Hi"),
    message("a1", "a", "assistant", "worse", 1),
    message("a2", "a", "assistant", "worst", 2),
    message("a0", "a", "assistant", "best", 0),
    message("a9", "a", "assistant", "not ranked"),
    message("b", "a1", "prompter", "And?"),
    message("b0", "b", "assistant", "only"),
    message("c", "a0", "prompter", "Why?"),
    message("c1", "c", "assistant", "one"),
    message("c2", "c", "assistant", "other"),
    message("d", "c1", "prompter", "Unanswered"),
]
OASST = hub("OpenAssistant/oasst1")
BRANCHES = {  # by hand
    ("Human: Hi\n\nAssistant:", " best", (" worse", " worst")),
    ("Human: Hi\n\nAssistant: worse\n\nHuman: And?\n\nAssistant:", " only", ()),
    ("Human: Hi\n\nAssistant: best\n\nHuman: Why?\n\nAssistant:", " one", ()),
    ("Human: Hi\n\nAssistant: best\n\nHuman: Why?\n\nAssistant:", " other", ()),
}


def test_every_question_of_a_tree_becomes_an_example_in_any_order_of_its_messages() -> None:
    for seed in range(5):
        rows = random.Random(seed).sample(TREE, len(TREE))
        found = list(examples(rows, row_format(OASST), "datasets.mine"))
        assert {(one.prompt, one.chosen, one.rejected) for _, one in found if isinstance(one, Example)} == BRANCHES
        assert len(found) == 4
        for number, one in found:
            assert isinstance(one, Example)
            assert rows[number]["text"] == one.chosen.strip()
            assert (one.group, one.subset) == ("a", "en")
    ranked = next(one for _, one in found if isinstance(one, Example) and one.rejected)
    assert (ranked.ranks, ranked.ratings) == ((0, 1, 2), None)


def test_a_trees_turns_are_those_of_its_thread() -> None:
    found = results(OASST.model_copy(update={"turns": True}), TREE)
    turns = {one.turns for one in found if isinstance(one, Example)}
    assert json.dumps([{"role": role, "content": text} for role, text in
                       (("user", "Hi"), ("assistant", "worse"), ("user", "And?"))]) in turns  # fmt: skip


def test_messages_that_fit_nowhere_are_counted() -> None:
    rows = [
        *TREE[:4],
        message("a", None, "prompter", "again"),
        message("x", "gone", "assistant", "no parent"),
        message("y", None, "tool", "3"),
        message("z", "a0", "assistant", "answers an answer"),
        message("t", "a", "assistant", "tie", "much"),
        message("o", "p", "prompter", "circle"),
        message("p", "o", "assistant", "circle"),
    ]
    found = dict(examples(rows, row_format(OASST), "datasets.mine"))
    assert isinstance(found.pop(3), Example)
    assert found == {
        4: "repeated identifier: id", 5: "no such message: parent", 6: "unknown role: role",
        7: "roles do not alternate: role", 8: "wrong type: rank", 10: "messages in a circle: parent",
    }  # fmt: skip


def test_equal_ranks_are_ties() -> None:
    rows = [TREE[0], *(message(f"t{number}", "a", "assistant", f"t{number}", 1) for number in range(3))]
    assert results(OASST, rows) == ["tie"]


def test_a_tree_stays_on_one_side_and_its_ranks_become_comparisons(tmp_path: Path) -> None:
    def grown(tree: int) -> list[Row]:
        """A tree of the words of the tokenizer."""
        return [
            message(f"{tree}q", None, "prompter", "w3 w4"),
            *(message(f"{tree}a{rank}", f"{tree}q", "assistant", f"w{5 + rank}", rank) for rank in (2, 0, 1)),
            message(f"{tree}r", f"{tree}a0", "prompter", f"w{9 + tree}"),
            message(f"{tree}b", f"{tree}r", "assistant", "w5"),
        ]

    rows = [row for tree in range(20) for row in grown(tree)]
    dataset = cached(tmp_path, rows, shape="trees", source={"eval_share": 0.25})
    train, unseen = (load_cached(dataset, split) for split in ("train", "eval"))
    assert len(train) + len(unseen) == 40
    assert len(unseen) == 10
    assert not set(train["group"]) & set(unseen["group"])
    tokenize(dataset, make_model(tmp_path / "model", "gpt2"), tmp_path / "tokens")
    split_dataset(dataset, "1,1,0", 0, tmp_path / "split")
    corpus = Corpus([tmp_path / "tokens"], [tmp_path / "split"], "train", "reward")
    pairs = compare(corpus, np.arange(len(corpus)))
    assert len(pairs.better) == 3 * len(corpus)  # of three ranked answers
    whole = Corpus([tmp_path / "tokens"], [tmp_path / "split"], "train", "sft")
    assert len(whole) + 2 * len(corpus) == len(train)  # the follow-up questions of the reward phase are left out


# Prompts without answers


def test_prompts_alone_serve_ppo_and_no_other_phase(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": f"w{number} w4"} for number in range(3, 23)]
    dataset = cached(tmp_path, rows, shape="prompts", source={"eval_share": 0.2})
    report = read_json(dataset / "report.json")["splits"]["train"]
    assert (report["without_answer"], report["most_answers"], list(report["characters"])) == (16, 0, ["prompt"])
    assert set(cached_texts(dataset)) <= {row["prompt"] for row in rows}
    tokenize(dataset, make_model(tmp_path / "model", "gpt2"), tmp_path / "tokens")
    assert "white space" not in caplog.text
    ids = read_json(tmp_path / "tokens/report.json")
    assert list(ids["splits"]["train"]["lengths"]) == ["prompt"]
    shown = ids["examples"]
    assert [(one["answer"], one["answer_ids"], one["answer_tokens"]) for one in shown] == [("", [], [])] * 3
    split_dataset(dataset, "0,0,1", 0, tmp_path / "split")
    corpus = Corpus([tmp_path / "tokens"], [tmp_path / "split"], "train", "ppo")
    prompts = {tuple(corpus.prompt(row).tolist()) for row in range(len(corpus))}
    assert len(prompts) == 16
    assert prompts <= {(number, 4) for number in range(3, 23)}
    for shares, phase, lacking in (("1,0,1", "sft", "answer"), ("0,1,1", "reward", "rejected answer")):
        with pytest.raises(UserError, match=f"leaves phase {phase} without a usable row .* have no {lacking}"):
            split_dataset(dataset, shares, 0, tmp_path / "other")


def test_prompts_beside_answered_rows_are_left_out_of_the_phases_that_need_answers(tmp_path: Path) -> None:
    rows = [{"prompt": f"w{number} w4"} for number in range(3, 23)]
    dataset = cached(tmp_path, rows, shape="prompts", source={"eval_share": 0.2})
    for split in ("train", "eval"):
        table = load_cached(dataset, split)
        changed = table.map(lambda row, number: {"ranks": [0] if number % 2 else [-1]}, with_indices=True)
        changed.save_to_disk(tmp_path / f"changed/arrow/{split}")
    (tmp_path / "changed/arrow/dataset_dict.json").write_text(json.dumps({"splits": ["train", "eval"]}))
    (tmp_path / "changed/report.json").write_text((dataset / "report.json").read_text())
    split_dataset(tmp_path / "changed", "1,0,0", 0, tmp_path / "split")
    assert np.load(tmp_path / "split/train.sft.npy").tolist() == list(range(1, 16, 2))
    assert read_json(tmp_path / "split/split.json")["sft_rows_without_answer"] == {"train": 8, "eval": 2}


def test_prompts_may_be_conversations() -> None:
    settings = ResolvedDataset(source={"path": "rows.jsonl"}, shape="prompts")
    rows = [{"prompt": said("a", "b", "c")}, {"messages": said("a")}, {"prompt": "p"}, {"prompt": said("a", "b")}]
    whole, single, text, bad = results(settings, rows)
    assert bad == "no user turn at the end: prompt"
    assert [one.prompt for one in (whole, single, text) if isinstance(one, Example)] == [
        WHOLE[0], "Human: a\n\nAssistant:", "p",
    ]  # fmt: skip
    (chat,) = results(settings.model_copy(update={"turns": True}), rows[:1])
    assert isinstance(chat, Example)
    assert [turn["content"] for turn in json.loads(chat.turns or "")] == ["a", "b", "c"]


# Benchmarks


def test_a_benchmark_is_unseen_and_trained_on_by_no_phase(tmp_path: Path) -> None:
    rows = [{"prompt": f"w{number}", "chosen": " w4", "rejected": " w5", "subset": "math"} for number in range(3, 23)]
    dataset = cached(tmp_path, rows, evaluation_only=True)
    report = read_json(dataset / "report.json")
    assert report["splits"]["eval"]["evaluation_only"]
    assert report["splits"]["eval"]["seen_in_train"] == 0
    assert len(load_cached(dataset, "eval")) == 20
    split_dataset(dataset, "0,1,0", 0, tmp_path / "split")
    parts = ("train.reward", "eval.reward", "eval.sft")
    counts = {name: len(np.load(tmp_path / f"split/{name}.npy")) for name in parts}
    assert counts == {"train.reward": 0, "eval.reward": 20, "eval.sft": 0}
    other = cached(tmp_path, [row | {"prompt": f"w4 {row['prompt']}"} for row in rows], name="other")
    model = make_model(tmp_path / "model", "gpt2")
    for name, path in (("benchmark", dataset), ("pairs", other)):
        tokenize(path, model, tmp_path / f"tokens-{name}")
    split_dataset(other, "0,1,0", 0, tmp_path / "split-other")
    folders = [tmp_path / "tokens-pairs", tmp_path / "tokens-benchmark"], [tmp_path / "split-other", tmp_path / "split"]
    train, unseen = (Corpus(*folders, split, "reward") for split in ("train", "eval"))
    assert (len(train), len(unseen)) == (18, 22)
    assert train.rows_per_epoch == 18
    assert {train.place(row)[0] for row in range(18)} == {0}


def test_only_given_unseen_rows_of_a_benchmark_are_read(tmp_path: Path) -> None:
    for name in ("train", "eval"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name, "chosen": "a", "rejected": "b"}) + "\n")
    source = {"path": {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "eval")}}
    cache_dataset(ResolvedDataset(source=source, evaluation_only=True), tmp_path / "out", "datasets.mine")
    assert load_cached(tmp_path / "out", "eval")["prompt"] == ["eval"]


def test_a_known_benchmark_is_refused_as_training_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"datasets.mine: allenai/reward-bench is a benchmark.*evaluation_only: true"):
        cache_dataset(hub("allenai/reward-bench"), tmp_path / "out", "datasets.mine")
    source = mapped_source(hub("allenai/reward-bench", evaluation_only=True), "datasets.mine")
    assert (source.train_split, source.eval_split) == ("filtered", "filtered")


def test_benchmarks_alone_leave_every_phase_without_data() -> None:
    config = tiny_config()
    plain = resolve(config, lambda path, key: "content")
    config["datasets"]["reviews"]["source"].pop("eval_share")
    config["datasets"]["reviews"]["evaluation_only"] = True
    with pytest.raises(
        UserError, match="data_split: nothing but datasets for evaluation leaves phase sft without data"
    ):
        resolve(config, lambda path, key: "content")
    config = tiny_config()
    config["datasets"]["marks"] = {"source": {"path": "marks.jsonl"}, "evaluation_only": True, "data_split": "0,1,0"}
    config["datasets"]["marks"]["gold_reward"] = config["datasets"]["reviews"]["gold_reward"]
    config["defaults"]["data_path"] = ["reviews", "marks"]
    added = {stage.id for stage in resolve(config, lambda path, key: "content").of_kind("dataset")}
    assert {stage.id for stage in plain.of_kind("dataset")} < added
    config["datasets"]["marks"]["source"]["eval_share"] = 0.2
    with pytest.raises(UserError, match="eval_share has no effect beside evaluation_only"):
        resolve(config, lambda path, key: "content")
