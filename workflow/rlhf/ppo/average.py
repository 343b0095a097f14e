"""An exponential moving average of the policy's weights."""

from __future__ import annotations

import torch
from torch import nn

from rlhf.training.weights import WeightCopy, local


class WeightAverage(WeightCopy):
    """average <- decay average + (1 - decay) weights, after each optimizer step, from the first weights on.

    Kept in float32, for the trained parameters only.

    Args:
        model: the policy, after its engine was made.
        decay: 0.992 in InstructGPT (Ouyang et al. 2022) and DeepSpeed-Chat.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, torch.float32)
        self._decay = decay

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights."""
        for average, parameter in zip(self.copy, self.parameters, strict=True):
            average.lerp_(local(parameter).float(), 1 - self._decay)
