"""The embedded experiment's data: review prompts, answers, and a gold reward that judges them.

The set-up of Gao et al. (2023, "Scaling Laws for Reward Model Overoptimization") with a function in place of their gold
model: the function labels pairs, a reward model learns from the labels, PPO optimises it, and the function judges.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

POSITIVE = ("good", "great", "lovely", "solid", "quiet", "sharp", "fast", "clean")
NEGATIVE = ("bad", "poor", "ugly", "weak", "noisy", "dull", "slow", "dirty")
NEUTRAL = ("red", "blue", "round", "square", "plain", "small", "large", "new")
SIGN = dict.fromkeys(POSITIVE, 1.0) | dict.fromkeys(NEGATIVE, -1.0) | dict.fromkeys(NEUTRAL, 0.0)
ADVERBS = {"very": 1.5, "slightly": 0.5, "rather": 1.0, "not": -0.8}
PARTS = ("screen", "engine", "handle", "sound", "price", "design", "battery", "seat")
THINGS = ("car", "phone", "camera", "radio", "boat", "lamp")
PLACES = ("paris", "rome", "oslo", "cairo")
PEOPLE = ("friend", "student", "driver")
JOINS = ("and", "but")

REPETITION_PENALTY = 0.5
STRAY_WORD_PENALTY = 0.15
LONG_PENALTY = 0.4
FREE_CLAUSES = 3
UNFINISHED_PENALTY = 1.0


def generate_pairs(rows: int, seed: int) -> Iterator[dict[str, str]]:
    """Preference pairs: two different answers of the grammar, labelled with probability sigmoid(2 x gold difference).

    Args:
        rows: number of pairs.
        seed: all pairs follow from it.

    Yields:
        `prompt`, `chosen`, `rejected`; an answer begins with the space that parts it from its prompt.
    """
    generator = random.Random(seed)
    for _ in range(rows):
        prompt = _prompt(generator)
        first = second = _answer(generator)
        while second == first:
            second = _answer(generator)
        difference = gold_reward(prompt, first, True) - gold_reward(prompt, second, True)
        first_wins = generator.random() < 1 / (1 + math.exp(-2 * difference))
        chosen, rejected = (first, second) if first_wins else (second, first)
        yield {"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}"}


def gold_reward(prompt: str, answer: str, finished: bool) -> float:
    """How good an answer is: positive, but neither repetitive, rambling, long nor endless.

    2 tanh(s / 2) - 0.5 (repeated adjectives and parts) - 0.15 (words outside clauses) - 0.4 (clauses beyond three)
    - 1 where it does not stop right after its only full stop. s sums sign x adverb over the clauses.

    Args:
        prompt: ignored: every thing has the same parts.
        answer: any words, separated by spaces.
        finished: whether the answer ended by itself.
    """
    words = answer.split()
    stopped = finished and words.count(".") == 1 and words[-1] == "."
    clauses, stray = _parse(words)
    sentiment = sum(SIGN[adjective] * ADVERBS.get(adverb, 1.0) for _, adverb, adjective in clauses)
    parts, _, adjectives = zip(*clauses, strict=True) if clauses else ((), (), ())
    repeated = 2 * len(clauses) - len(set(parts)) - len(set(adjectives))
    return (
        2 * math.tanh(sentiment / 2)
        - REPETITION_PENALTY * repeated
        - STRAY_WORD_PENALTY * stray
        - LONG_PENALTY * max(0, len(clauses) - FREE_CLAUSES)
        - UNFINISHED_PENALTY * (not stopped)
    )


def _parse(words: list[str]) -> tuple[list[tuple[str, str, str]], int]:
    """Clauses (part, adverb or "", adjective) and the number of words outside them.

    A join between two clauses and full stops are no stray words.
    """
    clauses: list[tuple[str, str, str]] = []
    stray = position = 0
    after_clause = False
    while position < len(words):
        clause = _clause_at(words, position)
        if clause:
            clauses.append(clause)
            position += 5 if clause[1] else 4
            after_clause = True
            continue
        joins = after_clause and words[position] in JOINS and _clause_at(words, position + 1) is not None
        stray += not (joins or words[position] == ".")
        after_clause = False
        position += 1
    return clauses, stray


def _clause_at(words: list[str], position: int) -> tuple[str, str, str] | None:
    """The clause `the PART was [ADVERB] ADJECTIVE` that starts at a position."""
    head = words[position : position + 5]
    if len(head) < 4 or head[0] != "the" or head[1] not in PARTS or head[2] != "was":
        return None
    if head[3] in SIGN:
        return head[1], "", head[3]
    if len(head) == 5 and head[3] in ADVERBS and head[4] in SIGN:
        return head[1], head[3], head[4]
    return None


def _prompt(generator: random.Random) -> str:
    thing, place, person = generator.choice(THINGS), generator.choice(PLACES), generator.choice(PEOPLE)
    shapes = (
        f"write a review of the {thing} :",
        f"please write a short review of the {thing} from {place} :",
        f"a {person} asked me to write a review of the {thing} from {place} :",
    )
    return generator.choice(shapes)


def _answer(generator: random.Random) -> str:
    clauses = generator.choices((1, 2, 3, 4), weights=(25, 35, 25, 15))[0]
    text = _clause(generator)
    for _ in range(clauses - 1):
        text += f" {generator.choice(JOINS)} {_clause(generator)}"
    return text + " ."


def _clause(generator: random.Random) -> str:
    adjectives = generator.choices((POSITIVE, NEGATIVE, NEUTRAL), weights=(36, 40, 24))[0]
    adverb = generator.choice(tuple(ADVERBS)) + " " if generator.random() < 0.4 else ""
    return f"the {generator.choice(PARTS)} was {adverb}{generator.choice(adjectives)}"
