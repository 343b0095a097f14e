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
from rlhf.data.example import TIE, Example, Row, UnreadableRow, is_answered
from rlhf.data.examples import examples
from rlhf.data.mappings import largest_bad_share, mapped_source, row_format
from rlhf.data.partition import numbered, partition
from rlhf.data.sources import load_rows
from rlhf.data.texts import own_spans
from rlhf.errors import UserError
from rlhf.files import write_json
from rlhf.records.dataset import REPORT, CachedSplit, DatasetReport, found, named
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
        "seen": datasets.Value("bool"),  # an unseen row whose prompt or group is trained on too
        "row": datasets.Value("int64"),
    }
)
HOLDOUT_SEED = 0
LOG_EVERY = 100_000


def cache_dataset(settings: ResolvedDataset, output: Path, place: str) -> None:
    """Write `arrow/` (splits `train` and `eval`) and `report.json` into `output`.

    The report counts ties, and unusable rows by reason, and names the first row numbers of each; it holds no text.

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
    reports: dict[str, CachedSplit] = {}
    only_unseen = rows.eval if settings.evaluation_only else None
    train, reports["train"] = _read(rows.train if only_unseen is None else only_unseen, settings, place)
    if settings.evaluation_only:
        unseen = train  # the split gives no phase a training row
        reports["eval"] = {"rows_kept": len(unseen), "evaluation_only": True}
    elif rows.eval is None:
        train, unseen = _hold_out(train, source.eval_share, place)
        reports["train"]["rows_kept"] = len(train)
        reports["eval"] = {"rows_kept": len(unseen), "held_out": True}
    else:
        unseen, reports["eval"] = _read(rows.eval, settings, place)
    splits = {"train": train, "eval": unseen}
    if not settings.evaluation_only:
        _mark_seen(train, unseen)
    for name, part in splits.items():
        reports[name].update(_describe(part))
    seen = sum(row["seen"] for row in unseen)
    if seen:
        logger.warning("%s: prompts or groups of %d of %d unseen rows are trained on too", place, seen, len(unseen))
    reports["eval"]["seen_in_train"] = seen
    report: DatasetReport = {
        "schema_version": 2,
        "fingerprint": _fingerprint(splits),
        "rows_read": sum(part.get("rows_read", 0) for part in reports.values()),
        "rows_unusable": sum(rows["count"] for part in reports.values() for rows in part.get("bad_rows", {}).values()),
        "max_bad_share": largest_bad_share(settings),
        "splits": reports,
    }
    if rows.published is not None:
        report["source"] = vars(rows.published)
    with atomic_directory(output) as folder:
        table = {name: datasets.Dataset.from_list(part, features=FEATURES) for name, part in splits.items()}
        datasets.DatasetDict(table).save_to_disk(folder / "arrow")
        write_json(folder / REPORT, report)


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
        yield from (row["prompt"], *([row["chosen"]] if is_answered(row) else []), *row["rejected"])


def _read(
    rows: Iterable[Row | UnreadableRow], settings: ResolvedDataset, place: str
) -> tuple[list[dict[str, Any]], CachedSplit]:
    """Usable rows, and the report of the others. Ties are left out, but do not count as unusable."""
    kept: list[dict[str, Any]] = []
    bad: dict[str, list[int]] = {}
    openings: dict[int, str] = {}  # prompt of the first answer of each row
    for number, result in examples(_logged(rows, place), row_format(settings), place):
        if isinstance(result, Example):
            own = own_spans([result.prompt, result.chosen, *result.rejected])
            group = _group(result, number, openings.setdefault(number, result.prompt), settings)
            kept.append({**vars(result), "own": own, "group": group, "seen": False, "row": number})
        else:
            bad.setdefault(result, []).append(number)
    ties = bad.pop(TIE, [])
    count = len(openings) + len(ties) + sum(map(len, bad.values()))
    if not count:
        raise UserError(f"{place}: the source holds no row")
    share = sum(map(len, bad.values())) / count
    bad_rows = {reason: found(numbers) for reason, numbers in bad.items()}
    reasons = named(bad_rows)
    left_out = named(bad_rows | ({TIE: found(ties)} if ties else {}))
    logger.info("%s: %d rows, %d usable%s", place, count, len(openings), f": {left_out}" if left_out else "")
    allowed = largest_bad_share(settings)
    if share > allowed:
        raise UserError(
            f"{place}: {share:.1%} of {count} rows are unusable, {place}.max_bad_share allows "
            f"{allowed:.1%}: {reasons}. Check shape and columns"
        )
    if not kept:
        raise UserError(f"{place}: no usable row is left of {count}: {left_out}")
    return kept, {
        "rows_read": count,
        "rows_kept": len(kept),
        "bad_share": share,
        "bad_rows": bad_rows,
        "ties": found(ties),
    }


def _group(example: Example, number: int, opening: str, settings: ResolvedDataset) -> str:
    """What a row stays together with; the answers of a conversation, by its opening, which equal prompts share."""
    if example.group is not None:
        return f"group {example.group}"
    return _alone(number) if settings.keep_together == "row" else f"prompt {opening}"


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


def _mark_seen(train: list[dict[str, Any]], unseen: list[dict[str, Any]]) -> None:
    """Mark the unseen rows of which the prompt, or the group that rows stay together by, is among the training rows."""
    known = {(key, row[key]) for row in train for key in _keys(row)}
    for row in unseen:
        row["seen"] = any((key, row[key]) in known for key in _keys(row))


def _keys(row: dict[str, Any]) -> tuple[str, ...]:
    """By what a row is known; the group of a row alone is its number, which says nothing of a row of another source."""
    return ("prompt",) if row["group"] == _alone(row["row"]) else ("prompt", "group")


def _alone(number: int) -> str:
    return f"row {number}"


def _describe(rows: list[dict[str, Any]]) -> CachedSplit:
    """Counts and lengths that a reader wants to know of usable rows."""
    prompts = [row["prompt"] for row in rows]
    texts = {"prompt": prompts, "chosen": [row["chosen"] for row in rows if is_answered(row)]}
    texts["rejected"] = [answer for row in rows for answer in row["rejected"]]
    return {
        "groups": len({row["group"] for row in rows}),
        "without_rejected": sum(not row["rejected"] for row in rows),
        "without_answer": sum(not is_answered(row) for row in rows),
        "with_margin": sum(row["ratings"] is not None for row in rows),
        "most_answers": max(is_answered(row) + len(row["rejected"]) for row in rows),
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
            content = {key: value for key, value in row.items() if key != "seen"}  # which follows from the others
            digest.update(json.dumps([name, content], sort_keys=True).encode())
    return "sha256:" + digest.hexdigest()
