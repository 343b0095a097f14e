"""AdamW (Loshchilov and Hutter 2019) with warm-up, schedule and clipping, written out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tests.oracle.networks import Network, gradients


def schedule(kind: str, warmup: int, total: int, step: int) -> float:
    """Factor of the peak learning rate in a step, counted from 0; warm-up starts at 0, decay ends at 0."""
    if kind == "constant":
        return 1.0
    if step < warmup:
        return step / warmup
    if kind == "constant_with_warmup":
        return 1.0
    rest = (step - warmup) / max(1, total - warmup)
    if kind == "linear":
        return max(0.0, 1.0 - rest)
    if kind == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * rest))
    raise ValueError(f"a schedule that is not recomputed here: {kind}")


class AdamW:
    """Trains a network.

    Args:
        network: what trains.
        optimization: `learning_rate`, `adam_beta1` and so on, by their names in the configuration.
        total_steps: steps of the schedule.
    """

    def __init__(self, network: Network, optimization: dict[str, Any], total_steps: int) -> None:
        self._network, self._settings, self._total = network, optimization, total_steps
        self._first = {name: torch.zeros_like(weight) for name, weight in network.trained.items()}
        self._second = {name: torch.zeros_like(weight) for name, weight in network.trained.items()}
        self._steps = 0

    def learning_rate(self, name: str | None = None) -> float:
        """Rate of a weight in the next step; of the main ones where no name is given and there are any."""
        settings = self._settings
        adapter = all("lora_" in key for key in self._network.trained) if name is None else "lora_" in name
        peak = settings["lora_learning_rate" if adapter else "learning_rate"]
        return peak * schedule(settings["lr_scheduler_type"], settings["num_warmup_steps"], self._total, self._steps)

    def step(self, loss: Tensor) -> float:
        """One step down the gradient of a loss; returns the gradient's norm before clipping."""
        settings, weights = self._settings, self._network.trained
        slopes = dict(zip(weights, gradients(loss, weights.values()), strict=True))
        norm = math.sqrt(sum(float((slope**2).sum()) for slope in slopes.values()))
        limit = settings["gradient_clipping"]
        shrink = limit / norm if 0 < limit < norm else 1.0
        beta1, beta2 = settings["adam_beta1"], settings["adam_beta2"]
        rates = {name: self.learning_rate(name) for name in weights}
        self._steps += 1
        with torch.no_grad():
            for name, weight in weights.items():
                slope = slopes[name] * shrink
                self._first[name] = beta1 * self._first[name] + (1 - beta1) * slope
                self._second[name] = beta2 * self._second[name] + (1 - beta2) * slope**2
                mean = self._first[name] / (1 - beta1**self._steps)
                deviation = (self._second[name] / (1 - beta2**self._steps)).sqrt()
                decay = 0.0 if is_bias_or_norm(name) else settings["weight_decay"]
                change = mean / (deviation + settings["adam_epsilon"]) + decay * weight
                weight -= rates[name] * change
        return norm


def is_bias_or_norm(name: str) -> bool:
    """Whether a weight is not decayed, by its name in the families used here."""
    return name.endswith(".bias") or "norm" in name or ".ln_" in name
