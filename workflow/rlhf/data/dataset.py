"""The dataset cache: rows of any source and shape as prompt and answers, with a report of what was left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from rlhf.config.specification import ResolvedDataset
from rlhf.data.example import Example, Row, UnreadableRow
from rlhf.data.examples import examples
from rlhf.data.mappings import mapped_source, row_format
from rlhf.data.partition import numbered, partition
from rlhf.data.sources import load_rows
from rlhf.data.texts import own_spans
from rlhf.errors import UserError
from rlhf.files import write_json
from rlhf.runtime.folders import atomic_directory
from rlhf.runtime.logging import get_logger

logger = get_logger(__name__)

FEATURES = datasets.Features(
    {
        "prompt": datasets.Value("string"),
        "chosen": datasets.Value("string"),
        "rejected": datasets.List(datasets.Value("string")),  # better ones first
        "subset": datasets.Value("string"),
        "ranks": datasets.List(datasets.Value("int32")),  # of chosen and rejected
        "ratings": datasets.List(datasets.Value("float64")),  # of the same, or null
        "turns": datasets.Value("string"),
        "own": datasets.List(datasets.List(datasets.Value("int32"))),  # see `rlhf.data.texts.own_spans`
        "group": datasets.Value("string"),  # rows of one stay together in every split
        "row": datasets.Value("int64"),
    }
)
SHOWN_ROWS = 10
HOLDOUT_SEED = 0
LOG_EVERY = 100_000


def cache_dataset(settings: ResolvedDataset, output: Path, place: str) -> None:
    """Write `arrow/` (splits `train` and `eval`) and `report.json` into `output`.

    The report counts unusable rows by reason and names the first row numbers of each; it holds no text.

    Args:
        settings: where the rows come from, and how they are read.
        output: resources/datasets/<id>/; appears whole or not at all.
        place: configuration path of the dataset, for messages.

    Raises:
        UserError: the source cannot be read, a mapped column does not exist, nothing is left, or the share of unusable
            rows is above `max_bad_share`.
    """
    source = mapped_source(settings, place)
    rows = load_rows(source, f"{place}.source")
    kept, report = _read(rows.train, settings, place)
    if rows.eval is None:
        train, unseen = _hold_out(kept, source.eval_share, place)
        reports = {"train": {**report, "rows_kept": len(train)}, "eval": {"rows_kept": len(unseen), "held_out": True}}
    else:
        train = kept
        unseen, eval_report = _read(rows.eval, settings, place)
        reports = {"train": report, "eval": eval_report}
    splits = {"train": train, "eval": unseen}
    groups = {row["group"] for row in train}
    for name, part in splits.items():
        reports[name] |= _describe(part)
    seen = sum(row["group"] in groups for row in unseen)
    if seen:
        logger.warning("%s: %d of %d unseen rows are of groups that are trained on", place, seen, len(unseen))
    reports["eval"]["seen_in_train"] = seen
    with atomic_directory(output) as folder:
        table = {name: datasets.Dataset.from_list(part, features=FEATURES) for name, part in splits.items()}
        datasets.DatasetDict(table).save_to_disk(folder / "arrow")
        published = {"source": vars(rows.published)} if rows.published else {}
        report = {"schema_version": 1, "fingerprint": _fingerprint(splits), "splits": reports, **published}
        write_json(folder / "report.json", report)


def load_cached(path: Path, split: str) -> datasets.Dataset:
    """One split (`train` or `eval`) of a cached dataset.

    Args:
        path: resources/datasets/<id>/.
        split: `train` or `eval`.
    """
    return datasets.load_from_disk(str(path / "arrow"))[split]


def cached_texts(path: Path) -> Iterator[str]:
    """Every training text of a cached dataset, for a new tokenizer."""
    for row in load_cached(path, "train"):
        yield from (row["prompt"], row["chosen"], *row["rejected"])


def _read(
    rows: Iterable[Row | UnreadableRow], settings: ResolvedDataset, place: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Usable rows, and the report of the others."""
    kept: list[dict[str, Any]] = []
    bad: dict[str, list[int]] = {}
    openings: dict[int, str] = {}  # prompt of the first answer of each row
    for number, result in examples(_logged(rows, place), row_format(settings), place):
        if isinstance(result, Example):
            own = own_spans([result.prompt, result.chosen, *result.rejected])
            group = _group(result, number, openings.setdefault(number, result.prompt), settings)
            kept.append({**vars(result), "own": own, "group": group, "row": number})
        else:
            bad.setdefault(result, []).append(number)
    count = len(openings) + sum(map(len, bad.values()))
    if not count:
        raise UserError(f"{place}: the source holds no row")
    share = sum(map(len, bad.values())) / count
    reasons = "; ".join(f"{len(numbers)} x {reason}" for reason, numbers in sorted(bad.items()))
    logger.info("%s: %d rows, %d usable%s", place, count, len(openings), f" ({reasons})" if reasons else "")
    if share > settings.max_bad_share:
        first = {reason: sorted(numbers)[:SHOWN_ROWS] for reason, numbers in bad.items()}
        raise UserError(
            f"{place}: {share:.1%} of {count} rows are unusable, {place}.max_bad_share allows "
            f"{settings.max_bad_share:.1%}: {reasons}. First rows: {first}. Check shape and columns"
        )
    if not kept:
        raise UserError(f"{place}: no usable row is left of {count}: {reasons}")
    report = {
        "rows_read": count,
        "rows_kept": len(kept),
        "bad_share": share,
        "bad_rows": {
            reason: {"count": len(numbers), "first_rows": sorted(numbers)[:SHOWN_ROWS]}
            for reason, numbers in bad.items()
        },
    }
    return kept, report


def _group(example: Example, number: int, opening: str, settings: ResolvedDataset) -> str:
    """What a row stays together with; the answers of a conversation, by its opening, which equal prompts share."""
    if example.group is not None:
        return f"group {example.group}"
    return f"row {number}" if settings.keep_together == "row" else f"prompt {opening}"


def _logged(rows: Iterable[Row | UnreadableRow], place: str) -> Iterator[Row | UnreadableRow]:
    for number, row in enumerate(rows, start=1):
        yield row
        if number % LOG_EVERY == 0:
            logger.info("%s: %d rows read", place, number)


def _hold_out(
    rows: list[dict[str, Any]], share: float, place: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and unseen rows, by groups; which ones are unseen follows from the groups and their order alone."""
    count = round(share * len(rows))
    groups = numbered([row["group"] for row in rows])
    (unseen, train) = partition(groups, (count, len(rows) - count), HOLDOUT_SEED)
    if not (len(unseen) and len(train)):
        raise UserError(
            f"{place}.source.eval_share: {share} of {len(rows)} rows in {groups.max() + 1} groups that stay together "
            f"leaves {len(unseen)} unseen rows and {len(train)} training rows; both are needed ({place}.keep_together)"
        )
    return [rows[row] for row in train], [rows[row] for row in unseen]


def _describe(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts and lengths that a reader wants to know of usable rows."""
    prompts = [row["prompt"] for row in rows]
    texts = {field: [row[field] for row in rows] for field in ("prompt", "chosen")}
    texts["rejected"] = [answer for row in rows for answer in row["rejected"]]
    return {
        "without_rejected": sum(not row["rejected"] for row in rows),
        "with_margin": sum(row["ratings"] is not None for row in rows),
        "most_answers": 1 + max(len(row["rejected"]) for row in rows),
        "repeated_prompts": len(prompts) - len(set(prompts)),
        "non_ascii_rows": sum(not "".join((row["prompt"], row["chosen"], *row["rejected"])).isascii() for row in rows),
        "characters": {
            field: {"mean": float(np.mean(lengths)), "max": max(lengths)}
            for field, lengths in ((field, list(map(len, column))) for field, column in texts.items())
            if lengths
        },
    }


def _fingerprint(splits: dict[str, list[dict[str, Any]]]) -> str:
    digest = hashlib.sha256()
    for name, rows in splits.items():
        for row in rows:
            digest.update(json.dumps([name, row], sort_keys=True).encode())
    return "sha256:" + digest.hexdigest()
