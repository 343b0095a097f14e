"""evaluation.json: what was measured of a trained model on unseen rows; one type for each evaluation.

An entry that was not measured (no gold reward, one prompt only, another version of the code) is absent. A function that
measures may give None for it: it is left out when the file is written.

`seen_in_train` counts the rows, or prompts, of which the prompt or the group is among the training rows too: where it
is not 0, the numbers are not of unseen data alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, TypedDict

from rlhf.files import JsonObject, peek, read_object, write_json

EVALUATION = "evaluation.json"


class EvaluatedStage(TypedDict, total=False):
    """The stage that measured, and how and where it ran."""

    schema_version: int
    stage: str
    id: str
    execution: JsonObject
    slurm_job_id: str
    gpus: str


class SftEvaluation(TypedDict, total=False):
    """Of the SFT model: loss in nats per answer token, and what it was measured on."""

    loss: float
    perplexity: float
    tokens: int
    rows: int
    rows_too_long: int
    seen_in_train: int


class Accuracy(TypedDict, total=False):
    """Share of pairs that are ranked right, ties counting half, with its 95 % interval; and the share of ties."""

    pairs: int
    tie_share: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float


class SubsetAccuracy(Accuracy, total=False):
    """Of the pairs of one subset of the data, and of choosing the longer answer in it."""

    subset: str
    longer_accuracy: float


class LongerAccuracy(Accuracy, total=False):
    """Of the pairs whose chosen answer is `longer`, `shorter`, or of `equal` length."""

    chosen: str


# `from` is a reserved word.
LengthBin = TypedDict("LengthBin", {"from": int, "to": int}, total=False)
ProbabilityBin = TypedDict(
    "ProbabilityBin",
    {
        "from": float,
        "to": float,
        "pairs": int,
        "predicted": float,
        "observed": float,
        "observed_low": float,
        "observed_high": float,
    },
    total=False,
)


class LengthAccuracy(LengthBin, Accuracy, total=False):
    """Of the pairs whose chosen answer is longer by `from` to `to` tokens."""


class GoldAgreement(TypedDict, total=False):
    """Share of pairs that reward model and gold reward rank alike, of those that differ in gold; correlation."""

    gold_pairs: int
    gold_accuracy: float | None
    gold_correlation: float | None


class RewardEvaluation(Accuracy, GoldAgreement, total=False):
    """Of the reward model; scores and margins are normalised as the model says, probabilities are not."""

    prompts: int
    seen_in_train: int
    rows_too_long: int
    rows_of_equal_answers: int  # as tokens, though not as text
    longer_accuracy: float
    score_mean: float
    score_std: float
    chosen_mean: float
    rejected_mean: float
    margin_mean: float
    calibration_error: float
    calibration: list[ProbabilityBin]
    by_subset: list[SubsetAccuracy] | None
    by_longer: list[LongerAccuracy]
    by_length_difference: list[LengthAccuracy]


class BestOfN(TypedDict, total=False):
    """The best of `n` answers by the reward model: its expected score, its KL in nats, and how often it wins."""

    n: int
    kl: float
    score: float
    win_rate: float
    gold: float
    gold_win_rate: float


class BaselineEvaluation(TypedDict, total=False):
    """Of answers of the SFT model."""

    prompts: int
    seen_in_train: int
    n: int
    score_mean: float
    score_std: float
    gold_mean: float | None
    response_length: float
    eos_share: float
    best_of_n: list[BestOfN]


class PpoEvaluation(TypedDict, total=False):
    """Of the policy's answers against the SFT model's to the same prompts; `_se`: standard error over prompts."""

    prompts: int
    seen_in_train: int
    win_rate: float
    win_rate_se: float | None
    score_mean: float
    sft_score_mean: float
    kl: float
    kl_se: float | None
    response_length: float
    sft_response_length: float
    eos_share: float
    sft_eos_share: float
    gold_win_rate: float
    gold_win_rate_se: float | None
    gold_mean: float | None
    sft_gold_mean: float


Measured = SftEvaluation | RewardEvaluation | BaselineEvaluation | PpoEvaluation


class EvaluationRecord(SftEvaluation, RewardEvaluation, BaselineEvaluation, PpoEvaluation, EvaluatedStage, total=False):
    """Content of evaluation.json, of whatever kind."""


def read_evaluation(folder: Path) -> EvaluationRecord:
    """What an evaluation stage measured.

    Raises:
        UserError: the file is missing or damaged.
    """
    evaluation: EvaluationRecord = read_object(folder / EVALUATION)
    return evaluation


def peek_evaluation(folder: Path) -> EvaluationRecord | None:
    """What was measured, where a stage may be made meanwhile: None where it is not there, empty where it is damaged."""
    evaluation: EvaluationRecord | None = peek(folder / EVALUATION)
    return evaluation


class Overlap(NamedTuple):
    """How many of the rows that a number was measured on are trained on too."""

    seen: int
    rows: int

    def __str__(self) -> str:
        return f"{self.seen} of {self.rows}"


def overlap(evaluation: EvaluationRecord | None) -> Overlap | None:
    """The overlap of what was measured with the training rows; None where there is none, or where it is not known."""
    found: EvaluationRecord = evaluation or {}
    seen = found.get("seen_in_train")
    return Overlap(seen, found.get("rows") or found.get("prompts", 0)) if seen else None


def write_evaluation(folder: Path, evaluation: EvaluationRecord) -> None:
    """Write what an evaluation stage measured; an entry that is None was not, and is left out."""
    write_json(folder / EVALUATION, {key: value for key, value in evaluation.items() if value is not None})
