"""Data and models on disk from which a stage starts; texts are words `w7 w12`, of which each is one token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from tests.unit.conftest import VOCABULARY, save_word_tokenizer

PAD, EOS, UNKNOWN = 0, 1, 2
LORA_MODULES = {"gpt2": "attn", "llama": "self_attn"}
SIZES: dict[str, dict[str, Any]] = {
    # Untied, so that the first hidden unit can be a constant: see `random_weights`.
    "gpt2": {
        "n_layer": 2,
        "n_embd": 32,
        "n_head": 2,
        "n_positions": 64,
        "tie_word_embeddings": False,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
    },
    "llama": {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    },
}


@dataclass(frozen=True)
class Row:
    """One row of a dataset as ids; the answers are best first and without their EOS."""

    prompt: list[int]
    answers: list[list[int]]
    ratings: list[float]
    subset: str | None = None


def random_rows(
    count: int, seed: int, answers: Sequence[int] = (2,), longest: int = 9, equal: bool = False
) -> list[Row]:
    """Rows of random words.

    Args:
        count: number of rows.
        seed: all of them follow from it.
        answers: to each prompt, in turn; the last two of three or more are a tie.
        longest: words of a prompt or of an answer, at most.
        equal: whether all answers to a prompt have the same length.
    """
    generator = np.random.default_rng(seed)

    def text(length: int) -> list[int]:
        return generator.integers(3, VOCABULARY, length).tolist()

    def length(shortest: int) -> int:
        return int(generator.integers(shortest, longest + 1))

    rows = []
    for number in range(count):
        many = answers[number % len(answers)]
        ratings = sorted(generator.choice(np.arange(40), many, replace=False) / 8, reverse=True)
        if many > 2:
            ratings[-1] = ratings[-2]
        texts: list[list[int]] = []
        common = length(1)
        while len(texts) < many:
            new = text(common if equal else length(1))
            texts += [new] if new not in texts else []
        rows.append(Row(text(length(2)), texts, [float(one) for one in ratings], (None, "odd", "even")[number % 3]))
    return rows


def words(ids: Sequence[int]) -> str:
    """The text of ids."""
    return " ".join(f"w{id}" for id in ids)


def ids_of(text: str) -> np.ndarray:
    """The ids of a text."""
    return np.array([int(word[1:]) for word in text.split()], dtype=np.int64)


def with_eos(ids: Sequence[int]) -> np.ndarray:
    """An answer as the models see it."""
    return np.array([*ids, EOS])


def write_rows(rows: Sequence[Row], file: Path) -> None:
    """Rows of shape `ranked`, the worst answer first."""
    lines = []
    for row in rows:
        answers = {"answers": [f" {words(answer)}" for answer in row.answers[::-1]], "ratings": row.ratings[::-1]}
        lines.append({"prompt": words(row.prompt), **answers, "subset": row.subset})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def save_policy(folder: Path, family: str, seed: int, only_words: bool = False) -> Path:
    """A causal language model with random weights.

    Args:
        folder: to write.
        family: `gpt2` or `llama`.
        seed: of the weights.
        only_words: never sample padding or the unknown word, so that a text is as good as its ids; GPT-2 only.
    """
    model = AutoModelForCausalLM.from_config(_config(family), dtype=torch.float32)
    random_weights(model, seed)
    if family == "gpt2":
        with torch.no_grad():  # the constant unit is a bias of the logits
            model.lm_head.weight[:, 0] = 0.0
            model.lm_head.weight[EOS, 0] = 1.5
            if only_words:
                model.lm_head.weight[[PAD, UNKNOWN], 0] = -40.0
    else:
        with torch.no_grad():  # ends now and then
            model.lm_head.weight[EOS] *= 3.0
    return _save(model, folder)


def save_flat_policy(folder: Path, logits: Sequence[float]) -> Path:
    """A policy that gives every next token the same logits, whatever went before: an answer shows its noise alone."""
    model = AutoModelForCausalLM.from_config(_config("gpt2"), dtype=torch.float32)
    random_weights(model, seed=0)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, 0] = torch.tensor(logits)  # of the constant unit
    return _save(model, folder)


def save_reward(folder: Path, family: str, seed: int, shift: int = 0) -> Path:
    """A reward model with random weights, and scores that its normalisation brings to about mean 0 and deviation 2.

    With a `shift` its vocabulary has the words in another order.
    """
    config = _config(family)
    config.num_labels, config.reward_mean, config.reward_std = 1, 0.4, 0.6
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    random_weights(model, seed)
    return _save(model, folder, shift)


def save_changed(source: Path, folder: Path, seed: int) -> Path:
    """The model of a folder, its matrices inside the layers changed at random by half their size."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".h." in name and weight.ndim > 1:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return _save(model, folder)


def random_weights(model: PreTrainedModel, seed: int) -> None:
    """Larger weights than a new model has, so that a wrong position, mask or weight is visible; no bias is 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            weight.copy_(0.2 * drawn if weight.ndim > 1 else 0.1 * drawn + (name.endswith(".weight")))
            if name.endswith("ln_f.weight"):
                weight[0] = 0.0
            if name.endswith("ln_f.bias"):
                weight[0] = 1.0


def _config(family: str) -> Any:
    special = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None}
    return AutoConfig.for_model(family, **SIZES[family], vocab_size=VOCABULARY, **special)


def _save(model: PreTrainedModel, folder: Path, shift: int = 0) -> Path:
    model.save_pretrained(folder)
    save_word_tokenizer(folder, shift)
    return folder


def gold(prompt: str, answer: str, finished: bool) -> float:
    """A gold reward that depends on all it is given."""
    ids = ids_of(answer)
    return float(ids.sum() % 7) + 0.25 * len(ids) - 0.01 * float(ids_of(prompt).sum()) + 2.0 * finished
