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
from rlhf.data.special import OrdinaryText
from rlhf.errors import UserError
from rlhf.runtime.files import atomic_directory, read_json, sha256_file, write_json
from rlhf.runtime.logging import get_logger

logger = get_logger(__name__)

SPLITS = ("train", "eval")
FIELDS = ("prompt", "chosen", "rejected")
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
        self.chat_template: str | None = facts.get("chat_template")  # None: the tokenizer's own, or none
        self._offsets = {field: np.load(folder / f"{split}.{field}.offsets.npy") for field in FIELDS}
        self._ids = {
            field: _map(folder / f"{split}.{field}.bin", facts["dtype"], int(self._offsets[field][-1]))
            for field in FIELDS
        }

    def prompt(self, row: int) -> np.ndarray:
        """Ids of a prompt: [length] int64."""
        return self._slice("prompt", row)

    def chosen(self, row: int) -> np.ndarray:
        """Ids of the chosen answer, EOS included: [length] int64."""
        return self._slice("chosen", row)

    def rejected(self, row: int) -> np.ndarray:
        """Ids of the rejected answer, EOS included: [length] int64; empty where there is none."""
        return self._slice("rejected", row)

    def lengths(self, field: str) -> np.ndarray:
        """Token counts of all rows: [rows] int64."""
        return np.diff(self._offsets[field])

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
    with atomic_directory(output) as folder:
        for split in SPLITS:
            table = load_cached(dataset, split)
            ids = table.map(
                encode,
                batched=True,
                batch_size=BATCH,
                num_proc=workers if workers > 1 else None,
                remove_columns=table.column_names,
                features=datasets.Features({field: datasets.List(datasets.Value("int32")) for field in FIELDS}),
                keep_in_memory=True,
                desc=f"tokenising {split}",
            )
            rows[split] = len(ids)
            statistics[split] = {field: _store(ids, field, folder / f"{split}.{field}", dtype) for field in FIELDS}
        write_json(
            folder / "tokens.json",
            {
                "schema_version": 1,
                "dtype": dtype,
                "rows": rows,
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
    return {
        "prompt": encode_prompts(batch["prompt"], tokenizer),
        "chosen": encode_answers(batch["prompt"], batch["chosen"], tokenizer),
        "rejected": encode_answers(batch["prompt"], batch["rejected"], tokenizer),
    }


def encode_prompts(prompts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids of prompts, with what the tokenizer puts before a text (BOS), never with an EOS after it."""
    encoded = _ordinary_ids(prompts, tokenizer, add_special_tokens=True)
    end = tokenizer.eos_token_id
    return [ids[:-1] if ids and ids[-1] == end else ids for ids in encoded]  # some tokenizers end every text


def encode_answers(
    prompts: list[str], answers: list[str | None], tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    """Ids of answers as they follow their prompts, EOS included; empty where there is no answer."""
    texts = [_joined(prompt, answer or "") for prompt, answer in zip(prompts, answers, strict=True)]
    encoded = _ordinary_ids(texts, tokenizer, add_special_tokens=False)
    return [
        [] if answer is None else [*ids, tokenizer.eos_token_id] for ids, answer in zip(encoded, answers, strict=True)
    ]


def _ordinary_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool) -> list[list[int]]:
    """Ids of texts; special tokens in them are told from added ones by offsets, where the tokenizer has them."""
    encoded = tokenizer(
        texts,
        add_special_tokens=add_special_tokens,
        split_special_tokens=True,
        return_offsets_mapping=tokenizer.is_fast,
    )
    if not tokenizer.is_fast:
        return encoded["input_ids"]
    ordinary = OrdinaryText(tokenizer)
    rows = zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
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


def _map(path: Path, dtype: str, size: int) -> np.ndarray:
    # An empty file cannot be mapped.
    return np.memmap(path, dtype=dtype, mode="r", shape=(size,)) if size else np.empty(0, dtype=dtype)
