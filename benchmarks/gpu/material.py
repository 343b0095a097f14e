"""What is trained: models with random weights, a tokenizer and rows, made where they are needed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from benchmarks.gpu.cases import EOS, PAD, SCALES, UNKNOWN, Scale
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

SPECIAL = ("<s>", PAD, EOS, UNKNOWN)


def prepare(scale: str, rows: str, folders: dict[str, str]) -> None:
    """Write the rows, and each model's folder without its weights.

    Args:
        scale: name of the scale.
        rows: file of the dataset.
        folders: name of a model -> its folder.
    """
    size = SCALES[scale]
    with Path(rows).open("w", encoding="utf-8") as stream:
        for row in make_rows(size):
            stream.write(json.dumps(row) + "\n")
    tokenizer = make_tokenizer(size.vocabulary)
    for name, folder in folders.items():
        tokenizer.save_pretrained(folder)
        AutoConfig.for_model(**size.models[name], vocab_size=size.vocabulary).save_pretrained(folder)


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One token for each word `w4`, `w5`, ..., so that a text has as many tokens as words."""
    names = {name: number for number, name in enumerate(SPECIAL)}
    words = names | {f"w{number}": number for number in range(len(SPECIAL), vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def make_rows(scale: Scale) -> list[dict[str, str]]:
    """Random words; lengths between seven eighths of the greatest and the greatest, as in batches sorted by length."""
    generator = np.random.default_rng(0)

    def text(longest: int) -> str:
        length = generator.integers(longest - longest // 8, longest + 1)
        return " ".join(f"w{number}" for number in generator.integers(len(SPECIAL), scale.vocabulary, length))

    rows = []
    for _ in range(sum(scale.rows) + scale.unseen):
        answers = {name: f" {text(scale.answer - 1)}" for name in ("chosen", "rejected")}  # EOS comes with the ids
        rows.append({"prompt": text(scale.prompt), **answers})
    return rows


def weights(folders: list[str], rewards: dict[str, str], device: str) -> dict[str, int]:
    """Give models their weights, in bf16.

    Args:
        folders: language models, written by `prepare`.
        rewards: folder of a language model -> folder of a reward model of the same size, which is made.
        device: where random numbers are drawn: for a billion of them a CPU takes minutes.

    Returns:
        Parameters of each language model, by its folder.
    """
    counts = {}
    for folder in folders:
        config = AutoConfig.from_pretrained(folder)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder)
        counts[folder] = model.num_parameters()
    for folder, target in rewards.items():
        config = AutoConfig.from_pretrained(folder)
        config.num_labels, config.reward_mean, config.reward_std = 1, 0.0, 1.0
        with torch.device(device):
            reward = AutoModelForSequenceClassification.from_config(config, dtype=torch.bfloat16)
        reward.save_pretrained(target)
        PreTrainedTokenizerFast.from_pretrained(folder).save_pretrained(target)
    return counts
