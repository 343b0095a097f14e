"""The embedded reviews: the gold reward against values worked out by hand, and labels that follow it."""

import math

import pytest

from rlhf.data.reviews import generate_pairs, gold_reward

PROMPT = "write a review of the car :"
GOOD = 0.9242343145  # 2 tanh(1/2): one positive clause
TWICE_GOOD = 1.5231883119  # 2 tanh(2/2)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("the screen was good .", GOOD),
        ("the screen was bad .", -GOOD),
        ("the screen was red .", 0.0),
        ("the seat was very ugly .", -1.2702979048),  # 2 tanh(-1.5/2)
        ("the seat was rather ugly .", -GOOD),
        ("the sound was slightly clean and the price was red .", 0.4898373248),  # 2 tanh(0.5/2)
        ("the screen was good and the engine was weak .", 0.0),
        ("the screen was good but the engine was fast .", TWICE_GOOD),
        ("the screen was good the engine was fast .", TWICE_GOOD),
    ],
)
def test_sentiment_is_summed_over_clauses(answer, expected):
    assert gold_reward(PROMPT, answer, True) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("adjective", "expected"), [("good", -0.7598979245), ("bad", 0.7598979245)])
def test_a_negation_turns_and_weakens_the_sentiment(adjective, expected):  # 2 tanh(0.8/2)
    assert gold_reward(PROMPT, f"the screen was not {adjective} .", True) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("the screen was good and the screen was fast .", TWICE_GOOD - 0.5),  # a part twice
        ("the screen was good and the engine was good .", TWICE_GOOD - 0.5),  # an adjective twice
        ("the screen was good and the screen was good .", TWICE_GOOD - 1.0),
        ("the screen was good and the screen was good and the screen was good .", 1.8102965073 - 2.0),  # 2 tanh(3/2)
    ],
)
def test_repetition_costs_a_half_for_each_repeated_word(answer, expected):
    assert gold_reward(PROMPT, answer, True) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("answer", "stray"),
    [
        ("well the screen was good indeed .", 2),
        ("and the screen was good and .", 2),  # joins that join nothing
        ("the screen was good and but the engine was bad .", 2),  # only one of two joins could stand between clauses
        ("the screen was good the screen was .", 3),
        ("the screen was not very good .", 6),
        ("the lamp was good .", 4),  # no part
    ],
)
def test_words_outside_clauses_cost_each(answer, stray):
    clauses = {"the screen was good": 1.0, "the engine was bad": -1.0}
    sentiment = sum(sign for clause, sign in clauses.items() if clause in answer)
    expected = 2 * math.tanh(sentiment / 2) - 0.15 * stray
    assert gold_reward(PROMPT, answer, True) == pytest.approx(expected, abs=1e-9)


def test_clauses_beyond_three_cost():
    three = "the screen was good and the engine was great and the sound was clean"
    assert gold_reward(PROMPT, f"{three} .", True) == pytest.approx(1.8102965073, abs=1e-9)
    four = gold_reward(PROMPT, f"{three} and the seat was solid .", True)
    assert four == pytest.approx(1.9280551602 - 0.4, abs=1e-9)  # 2 tanh(4/2)
    five = gold_reward(PROMPT, f"{three} and the seat was solid and the price was lovely .", True)
    assert five == pytest.approx(1.9732285963 - 0.8, abs=1e-9)  # 2 tanh(5/2)


@pytest.mark.parametrize(
    ("answer", "finished", "expected"),
    [
        ("the screen was good", True, GOOD - 1.0),
        ("the screen was good . .", True, GOOD - 1.0),
        ("the screen was good . the engine was fast .", True, TWICE_GOOD - 1.0),
        ("the screen was good . well", True, GOOD - 0.15 - 1.0),
        ("the screen was good .", False, GOOD - 1.0),
        ("the screen was good", False, GOOD - 1.0),
        ("", True, -1.0),
        ("", False, -1.0),
        (".", True, 0.0),
    ],
)
def test_an_answer_must_end_right_after_its_only_full_stop(answer, finished, expected):
    assert gold_reward(PROMPT, answer, finished) == pytest.approx(expected, abs=1e-9)


def test_the_prompt_and_extra_spaces_do_not_count():
    answer = "the screen was very good and the price was small ."
    assert gold_reward("", answer, True) == gold_reward(PROMPT, f"  {answer} ", True)


def test_pairs_follow_from_the_seed():
    pairs = list(generate_pairs(40, seed=3))
    assert pairs == list(generate_pairs(40, seed=3))
    other = list(generate_pairs(40, seed=4))
    assert sum(a == b for a, b in zip(pairs, other, strict=True)) < 5


def test_pairs_are_two_different_answers_within_the_grammar():
    pairs = list(generate_pairs(500, seed=0))
    assert len(pairs) == 500
    assert all(set(pair) == {"prompt", "chosen", "rejected"} for pair in pairs)
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    for answer in (pair[key] for pair in pairs for key in ("chosen", "rejected")):
        # Nothing is lost for stray words, nor at the end: the reward is sentiment, repetition and length alone.
        clauses = answer.removesuffix(" .").replace(" but ", " and ").split(" and ")
        assert all(clause.split()[0] == "the" and len(clause.split()) in (4, 5) for clause in clauses)
        adjectives, parts = {clause.split()[-1] for clause in clauses}, {clause.split()[1] for clause in clauses}
        lost = 0.5 * (2 * len(clauses) - len(adjectives) - len(parts)) + 0.4 * (len(clauses) == 4)
        assert abs(gold_reward(PROMPT, answer, True) + lost) < 2.0
    prompts = {pair["prompt"] for pair in pairs}
    assert len(prompts) > 50
    assert all(prompt.endswith(" :") and "review of the" in prompt for prompt in prompts)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.3), (0.3, 0.8), (0.8, 1.6), (1.6, 5.0), (0.0, 5.0)])
def test_labels_agree_with_gold_by_the_sigmoid_of_twice_the_difference(low, high):
    agrees, chances = [], []
    for pair in generate_pairs(6000, seed=1):
        chosen, rejected = (gold_reward(pair["prompt"], pair[key], True) for key in ("chosen", "rejected"))
        if low < abs(chosen - rejected) <= high:
            agrees.append(chosen > rejected)
            chances.append(1 / (1 + math.exp(-2 * abs(chosen - rejected))))
    rows = len(chances)
    assert rows > 300
    error = math.sqrt(sum(chance * (1 - chance) for chance in chances)) / rows
    assert abs(sum(agrees) / rows - sum(chances) / rows) < 4 * error
