"""Token ids of a dataset, made once per (dataset, tokenizer): flat memory-mapped files without padding."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf.data.chat import OF_TOKENIZER, Chat
from rlhf.data.dataset import load_cached
from rlhf.data.groups import answer_groups, grouped_ids
from rlhf.data.special import OrdinaryText
from rlhf.errors import UserError
from rlhf.files import read_json, sha256_file, write_json
from rlhf.runtime.folders import atomic_directory
from rlhf.runtime.logging import get_logger

logger = get_logger(__name__)

SPLITS = ("train", "eval")
FIELDS = ("prompt", "chosen", "rejected")
ANSWER = np.dtype([("length", np.int32), ("rank", np.int32), ("rating", np.float32)])  # no rating: NaN
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json")
BATCH = 1000


class TokenStore:
    """Read access to the ids of one split.

    Args:
        folder: results/tokens/<id>/.
        split: `train` or `eval`.
    """

    def __init__(self, folder: Path, split: str) -> None:
        facts = read_json(folder / "tokens.json")
        self.rows: int = facts["rows"][split]
        self.eos_token_id: int = facts["eos_token_id"]
        self.pad_token_id: int = facts["pad_token_id"]
        self.tokenizer_fingerprint: str = facts["tokenizer_fingerprint"]
        self.dataset_fingerprint: str = facts["dataset_fingerprint"]
        self.chat_template: str | None = facts.get("chat_template")  # None: the tokenizer's own, or none
        self._offsets = {field: np.load(folder / f"{split}.{field}.offsets.npy") for field in FIELDS}
        self._ids = {
            field: _map(folder / f"{split}.{field}.bin", facts["dtype"], int(self._offsets[field][-1]))
            for field in FIELDS
        }
        self._answers: np.ndarray = np.load(folder / f"{split}.answers.npy")
        self._answer_offsets = np.load(folder / f"{split}.answers.offsets.npy")
        self._subset_names: list[str] = facts["subsets"][split]
        self._subsets = np.load(folder / f"{split}.subset.npy")

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
    """Tokenise prompts and answers separately, so that the boundary is the same in every phase.

    Answers end with the EOS id. Special tokens that a text spells out are read as ordinary characters. Where neither
    prompt nor answer brings the space between them, the answer gets it. A chat template writes turns instead, with its
    own special tokens.

    Args:
        dataset: resources/datasets/<id>/.
        model: Hugging Face folder with the tokenizer.
        output: results/tokens/<id>/; appears whole or not at all.
        workers: processes.
        chat_template: `tokenizer`: the tokenizer's own; a Jinja template; None: plain text.

    Raises:
        UserError: there is no tokenizer, its padding and EOS ids are missing or equal, or a chat template cannot be
            used (see `rlhf.data.chat`).
    """
    tokenizer = _load_tokenizer(model)
    encode = Chat(tokenizer, chat_template).encode if chat_template else partial(_encode, tokenizer=tokenizer)
    dtype = "uint16" if len(tokenizer) <= 2**16 else "int32"
    fingerprint = tokenizer_fingerprint(model)
    rows: dict[str, int] = {}
    statistics: dict[str, Any] = {}
    subsets: dict[str, list[str]] = {}
    with atomic_directory(output) as folder:
        for split in SPLITS:
            texts = load_cached(dataset, split)
            ids = texts.map(
                encode,
                batched=True,
                batch_size=BATCH,
                num_proc=workers if workers > 1 else None,
                remove_columns=texts.column_names,
                features=datasets.Features(
                    {field: datasets.List(datasets.Value("int32")) for field in (*FIELDS, "lengths")}
                ),
                keep_in_memory=True,
                desc=f"tokenising {split}",
            )
            rows[split] = len(ids)
            statistics[split] = {field: _store(ids, field, folder / f"{split}.{field}", dtype) for field in FIELDS}
            _store_answers(ids, texts, folder / f"{split}.answers")
            subsets[split] = _store_subsets(texts, folder / f"{split}.subset.npy")
        write_json(
            folder / "tokens.json",
            {
                "schema_version": 2,
                "dtype": dtype,
                "rows": rows,
                "subsets": subsets,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
                "tokenizer_fingerprint": fingerprint,
                "dataset_fingerprint": read_json(dataset / "report.json")["fingerprint"],
                "statistics": statistics,
                "chat_template": None if chat_template == OF_TOKENIZER else chat_template,
            },
        )
    logger.info("%s: %s", output, ", ".join(f"{count} {split} rows" for split, count in rows.items()))


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
    except (OSError, ValueError) as error:
        raise UserError(f"{model}: no tokenizer can be loaded ({str(error).splitlines()[0]})") from None
    if tokenizer.eos_token_id is None or tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        raise UserError(
            f"{model}: padding (id {tokenizer.pad_token_id}) and EOS (id {tokenizer.eos_token_id}) must be two tokens; "
            "set eos_token and pad_token of the model in the configuration"
        )
    return tokenizer


def _encode(batch: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[list[int]]]:
    """Ids of prompt and chosen, of all rejected answers in one, and the length of each answer."""
    groups = answer_groups(batch)
    prompts = [prompt for prompt, group in zip(batch["prompt"], groups, strict=True) for _ in group]
    answers = encode_answers(prompts, [answer for group in groups for answer in group], tokenizer)
    return {"prompt": encode_prompts(batch["prompt"], tokenizer), **grouped_ids(groups, answers)}


def encode_prompts(prompts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids of prompts, with what the tokenizer puts before a text (BOS), never with an EOS after it."""
    encoded = _ordinary_ids(prompts, tokenizer, add_special_tokens=True)
    end = tokenizer.eos_token_id
    return [ids[:-1] if ids and ids[-1] == end else ids for ids in encoded]  # some tokenizers end every text


def encode_answers(prompts: list[str], answers: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids of answers as they follow their prompts, EOS included."""
    texts = [_joined(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    encoded = _ordinary_ids(texts, tokenizer, add_special_tokens=False)
    return [[*ids, tokenizer.eos_token_id] for ids in encoded]


def _ordinary_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool) -> list[list[int]]:
    """Ids of texts; special tokens in them are told from added ones by offsets, where the tokenizer has them."""
    encoded = tokenizer(
        texts,
        add_special_tokens=add_special_tokens,
        split_special_tokens=True,
        return_offsets_mapping=tokenizer.is_fast,
    )
    every: list[list[int]] = encoded["input_ids"]
    if not tokenizer.is_fast:
        return every
    ordinary = OrdinaryText(tokenizer)
    rows = zip(texts, every, encoded["offset_mapping"], strict=True)
    return [ordinary.restore(text, ids, offsets, [(0, len(text))]) for text, ids, offsets in rows]


def _joined(prompt: str, answer: str) -> str:
    """The answer as it follows its prompt, with the space that separates them."""
    return answer if prompt[-1:].isspace() or answer[:1].isspace() else f" {answer}"


def _store(ids: datasets.Dataset, field: str, path: Path, dtype: str) -> dict[str, float]:
    """Write one field; returns the statistics of its lengths."""
    column = [np.asarray(row, dtype=dtype) for row in ids[field]]
    lengths = np.array([len(row) for row in column], dtype=np.int64)
    offsets = np.concatenate([[0], lengths.cumsum()])
    np.concatenate([np.empty(0, dtype), *column]).tofile(path.with_name(path.name + ".bin"))
    np.save(path.with_name(path.name + ".offsets.npy"), offsets)
    return {
        "tokens": int(lengths.sum()),
        "mean": float(lengths.mean()),
        "p95": float(np.percentile(lengths, 95)),
        "max": int(lengths.max()),
    }


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
