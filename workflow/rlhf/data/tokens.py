"""Token ids of a dataset, made once per (dataset, tokenizer): flat memory-mapped files without padding."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf.causes import FOREIGN, cause
from rlhf.config.sources import OF_TOKENIZER
from rlhf.data.chat import RefusedRow, writer_of
from rlhf.data.dataset import load_cached
from rlhf.data.encoding import Encoded, Encoder
from rlhf.data.example import is_answered
from rlhf.data.questions import Question, question
from rlhf.data.text_check import TextCheck, is_unseparated, log_report, spelled_tokens, split_report
from rlhf.data.texts import Writer, Written
from rlhf.errors import UserError
from rlhf.files import read_json, sha256_file, write_json
from rlhf.records.dataset import REPORT, Found, TokensReport, TokensSplit, found, named, read_dataset_report
from rlhf.runtime.folders import atomic_directory
from rlhf.runtime.logging import get_logger

logger = get_logger(__name__)

SPLITS = ("train", "eval")
FIELDS = ("prompt", "chosen", "rejected")
ANSWER = np.dtype([("length", np.int32), ("rank", np.int32), ("rating", np.float32)])  # no rating: NaN
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json")
BATCH = 1000
ENCODED = datasets.Features(
    {field: datasets.List(datasets.Value("int32")) for field in (*FIELDS, "lengths")}
    | {
        "question": datasets.Value("string"),
        "row": datasets.Value("int64"),
        "spanning": datasets.Value("bool"),
        "spelled": datasets.List(datasets.Value("string")),
        "unseparated": datasets.Value("bool"),
        "equal": datasets.Value("bool"),
        "answered": datasets.Value("bool"),
        "refused": datasets.Value("string"),  # why a row has no ids
    }
)
NO_PROMPT = "prompt without a token"


class TokenStore:
    """Read access to the ids of one split.

    Args:
        folder: results/tokens/<id>/.
        split: `train` or `eval`.

    Attributes:
        has_equal_answers: whether two answers of a row are the same ids, though not the same text, [rows] bool.
        is_usable: whether a row has ids: its text could be written, [rows] bool.
        is_seen: whether the prompt or the group of an unseen row is among the training rows too, [rows] bool.
    """

    def __init__(self, folder: Path, split: str) -> None:
        facts = read_json(folder / "tokens.json")
        self.rows: int = facts["rows"][split]
        self.eos_token_id: int = facts["eos_token_id"]
        self.pad_token_id: int = facts["pad_token_id"]
        self.tokenizer_fingerprint: str = facts["tokenizer_fingerprint"]
        self.dataset_fingerprint: str = facts["dataset_fingerprint"]
        self._template: str | None = facts["chat_template"]
        self._offsets = {field: np.load(folder / f"{split}.{field}.offsets.npy") for field in FIELDS}
        self._ids = {
            field: _map(folder / f"{split}.{field}.bin", facts["dtype"], int(self._offsets[field][-1]))
            for field in FIELDS
        }
        self._answers: np.ndarray = np.load(folder / f"{split}.answers.npy")
        self._answer_offsets = np.load(folder / f"{split}.answers.offsets.npy")
        self.has_equal_answers: np.ndarray = np.load(folder / f"{split}.equal.npy")
        self.is_usable: np.ndarray = np.load(folder / f"{split}.usable.npy")
        self.is_seen: np.ndarray = np.load(folder / f"{split}.seen.npy")
        self._subset_names: list[str] = facts["subsets"][split]
        self._subsets = np.load(folder / f"{split}.subset.npy")
        self._question_offsets = np.load(folder / f"{split}.question.offsets.npy")
        self._questions = _map(folder / f"{split}.question.bin", "uint8", int(self._question_offsets[-1]))

    @property
    def chat_template(self) -> str | None:
        """The configuration's chat template; None: the tokenizer's own, or plain text."""
        return None if self.is_of_tokenizer else self._template

    @property
    def is_of_tokenizer(self) -> bool:
        """Whether the tokenizer's own chat template wrote the prompts."""
        return self._template == OF_TOKENIZER

    def prompt(self, row: int) -> np.ndarray:
        """Ids of a prompt: [length] int64."""
        return self._slice("prompt", row)

    def chosen(self, row: int) -> np.ndarray:
        """Ids of the chosen answer, EOS included: [length] int64."""
        return self._slice("chosen", row)

    def answers(self, row: int) -> list[np.ndarray]:
        """Ids of each answer, EOS included, the best first: [length] int64 each."""
        ids = np.concatenate([self.chosen(row), self._slice("rejected", row)])
        return np.split(ids, self.judgements(row)["length"].cumsum()[:-1])

    def judgements(self, row: int) -> np.ndarray:
        """Length in tokens, rank (0 is best) and rating (NaN where unknown) of each answer: [answers] of `ANSWER`."""
        start, end = self._answer_offsets[row : row + 2]
        judged: np.ndarray = self._answers[start:end]
        return judged

    def subset(self, row: int) -> str | None:
        """The part of the dataset that a row belongs to, where the data names one."""
        code = self._subsets[row]
        return None if code < 0 else self._subset_names[code]

    def question(self, row: int) -> Question:
        """A prompt as text, for a model that reads other tokens."""
        start, end = self._question_offsets[row : row + 2]
        return Question(self._template, **json.loads(self._questions[start:end].tobytes()))

    def lengths(self, field: str) -> np.ndarray:
        """Token counts of all rows, of all rejected answers together: [rows] int64."""
        return np.diff(self._offsets[field])

    def longest_answers(self) -> np.ndarray:
        """Tokens of the longest answer of each row: [rows] int64."""
        return np.maximum.reduceat(self._answers["length"], self._answer_offsets[:-1]).astype(np.int64)

    def _slice(self, field: str, row: int) -> np.ndarray:
        start, end = self._offsets[field][row : row + 2]
        return self._ids[field][start:end].astype(np.int64)


def tokenize(dataset: Path, model: Path, output: Path, workers: int = 1, chat_template: str | None = None) -> None:
    """Ids of each row's text, cut where the prompt ends; `report.json` shows and checks them.

    The text is what formats or a chat template made of the row: prompt, answer and EOS, tokenised together. Special
    tokens that a format or template writes are special tokens, those that data spells out are ordinary characters. A
    row that a chat template refuses, or whose prompt has no token, has no ids: it is counted, and no phase sees it.

    Args:
        dataset: resources/datasets/<id>/.
        model: Hugging Face folder with the tokenizer.
        output: results/tokens/<id>/; appears whole or not at all.
        workers: processes.
        chat_template: `tokenizer`: the tokenizer's own; a Jinja template; None: plain text.

    Raises:
        UserError: there is no fast tokenizer, its padding and EOS ids are missing or equal, a chat template cannot be
            used (see `rlhf.data.chat`), the ids are not those of the tokenizer's own file, or more rows have none than
            the dataset's `max_bad_share` allows.
    """
    tokenizer = _load_tokenizer(model)
    writer, encoder = writer_of(tokenizer, chat_template), Encoder(tokenizer)
    dtype = "uint16" if len(tokenizer) <= 2**16 else "int32"
    fingerprint = tokenizer_fingerprint(model)
    rows: dict[str, int] = {}
    statistics: dict[str, Any] = {}
    subsets: dict[str, list[str]] = {}
    reports: dict[str, TokensSplit] = {}
    of_rows = {split: load_cached(dataset, split) for split in SPLITS}
    encoded = {
        split: texts.map(
            partial(_encode, writer=writer, encoder=encoder),
            batched=True,
            batch_size=BATCH,
            num_proc=workers if workers > 1 else None,
            remove_columns=texts.column_names,
            features=ENCODED,
            keep_in_memory=True,
            desc=f"tokenising {split}",
        )
        for split, texts in of_rows.items()
    }
    bad = _refused(encoded, dataset)
    with atomic_directory(output) as folder:
        for split, ids in encoded.items():
            texts = of_rows[split]
            rows[split] = len(ids)
            statistics[split] = {field: _store(ids, field, folder / f"{split}.{field}", dtype) for field in FIELDS}
            _store_answers(ids, texts, folder / f"{split}.answers")
            _store_questions(ids["question"], folder / f"{split}.question")
            np.save(folder / f"{split}.equal.npy", np.array(ids["equal"], dtype=bool))
            np.save(folder / f"{split}.usable.npy", np.array([reason is None for reason in ids["refused"]]))
            np.save(folder / f"{split}.seen.npy", np.array(texts["seen"], dtype=bool))
            subsets[split] = _store_subsets(texts, folder / f"{split}.subset.npy")
            reports[split] = split_report(ids, bad[split])
        usable = np.flatnonzero(np.load(folder / "train.usable.npy"))
        check, shown = TextCheck(tokenizer, model, writer, encoder).report(
            of_rows["train"].select(usable), str(dataset)
        )
        report: TokensReport = {"schema_version": 2, "splits": reports, "check": check, "examples": shown}
        write_json(folder / REPORT, report)
        write_json(
            folder / "tokens.json",
            {
                "schema_version": 4,
                "dtype": dtype,
                "rows": rows,
                "subsets": subsets,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
                "tokenizer_fingerprint": fingerprint,
                "dataset_fingerprint": read_json(dataset / "report.json")["fingerprint"],
                "statistics": statistics,
                "chat_template": chat_template,
            },
        )
    logger.info("%s: %s", output, ", ".join(f"{count} {split} rows" for split, count in rows.items()))
    for split, found_texts in reports.items():
        log_report(found_texts, split)


def are_chats(tokens: Sequence[Path]) -> bool:
    """Whether chat templates wrote all texts of folders results/tokens/<id>/."""
    return bool(tokens) and all(read_json(folder / "tokens.json")["chat_template"] is not None for folder in tokens)


def tokenizer_fingerprint(model: Path) -> str:
    """Hash of the files that determine how a model folder's tokenizer works."""
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        if (model / name).exists():
            digest.update(f"{name}\0{sha256_file(model / name)}\n".encode())
    return "sha256:" + digest.hexdigest()


def _load_tokenizer(model: Path) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    except FOREIGN as error:
        raise UserError(f"{model}: no tokenizer can be loaded: {cause(error)}") from None
    if tokenizer.eos_token_id is None or tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        raise UserError(
            f"{model}: padding (id {tokenizer.pad_token_id}) and EOS (id {tokenizer.eos_token_id}) must be two tokens; "
            "set eos_token and pad_token of the model in the configuration"
        )
    return tokenizer


def _encode(batch: dict[str, list[Any]], writer: Writer, encoder: Encoder) -> dict[str, list[Any]]:
    """Ids of prompt and chosen, of all rejected answers in one, the length of each answer, and what reports count."""
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    written = [_written(row, writer) for row in rows]
    texts = [text for text in written if not isinstance(text, str)]
    encoded = iter(encoder.encode(texts))
    made = [
        _without_ids(row, text) if isinstance(text, str) else _with_ids(row, text, next(encoded), encoder)
        for row, text in zip(rows, written, strict=True)
    ]
    return {column: [row[column] for row in made] for column in ENCODED}


def _written(row: dict[str, Any], writer: Writer) -> Written | str:
    """The text of a row, or the reason why there is none."""
    try:
        return writer.write(row)
    except RefusedRow as error:
        return error.reason


def _with_ids(row: dict[str, Any], text: Written, ids: Encoded, encoder: Encoder) -> dict[str, Any]:
    if not ids.prompt:
        return _without_ids(row, NO_PROMPT)
    return {
        "prompt": ids.prompt,
        "chosen": ids.answers[0],
        "rejected": [token for answer in ids.answers[1:] for token in answer],
        "lengths": [len(answer) for answer in ids.answers],
        "question": question(row, text, ids.spanning),
        "row": row["row"],
        "spanning": bool(ids.spanning),
        "spelled": spelled_tokens(text, encoder),
        "unseparated": is_answered(row) and is_unseparated(text),
        "answered": is_answered(row),
        "equal": len(set(map(tuple, ids.answers))) < len(ids.answers),
        "refused": None,
    }


def _without_ids(row: dict[str, Any], reason: str) -> dict[str, Any]:
    nothing = {"prompt": [], "chosen": [], "rejected": [], "lengths": [0] * len(row["ranks"]), "question": ""}
    counted = {"spanning": False, "spelled": [], "unseparated": False, "equal": False, "answered": False}
    return {**nothing, **counted, "row": row["row"], "refused": reason}


def _refused(encoded: dict[str, datasets.Dataset], dataset: Path) -> dict[str, dict[str, Found]]:
    """For each split, the rows without ids by the reason.

    Raises:
        UserError: there are too many of them, with those that the dataset's cache has left out, or nothing else.
    """
    bad: dict[str, dict[str, Found]] = {}
    for split, ids in encoded.items():
        numbers: dict[str, list[int]] = {}
        for row, reason in zip(ids["row"], ids["refused"], strict=True):
            if reason is not None:
                numbers.setdefault(reason, []).append(row)
        bad[split] = {reason: found(rows) for reason, rows in numbers.items()}
    lost = sum(rows["count"] for reasons in bad.values() for rows in reasons.values())
    if not lost:
        return bad
    said = "; ".join(f"{split}: {named(reasons)}" for split, reasons in bad.items() if reasons)
    report = read_dataset_report(dataset)
    # With `assistant_turns: each` a row of the source can be several ones here.
    examples = sum(map(len, encoded.values())) + report["rows_unusable"]
    share = (lost + report["rows_unusable"]) / examples
    if share > report["max_bad_share"]:
        raise UserError(
            f"{dataset}: {share:.1%} of {examples} rows are unusable, max_bad_share of the dataset allows "
            f"{report['max_bad_share']:.1%}; no ids are there for {said}"
        )
    for split, ids in encoded.items():
        if all(reason is not None for reason in ids["refused"]):
            raise UserError(f"{dataset}: no usable {split} row is left: {said}")
    return bad


def _store(ids: datasets.Dataset, field: str, path: Path, dtype: str) -> dict[str, float]:
    """Write one field; returns the statistics of its lengths."""
    column = [np.asarray(row, dtype=dtype) for row in ids[field]]
    usable = np.array([reason is None for reason in ids["refused"]])
    lengths = np.array([len(row) for row in column], dtype=np.int64)
    offsets = np.concatenate([[0], lengths.cumsum()])
    np.concatenate([np.empty(0, dtype), *column]).tofile(path.with_name(path.name + ".bin"))
    np.save(path.with_name(path.name + ".offsets.npy"), offsets)
    return {
        "tokens": int(lengths.sum()),
        "mean": float(lengths[usable].mean()),
        "p95": float(np.percentile(lengths[usable], 95)),
        "max": int(lengths.max()),
    }


def _store_questions(questions: list[str], path: Path) -> None:
    """Write the text of each prompt, as `rlhf.data.questions` keeps it."""
    encoded = [text.encode() for text in questions]
    path.with_name(path.name + ".bin").write_bytes(b"".join(encoded))
    np.save(path.with_name(path.name + ".offsets.npy"), np.cumsum([0, *map(len, encoded)]))


def _store_answers(ids: datasets.Dataset, texts: datasets.Dataset, path: Path) -> None:
    """Write length, rank and rating of each answer of each row, and where the answers of a row begin."""
    counts = [len(lengths) for lengths in ids["lengths"]]
    table = np.empty(sum(counts), ANSWER)
    table["length"] = np.concatenate(ids["lengths"])
    table["rank"] = np.concatenate(texts["ranks"])
    table["rating"] = np.concatenate(
        [
            np.full(count, np.nan) if ratings is None else ratings
            for count, ratings in zip(counts, texts["ratings"], strict=True)
        ]
    )
    np.save(path.with_name(path.name + ".npy"), table)
    np.save(path.with_name(path.name + ".offsets.npy"), np.cumsum([0, *counts]))


def _store_subsets(texts: datasets.Dataset, path: Path) -> list[str]:
    """Write the number of each row's subset, -1 where it has none; returns their names."""
    names = sorted({name for name in texts["subset"] if name is not None})
    number = {None: -1} | {name: place for place, name in enumerate(names)}
    np.save(path, np.array([number[name] for name in texts["subset"]], dtype=np.int32))
    return names


def _map(path: Path, dtype: str, size: int) -> np.ndarray:
    # An empty file cannot be mapped.
    return np.memmap(path, dtype=dtype, mode="r", shape=(size,)) if size else np.empty(0, dtype=dtype)
