"""Ranked, rated and compared answers: from rows of a source to groups of token ids; what is tied, bad or not there."""

import json
from pathlib import Path

import numpy as np
import pytest

from rlhf.config.specification import ResolvedDataset
from rlhf.data.comparisons import compare
from rlhf.data.corpus import Corpus
from rlhf.data.dataset import cache_dataset, load_cached
from rlhf.data.example import Example
from rlhf.data.examples import examples
from rlhf.data.mappings import row_format
from rlhf.data.split import split_dataset
from rlhf.data.tokens import tokenize
from rlhf.files import read_json
from rlhf.models.loading import load_tokenizer
from tests.unit.conftest import make_model


def read(shape: str, *rows: dict, **columns: str) -> list[Example | str]:
    """What becomes of rows: examples, or the reason why not."""
    settings = ResolvedDataset(source={"path": "rows.jsonl"}, shape=shape, columns=columns)
    return [result for _, result in examples(rows, row_format(settings), "datasets.mine")]


def pair(**more) -> dict:
    return {"prompt": "p", "chosen": "a", "rejected": "b", **more}


def test_a_margin_is_what_the_better_answer_is_rated_above_the_other():
    (plain,) = read("pairs", pair())
    assert (plain.rejected, plain.ranks, plain.ratings) == (("b",), (0, 1), None)
    zero, text, null = read("pairs", pair(margin=0), pair(margin=" 1.5 "), pair(margin=None))
    assert [example.ratings for example in (zero, text, null)] == [(0.0, 0.0), (1.5, 0.0), None]
    assert zero.ranks == (0, 1)  # a margin of 0 is no tie
    (mapped,) = read("pairs", pair(gap=2), margin="gap")
    assert mapped.ratings == (2.0, 0.0)


@pytest.mark.parametrize("shape", ["dialogues", "messages"])
def test_every_pairwise_shape_takes_a_margin(shape):
    turns = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}]
    row = {
        "dialogues": {"chosen": "\n\nHuman: p\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b"},
        "messages": {"messages": turns, "rejected": [turns[0], {"role": "assistant", "content": "b"}]},
    }[shape]
    with_margin, without, bad = read(shape, row | {"margin": 0.25}, row, row | {"margin": -1})
    assert (with_margin.ratings, without.ratings, bad) == ((0.25, 0.0), None, "negative margin")


@pytest.mark.parametrize(
    ("margin", "reason"),
    [("much", "wrong type: margin"), ("", "wrong type: margin"), ([1], "wrong type: margin"),
     (float("nan"), "number not finite: margin"),
     ("inf", "number not finite: margin"), (-0.5, "negative margin")],
)  # fmt: skip
def test_a_bad_margin_makes_a_bad_row(margin, reason):
    assert read("pairs", pair(margin=margin)) == [reason]


def test_compared_answers_have_a_margin_where_both_are_scored():
    row = {"prompt": "p", "answer_0": "a", "answer_1": "b", "score_1": 0.75}
    both, label = read("comparisons", row | {"score_0": 0.25}, row)
    assert (both.chosen, both.rejected, both.ratings) == ("b", ("a",), (0.75, 0.25))
    assert (label.chosen, label.rejected, label.ratings) == ("b", ("a",), None)
    assert read("comparisons", row | {"score_0": 0.75}, row | {"score_1": "nan"}) == [
        "tie",
        "number not finite: score_1",
    ]


def published(name: str, row: dict) -> Example | str:
    """What becomes of a row as it is published."""
    settings = ResolvedDataset(source={"hub": name})
    ((_, result),) = examples([row], row_format(settings), "datasets.mine")
    return result


def test_published_comparisons_prefer_what_their_labels_say():
    """Rows as the data sets' cards show them."""
    row = {"history": "Why?", "human_ref_A": "Because.", "human_ref_B": "No idea.", "labels": 1}
    for label, best, other in ((1, "Because.", "No idea."), (0, "No idea.", "Because.")):
        example = published("stanfordnlp/SHP", row | {"labels": label})
        assert (example.prompt, example.chosen) == (" Human: Why? Assistant:", f" {best}")
        assert (example.rejected, example.ratings) == ((f" {other}",), None)
    row = {"question": {"full_text": "Who?"}, "answer_0": "A [1, 2].", "answer_1": "B[3].", "score_0": -0.5}
    example = published("openai/webgpt_comparisons", row | {"score_1": 0.5})
    assert (example.prompt, example.chosen, example.rejected) == (" Human: Who? Assistant:", " B.", (" A.",))
    assert example.ratings == (0.5, -0.5)


def test_ranked_answers_come_best_first_or_with_ranks_or_ratings():
    row = {"prompt": "p", "answers": ["a", "b", "c", "d"]}
    listed, ranked, rated = read("ranked", row, row | {"ranks": [2, 1, 4, 2]}, row | {"ratings": [1, "7", 3.5, 1]})
    assert (listed.chosen, listed.rejected) == ("a", ("b", "c", "d"))
    assert (listed.ranks, listed.ratings) == ((0, 1, 2, 3), None)
    assert (ranked.chosen, ranked.rejected) == ("b", ("a", "d", "c"))
    assert (ranked.ranks, ranked.ratings) == ((0, 1, 1, 2), None)
    assert (rated.chosen, rated.rejected) == ("b", ("c", "a", "d"))
    assert (rated.ranks, rated.ratings) == ((0, 1, 2, 2), (7.0, 3.5, 1.0, 1.0))


def test_ranked_rows_that_cannot_be_used_have_a_reason():
    row = {"prompt": "p", "answers": ["a", "b"]}
    bad = [
        ({"answers": "ab"}, "wrong type: answers"),
        ({"answers": ["a", 3]}, "wrong type: answers"),
        ({"answers": ["a", " "]}, "empty answer: answers"),
        ({"answers": []}, "empty answer: answers"),
        ({"answers": ["a", "b", "a"]}, "identical answers"),
        ({"ranks": [1]}, "not as many as answers: ranks"),
        ({"ranks": 1}, "wrong type: ranks"),
        ({"ranks": [1, 1]}, "tie"),
        ({"ratings": [1, None]}, "wrong type: ratings"),
        ({"ratings": [1, float("inf")]}, "number not finite: ratings"),
    ]
    assert read("ranked", *(row | change for change, _ in bad)) == [reason for _, reason in bad]
    (alone,) = read("ranked", row | {"answers": ["a"]})
    assert (alone.chosen, alone.rejected) == ("a", ())  # serves SFT


def rated(prompt: str, answer: str, rating: float | str, **more) -> dict:
    return {"prompt": prompt, "answer": answer, "rating": rating, **more}


def test_rated_answers_of_a_prompt_become_one_group():
    results = read(
        "ratings",
        rated("p", "a", 2), rated("q", "x", 1), rated("p", "b", "4", subset="best"), rated("p", "c", 2),
        rated("p", "b", 1), rated("r", "y", 3), rated("r", "z", 3), rated("p", "d", "nan"),
    )  # fmt: skip
    assert results[:2] == ["repeated answer", "number not finite: rating"]
    group = results[2]
    assert (group.prompt, group.chosen, group.rejected, group.subset) == ("p", "b", ("a", "c"), "best")
    assert (group.ranks, group.ratings) == ((0, 1, 1), (4.0, 2.0, 2.0))
    assert results[3:] == ["no partner", "tie"]


GROUPS = [
    {"prompt": "w3 w4", "answers": ["w5", "w6 w7 w8", "w9 w10"], "ratings": [1, 3, 1], "kind": "short"},
    {"prompt": "w4", "answers": ["w5 w6", "w7"], "ratings": [5, 4.5], "kind": "chat"},
    {"prompt": "w5", "answers": ["w8 w9"], "ratings": [1], "kind": None},
    {"prompt": "w6 w7", "answers": ["w3", "w4", "w5", "w6"], "ratings": [4, 3, 2, 1], "kind": "chat"},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The groups after caching, tokenising and splitting; unseen rows are the same."""
    folder = tmp_path_factory.mktemp("groups")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GROUPS))
    source = {"path": dict.fromkeys(("train", "eval"), str(folder / "rows.jsonl"))}
    settings = ResolvedDataset(source=source, shape="ranked", columns={"subset": "kind"}, answer_format=" {answer}")
    cache_dataset(settings, folder / "dataset", "datasets.mine")
    model = make_model(folder / "model", "gpt2")
    tokenize(folder / "dataset", model, folder / "tokens")
    split_dataset(folder / "dataset", "1,1,2", 0, folder / "split")
    return folder


def corpus(made: Path, phase: str, split: str = "eval") -> Corpus:
    return Corpus([made / "tokens"], [made / "split"], split, phase)


def test_a_group_keeps_its_answers_ranks_and_ratings_through_the_token_store(made):
    tokenizer, found = load_tokenizer(made / "model"), corpus(made, "reward")
    assert len(found) == 3  # one row has a single answer
    texts = [[tokenizer.decode(ids) for ids in found.answers(row)] for row in range(3)]
    assert texts == [
        ["w6 w7 w8 <eos>", "w5 <eos>", "w9 w10 <eos>"],
        ["w5 w6 <eos>", "w7 <eos>"],
        ["w3 <eos>", "w4 <eos>", "w5 <eos>", "w6 <eos>"],
    ]
    assert [tokenizer.decode(found.chosen(row)) for row in range(3)] == [row[0] for row in texts]
    judged = found.judgements(0)
    assert (judged["length"].tolist(), judged["rank"].tolist()) == ([4, 2, 3], [0, 1, 1])
    assert judged["rating"].tolist() == [3.0, 1.0, 1.0]
    assert found.longest_answers().tolist() == [4, 3, 2]
    assert [found.subset(row) for row in range(3)] == ["short", "chat", "chat"]


def test_sft_and_ppo_see_each_prompt_once(made):
    for phase in ("sft", "ppo"):
        found = corpus(made, phase)
        assert [found.subset(row) for row in range(4)] == ["short", "chat", None, "chat"]
        assert found.lengths("chosen").tolist() == [4, 3, 3, 2]
        assert found.lengths("prompt").tolist() == [2, 1, 1, 2]


def test_the_answers_of_a_prompt_stay_in_one_phase(made):
    places = [np.load(made / f"split/train.{phase}.npy").tolist() for phase in ("sft", "reward", "ppo")]
    used = [row for part in places for row in part]
    assert len(set(used)) == len(used)
    left_out = read_json(made / "split/split.json")["reward_rows_without_rejected"]
    assert len(used) + left_out["train"] == 4
    assert left_out["eval"] == 1


def test_comparisons_are_all_pairs_but_ties(made):
    pairs = compare(corpus(made, "reward"), np.arange(3))
    assert list(zip(pairs.better.tolist(), pairs.worse.tolist(), pairs.group.tolist(), strict=True)) == [
        (0, 1, 0), (0, 2, 0),
        (3, 4, 1),
        (5, 6, 2), (5, 7, 2), (5, 8, 2), (6, 7, 2), (6, 8, 2), (7, 8, 2),
    ]  # fmt: skip
    assert pairs.margin.tolist() == [2, 2, 0.5, 1, 2, 3, 1, 2, 1]
    assert pairs.weights().tolist() == pytest.approx([1 / 2] * 2 + [1] + [1 / 6] * 6)
    assert pairs.weights().dtype == np.float32  # losses stay in it
    assert compare(corpus(made, "reward"), np.array([1])).better.tolist() == [0]


def test_the_report_counts_answers_and_margins(made):
    report = read_json(made / "dataset/report.json")["splits"]["train"]
    assert (report["without_rejected"], report["with_margin"], report["most_answers"]) == (1, 4, 4)
    assert report["characters"]["rejected"]["max"] == len(" w9 w10")
    assert load_cached(made / "dataset", "train")[2]["rejected"] == []
