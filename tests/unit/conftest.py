"""Tiny models of several families, made here because no test may need a hub."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from rlhf.data.dataset import FEATURES
from rlhf.data.tokens import ANSWER
from rlhf.files import write_json

VOCABULARY = 50
FAMILIES = {
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 64},
    "opt": {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 16,
        "do_layer_norm_before": False,
    },
    "llama": {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
}


SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
LOCAL = {"sliding_window": 6}  # shorter than the test's sequences
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# Name -> (model type, its configuration): everything that is trained through all three stages.
EVERY_FAMILY = {family: (family, sizes) for family, sizes in FAMILIES.items() if family != "opt"} | {
    "opt": ("opt", {**FAMILIES["opt"], "word_embed_proj_dim": 32, "do_layer_norm_before": True}),
    "opt-350m": ("opt", FAMILIES["opt"]),
    "gpt_neox": ("gpt_neox", SIZES),
    "bloom": ("bloom", {"n_layer": 2, "hidden_size": 32, "n_head": 4}),
    "llama-3": ("llama", GROUPED | {"rope_parameters": LLAMA_3_ROPE}),
    "mistral": ("mistral", GROUPED | LOCAL),
    "qwen2": ("qwen2", GROUPED | LOCAL | {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": ("qwen3", GROUPED),
    "gemma": ("gemma", GROUPED),
    "gemma-2": ("gemma2", GROUPED | LOCAL | {"query_pre_attn_scalar": 8}),
    "gemma-3": ("gemma3_text", GROUPED | LOCAL | {"query_pre_attn_scalar": 8}),
    "glm": ("glm", GROUPED),
    "glm-4": ("glm4", GROUPED),
}


def make_model(folder: Path, family: str, dropout: float = 0.0) -> Path:
    """A random model with a tokenizer of the words w3..w49, padding 0 and EOS 1."""
    keys = {
        "gpt2": ("attn_pdrop", "embd_pdrop", "resid_pdrop"),
        "opt": ("dropout", "attention_dropout"),
        "llama": ("attention_dropout",),
    }
    save_random_model(folder, family, FAMILIES[family] | dict.fromkeys(keys[family], dropout), VOCABULARY)
    save_word_tokenizer(folder)
    return folder


def save_word_tokenizer(folder: Path, shift: int = 0) -> None:
    """A tokenizer of the words w3..w49, padding 0, EOS 1 and the unknown word 2.

    The word w3 has the number 3, or with a `shift` one that much higher; after the last number follows 3 again.
    """
    count = VOCABULARY - 3
    names = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i + 3}": (i + shift) % count + 3 for i in range(count)}
    words = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)


def save_random_model(folder: Path, model_type: str, sizes: dict[str, Any], vocabulary: int) -> None:
    """Weights of a random causal language model with padding 0 and EOS 1."""
    config = AutoConfig.for_model(
        model_type, **sizes, vocab_size=vocabulary, pad_token_id=0, eos_token_id=1, bos_token_id=None
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # larger weights, so that a wrong position or mask is visible
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5.0)
    model.save_pretrained(folder)


def cached_dataset(folder: Path, **splits: Sequence[dict[str, Any]]) -> Path:
    """A dataset as the cache keeps it; a row names what it does not leave to the default.

    Args:
        folder: where to write.
        splits: rows of `train` and `eval`.
    """
    default = {
        "prompt": "p",
        "chosen": "c",
        "rejected": [],
        "subset": None,
        "ratings": None,
        "turns": None,
        "own": None,
        "seen": False,
    }
    tables = {}
    for name, rows in splits.items():
        whole = [default | {"row": number} | row for number, row in enumerate(rows)]
        whole = [{"group": f"row {row['row']}"} | row for row in whole]
        whole = [{"ranks": list(range(1 + len(row["rejected"])))} | row for row in whole]
        tables[name] = datasets.Dataset.from_list(whole, features=FEATURES)
    datasets.DatasetDict(tables).save_to_disk(folder / "arrow")
    facts = {"rows_read": sum(map(len, splits.values())), "rows_unusable": 0, "max_bad_share": 0.05}
    report = {"schema_version": 2, "fingerprint": "sha256:rows", **facts, "splits": {name: {} for name in splits}}
    write_json(folder / "report.json", report)
    return folder


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(params=sorted(FAMILIES))
def family_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tiny model of each family in turn."""
    return make_model(tmp_path / request.param, request.param)


@pytest.fixture
def gpt2_folder(tmp_path: Path) -> Path:
    """A tiny GPT-2: absolute positions, so that wrong position ids show."""
    return make_model(tmp_path / "gpt2", "gpt2")


class ListCorpus:
    """Rows in memory with the interface of `rlhf.data.corpus.Corpus`; all have two answers, unless `ranks` says more.

    Args:
        rows: number of prompts.
        seed: of the texts.
        ranks: of the answers of each row in turn; ratings are 10 - 2.5 x rank.
    """

    pad_token_id, eos_token_id = 0, 1

    def __init__(self, rows: int, seed: int = 0, ranks: Sequence[Sequence[int]] = ((0, 1),)) -> None:
        generator = np.random.default_rng(seed)

        def text(low: int, high: int) -> np.ndarray:
            return generator.integers(3, VOCABULARY, generator.integers(low, high))

        end = np.array([1])
        self._ranks = [ranks[row % len(ranks)] for row in range(rows)]
        self._rows = [
            {"prompt": text(3, 9), "answers": [np.append(text(1, 9), end) for _ in own]} for own in self._ranks
        ]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows_per_epoch(self) -> int:
        return len(self)

    def epoch_rows(self, seed: int, epoch: int) -> np.ndarray:
        return np.arange(len(self))

    def prompt(self, row: int) -> np.ndarray:
        return self._rows[row]["prompt"]

    def chosen(self, row: int) -> np.ndarray:
        return self._rows[row]["answers"][0]

    def answers(self, row: int) -> list[np.ndarray]:
        return self._rows[row]["answers"]

    def judgements(self, row: int) -> np.ndarray:
        judged = [
            (len(answer), rank, 10 - 2.5 * rank)
            for answer, rank in zip(self.answers(row), self._ranks[row], strict=True)
        ]
        return np.array(judged, dtype=ANSWER)

    def subset(self, row: int) -> str | None:
        return (None, "odd")[row % 2]

    def lengths(self, field: str) -> np.ndarray:
        return np.array([len(self.prompt(row) if field == "prompt" else self.chosen(row)) for row in range(len(self))])

    def longest_answers(self) -> np.ndarray:
        return np.array([max(map(len, row["answers"])) for row in self._rows])


@pytest.fixture
def list_corpus() -> ListCorpus:
    """Sixteen random pairs."""
    return ListCorpus(16)


@pytest.fixture
def group_corpus() -> ListCorpus:
    """Ten prompts with groups of two to five answers, some of them tied."""
    return ListCorpus(10, seed=1, ranks=((0, 1), (0, 1, 2, 3), (0, 0, 1), (0, 1, 1, 2, 2)))
