"""What is reported of a dataset: as it was read (`report.json` of the cache), divided, and as tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

from rlhf.files import read_object

REPORT = "report.json"
SPLIT = "split.json"
FIRST_ROWS = 10


class Found(TypedDict):
    """Rows of which something is true, and the numbers of the first ones in their source."""

    count: int
    first_rows: list[int]


def found(rows: Iterable[int]) -> Found:
    """What a report says of the rows of these numbers."""
    numbers = sorted(rows)
    return {"count": len(numbers), "first_rows": numbers[:FIRST_ROWS]}


def named(reasons: Mapping[str, Found]) -> str:
    """Reasons and their rows in a sentence."""
    return "; ".join(
        f"{rows['count']} x {reason} ({', '.join(map(str, rows['first_rows']))}"
        f"{', …' if rows['count'] > len(rows['first_rows']) else ''})"
        for reason, rows in sorted(reasons.items())
    )


class Characters(TypedDict):
    """Length of a text in characters."""

    mean: float
    max: int


class CachedSplit(TypedDict, total=False):
    """Rows of a source, and those that are kept.

    Where the unseen rows are held out from the training rows, what is known of all of them stands with the latter.

    Attributes:
        rows_read: of the source.
        rows_kept: that can be used.
        bad_share: of the rows read.
        bad_rows: reason -> rows that cannot be used.
        ties: rows whose answers are equally good; they are left out, but not unusable.
        evaluation_only: whether no row is trained on: those of `train` are the same, and no phase has them.
        held_out: whether the rows are a part of the training rows' source.
        groups: how many groups, by default prompts, the rows belong to.
        seen_in_train: unseen rows whose prompt or group is trained on too.
        characters: of `prompt`, `chosen` and `rejected`.
    """

    rows_read: int
    rows_kept: int
    bad_share: float
    bad_rows: dict[str, Found]
    ties: Found
    evaluation_only: bool
    held_out: bool
    groups: int
    seen_in_train: int
    without_rejected: int
    without_answer: int
    with_margin: int
    most_answers: int
    repeated_prompts: int
    non_ascii_rows: int
    characters: dict[str, Characters]


class DatasetReport(TypedDict):
    """Content of resources/datasets/ID/report.json.

    Attributes:
        rows_read, rows_unusable: of all splits.
        max_bad_share: the largest share of unusable rows that the configuration allows.
        splits: `train` and `eval`.
        source: hub, revision that was asked for, commit that this was, and licence of a hub's dataset.
    """

    schema_version: int
    fingerprint: str
    rows_read: int
    rows_unusable: int
    max_bad_share: float
    splits: dict[str, CachedSplit]
    source: NotRequired[dict[str, str | None]]


class SplitRecord(TypedDict, total=False):
    """Content of results/split/ID/rows/split.json.

    Attributes:
        rows: of each part, such as `train.sft`.
        groups: of each part.
        reward_rows_without_rejected: rows of `train` and `eval` that the reward phase leaves out.
        sft_rows_without_answer: the same of the SFT phase.
    """

    schema_version: int
    rows: dict[str, int]
    groups: dict[str, int]
    reward_rows_without_rejected: dict[str, int]
    sft_rows_without_answer: dict[str, int]


Bin = TypedDict("Bin", {"from": int, "to": int, "count": int})


class Lengths(TypedDict):
    """Lengths in tokens: of prompts, or of answers with their EOS. The bins are of one width, both ends belong to them.

    Attributes:
        p95: 19 of 20 are no longer than that.
    """

    mean: float
    p95: float
    max: int
    bins: list[Bin]


class TokensSplit(TypedDict):
    """What the texts of a split are like.

    Attributes:
        rows: of the split.
        bad_rows: reason -> rows that have no ids and are left out.
        lengths: of `prompt`, and of each `answer`.
        border_tokens: a token spans the border of prompt and answer; it is among the answer's ids.
        unseparated: neither the prompt ends nor an answer begins with white space or a sign.
        equal_answers: two answers are the same ids; nothing can be learnt from which one is better.
        spelled_special_tokens: data spells out special tokens, which stay characters.
        spelled: these tokens.
    """

    rows: int
    bad_rows: dict[str, Found]
    lengths: dict[str, Lengths]
    border_tokens: Found
    unseparated: Found
    equal_answers: Found
    spelled_special_tokens: Found
    spelled: list[str]


class Check(TypedDict):
    """What was compared with the tokenizer's own file, and found equal."""

    rows: int
    answers: int
    compared: int
    decoded_as_given: int


class ShownRow(TypedDict):
    """A row as it is trained: text and ids of the prompt and of its best answer, if it has any."""

    row: int
    prompt: str
    answer: str
    prompt_ids: list[int]
    answer_ids: list[int]
    prompt_tokens: list[str]
    answer_tokens: list[str]


class TokensReport(TypedDict):
    """Content of results/tokens/ID/report.json."""

    schema_version: int
    splits: dict[str, TokensSplit]
    check: Check
    examples: list[ShownRow]


def read_dataset_report(folder: Path) -> DatasetReport:
    """What was read: of a folder resources/datasets/ID.

    Raises:
        UserError: the file is missing or damaged.
    """
    report: DatasetReport = read_object(folder / REPORT)
    return report


def read_split_record(folder: Path) -> SplitRecord:
    """How rows were divided: of a folder results/split/ID/rows.

    Raises:
        UserError: the file is missing or damaged.
    """
    record: SplitRecord = read_object(folder / SPLIT)
    return record


def read_tokens_report(folder: Path) -> TokensReport:
    """What the texts are like: of a folder results/tokens/ID.

    Raises:
        UserError: the file is missing or damaged.
    """
    report: TokensReport = read_object(folder / REPORT)
    return report
