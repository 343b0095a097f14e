"""samples.jsonl: sampled answers to unseen prompts, one prompt per line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, cast

from rlhf.files import read_jsonl, write_jsonl

SAMPLES = "samples.jsonl"


class _Answer(TypedDict):
    text: str
    score: float
    length: int
    finished: bool


class AnswerSample(_Answer, total=False):
    """One answer: its normalised score, its tokens, whether it ended with EOS; `gold` where there is a gold reward."""

    gold: float


class BaselineSample(TypedDict):
    """Answers of the SFT model to one prompt: the first to compare the policy with, the others for best-of-n.

    Attributes:
        row: of the prompt in the corpus.
        prompt: as the model reads it, special tokens too.
        seen_in_train: whether the prompt, or the group of its row, is among the training rows too.
    """

    row: int
    prompt: str
    seen_in_train: bool
    answers: list[AnswerSample]


class _Pair(TypedDict):
    row: int
    prompt: str
    sft: str
    policy: str
    sft_score: float
    policy_score: float


class SamplePair(_Pair, total=False):
    """An answer of the SFT model and one of the policy to the same prompt: tokens, and whether it ended with EOS."""

    seen_in_train: bool
    sft_length: int
    policy_length: int
    sft_finished: bool
    policy_finished: bool

    sft_gold: float
    policy_gold: float


def read_baseline_samples(file: Path) -> list[BaselineSample]:
    """The answers of the SFT model.

    Raises:
        UserError: the file is missing or damaged.
    """
    return cast(list[BaselineSample], read_jsonl(file))


def read_sample_pairs(file: Path) -> list[SamplePair]:
    """The answers of SFT model and policy, side by side.

    Raises:
        UserError: the file is missing or damaged.
    """
    return cast(list[SamplePair], read_jsonl(file))


def write_samples(folder: Path, samples: Sequence[BaselineSample] | Sequence[SamplePair]) -> None:
    """Write the answers of an evaluation stage."""
    write_jsonl(folder / SAMPLES, samples)
