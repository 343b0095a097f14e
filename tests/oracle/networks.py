"""Language models and reward models in float64, loaded by Hugging Face alone and fed one sequence at a time.

No padding, no batch, no cache and no position ids: what a position is and which logits belong to which token follows
from the sequence. Nothing of `rlhf` is used here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.pytorch_utils import Conv1D

Adapters = dict[str, tuple[np.ndarray, np.ndarray]]  # module -> its first matrices A [r, inputs] and B [outputs, r]
FROZEN: dict[str, Any] = {"lora_dim": 0, "only_optimize_lora": False}


class Network:
    """The weights of one model as plain float64 tensors, those that train apart from those that do not.

    Args:
        model: as Hugging Face loaded it, in float64.
        optimization: settings of its training; unset: everything trains.
        adapters: first matrices of its LoRA adapters; what is drawn at random cannot be computed anew.
    """

    def __init__(self, model: PreTrainedModel, optimization: dict[str, Any] = FROZEN, adapters: Adapters | None = None):
        self._model = model.eval()
        self.weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        self.adapters = {
            name: (torch.from_numpy(a).double(), torch.from_numpy(b).double())
            for name, (a, b) in (adapters or {}).items()
        }
        rank = optimization["lora_dim"]
        self._scale = (optimization["lora_alpha"] or rank) / rank if rank else 0.0
        self.trained = self._trained(optimization["only_optimize_lora"])
        for weight in self.trained.values():
            weight.requires_grad_(True)

    def _trained(self, only_adapters: bool) -> dict[str, Tensor]:
        """All but the weights under an adapter; where only adapters train, they and a score head."""
        under = {f"{name}.weight" for name in self.adapters}
        main = {
            name: weight
            for name, weight in self.weights.items()
            if name not in under and (not only_adapters or name == "score.weight")
        }
        for name, (a, b) in self.adapters.items():
            main |= {f"{name}.lora_A": a, f"{name}.lora_B": b}
        return main

    def merged(self) -> dict[str, Tensor]:
        """The weights of the plain model: W + scale B A."""
        merged = dict(self.weights)
        for name, (a, b) in self.adapters.items():
            delta = self._scale * (b @ a)  # [outputs, inputs]
            turned = isinstance(self._model.get_submodule(name), Conv1D)  # GPT-2 keeps its matrices the other way round
            merged[f"{name}.weight"] = merged[f"{name}.weight"] + (delta.T if turned else delta)
        return merged

    def _output(self, ids: np.ndarray) -> Tensor:
        inputs = {"input_ids": torch.from_numpy(np.asarray(ids))[None], "use_cache": False}
        return functional_call(self._model, self.merged(), args=(), kwargs=inputs)

    def step_back(self) -> Self:
        """A copy of the present weights that no longer trains."""
        kept = copy.copy(self)
        kept._scale, kept.trained, kept.adapters = 0.0, {}, {}
        kept.weights = {name: weight.detach().clone() for name, weight in self.merged().items()}
        return kept


class LanguageModel(Network):
    """A policy or its reference."""

    def distributions(self, prompt: np.ndarray, answer: np.ndarray, temperature: float) -> Tensor:
        """Log softmax(logits / T) from which each token of the answer is drawn: [answer, vocabulary].

        The logits at a position belong to the next one: those of the last token of the prompt to the first one of the
        answer, and those of the last token of the answer to nothing.
        """
        logits = self._output(np.concatenate([prompt, answer])).logits[0]
        return (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)

    def logprobs(self, prompt: np.ndarray, answer: np.ndarray, temperature: float = 1.0) -> Tensor:
        """Log-probability of each token of the answer: [answer]."""
        return pick(self.distributions(prompt, answer, temperature), answer)


class Scorer(Network):
    """A reward model or a value model: (score of a position - mean) / deviation."""

    def __init__(
        self,
        model: PreTrainedModel,
        normalised: bool,
        optimization: dict[str, Any] = FROZEN,
        adapters: Adapters | None = None,
    ):
        super().__init__(model, optimization, adapters)
        self.mean, self.std = (model.config.reward_mean, model.config.reward_std) if normalised else (0.0, 1.0)

    def scores(self, ids: np.ndarray) -> Tensor:
        """Score at every position: [sequence]."""
        prefix = f"{self._model.base_model_prefix}."
        merged = self.merged()
        body = {name.removeprefix(prefix): weight for name, weight in merged.items() if name.startswith(prefix)}
        inputs = {"input_ids": torch.from_numpy(np.asarray(ids))[None], "use_cache": False}
        hidden = functional_call(self._model.base_model, body, args=(), kwargs=inputs).last_hidden_state[0]
        return ((hidden @ merged["score.weight"].T).squeeze(-1) - self.mean) / self.std

    def values(self, prompt: np.ndarray, answer: np.ndarray) -> Tensor:
        """Value of the state before each token of the answer, which the position to its left has seen: [answer]."""
        return self.scores(np.concatenate([prompt, answer]))[len(prompt) - 1 : -1]


def pick(table: Tensor, ids: np.ndarray) -> Tensor:
    """The entry of each row that belongs to its token."""
    return table[torch.arange(len(ids)), torch.from_numpy(np.asarray(ids))]


def language_model(folder: Path) -> PreTrainedModel:
    """A causal language model in float64."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


def score_model(folder: Path, head: np.ndarray | None = None) -> PreTrainedModel:
    """A trained reward model in float64; or the body of a language model with a new head, [1, width]."""
    if head is None:
        return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64, num_labels=1)
    with torch.no_grad():
        model.score.weight.copy_(torch.from_numpy(head))
    return model


def gradients(loss: Tensor, trained: Iterable[Tensor]) -> list[Tensor]:
    """Derivatives of a loss; 0 where it does not depend on a weight."""
    weights = list(trained)
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return [torch.zeros_like(weight) if one is None else one for weight, one in zip(weights, found, strict=True)]
