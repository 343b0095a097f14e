"""Invented questions, each with a better and a worse answer."""

from __future__ import annotations

import random

THINGS = {
    "a kettle": ("boils water for tea", "flies south in autumn"),
    "a bicycle": ("has two wheels and needs no fuel", "is a kind of soup"),
    "the moon": ("circles the earth in about a month", "was closed last Tuesday"),
    "an oak": ("grows slowly and can live for centuries", "can be paid in cash"),
    "a library": ("lends books to anyone with a card", "tastes of salt"),
    "a glacier": ("is a river of ice that moves very slowly", "has four strings"),
    "bread": ("is baked from flour, water, salt and yeast", "is the capital of a desert"),
    "a compass": ("points to the north", "sings in the morning"),
}
ASKED = ("What is {}?", "Can you tell me about {}?", "Please explain {} to a child.", "What should I know of {}?")


def pairs(count: int, seed: int) -> list[tuple[str, str, str]]:
    """Questions with a better and a worse answer, no two alike."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        thing = draw.choice(list(THINGS))
        good, bad = THINGS[thing]
        question = draw.choice(ASKED).format(thing)
        rows.append(
            (f"{question} (Question {number})", f"{thing.capitalize()} {good}.", f"{thing.capitalize()} {bad}.")
        )
    return rows


def texts() -> list[str]:
    return [" ".join(row) for row in pairs(200, 0)] + ["Human: Assistant: USER ASSISTANT\n\nHuman:"] * 20
