"""What is delivered is what was trained: a written folder is loaded anew, as the next phase loads it, and compared.

Both models answer a few fixed sequences. Weights are loaded in the stage's precision, but computed with in fp32, one
module after the other. So the rounding of activations, which depends on kernels and devices, hides nothing. Beside the
trained model, a device needs room for one module only; the folder's model is in the host memory of one process.

In half precision the folder is loaded as the very numbers that were trained, adapters apart, so that both models
compute the same: the difference is 0 in every family, and the limits leave room for a device that chooses other
kernels. What merging adapters into weights of half precision loses is above them. In fp32, adapters are merged, and
their sums with the weights are rounded: both models are the same to the rounding of fp32.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlhf.errors import UserError
from rlhf.models.loading import load_policy, load_reward
from rlhf.models.scores import TokenScorer, token_logprobs
from rlhf.runtime.logging import get_logger
from rlhf.training.distributed import device
from rlhf.training.weights import computing_in_fp32

logger = get_logger(__name__)

SEQUENCES = 8
# Nats; for a KL of 1e-6 per token they differ by 1e-3 and more.
LOGPROB_LIMITS = {"fp32": 1e-3, "bf16": 1e-5, "fp16": 1e-5}
# Standard deviations of the scores of unseen answers; these may be small beside the scores.
SCORE_LIMITS = {"fp32": 1e-2, "bf16": 1e-4, "fp16": 1e-4}

Question = tuple[np.ndarray, int]  # ids, [length] int64, and how many of them are context only: 1 to length - 1


@dataclass(frozen=True)
class Delivery:
    """Fixed sequences, what a model says of them, and how a folder becomes a model again.

    Args:
        trained: the module that was trained, as its engine calls it.
        load: folder -> the same module, loaded by one process, whole, in host memory.
        answer: (module, ids [1, length], context) -> numbers, [answers] float32.
        quantity: what the numbers are.
        limit: largest difference (root mean square) of two models that count as the same.
        questions: the sequences.
    """

    trained: nn.Module
    load: Callable[[Path], nn.Module]
    answer: Callable[[nn.Module, Tensor, int], Tensor]
    quantity: str
    limit: float
    questions: list[Question]

    def expected(self) -> Tensor:
        """What the model in memory says with its present weights; called by all processes: [answers] float32."""
        return self._ask(self.trained)

    def require_same(self, folder: Path, expected: Tensor) -> dict[str, Any]:
        """Load a folder and compare; called by the process that wrote it.

        Args:
            folder: a model folder, whole.
            expected: what `expected` gave before it was written.

        Returns:
            What the manifest says of it.

        Raises:
            UserError: the folder's model says something else.
        """
        found = self._ask(self.load(folder))
        difference = float((found.double() - expected.double()).square().mean().sqrt())
        trained, delivered = float(expected.double().mean()), float(found.double().mean())
        if not difference <= self.limit:  # not a number is no agreement
            raise UserError(
                f"{folder} is not the trained model: loaded anew, its {self.quantity} differs by {difference:.2e} "
                f"(root mean square of {len(expected)}; mean {delivered:.6g}, of the trained model {trained:.6g}), "
                f"allowed is {self.limit:.0e}. The stage fails, so that nothing goes on from it; its checkpoints are "
                "kept. If the disk is sound, this is a defect of the workflow: please report the model's family and "
                "the stage's settings"
            )
        logger.info(
            "%s loaded anew: its %s differs by %.1e from the trained model's", folder, self.quantity, difference
        )
        return {
            "quantity": self.quantity,
            "sequences": len(self.questions),
            "trained": trained,
            "delivered": delivered,
            "difference": difference,
            "limit": self.limit,
        }

    def _ask(self, model: nn.Module) -> Tensor:
        training = model.training
        model.eval()
        try:
            with torch.no_grad(), computing_in_fp32(model, device()):
                asked = [(torch.from_numpy(ids).to(device())[None], context) for ids, context in self.questions]
                return torch.cat([self.answer(model, *question).float().cpu() for question in asked])
        finally:
            model.train(training)


def policy_delivery(trained: nn.Module, dtype: str, questions: Iterable[Question]) -> Delivery:
    """Of a policy in a stage's precision: the log-probabilities of the tokens after each context, in nats."""

    def answer(model: nn.Module, ids: Tensor, context: int) -> Tensor:
        logits = model(input_ids=ids, use_cache=False).logits
        return token_logprobs(logits[0, context - 1 : -1], ids[0, context:])

    first, limit = list(itertools.islice(questions, SEQUENCES)), LOGPROB_LIMITS[dtype]
    return Delivery(trained, lambda folder: load_policy(folder, dtype, 0.0), answer, "log-probability", limit, first)


def reward_delivery(trained: TokenScorer, dtype: str, questions: Iterable[Question]) -> Delivery:
    """Of a reward model in a stage's precision: the normalised score at the end of each sequence."""

    def load(folder: Path) -> nn.Module:
        return TokenScorer.normalised(load_reward(folder, dtype, 0.0))

    def answer(model: nn.Module, ids: Tensor, _context: int) -> Tensor:
        scores: Tensor = model(ids, torch.ones_like(ids))
        return scores[0, -1:]

    first = list(itertools.islice(questions, SEQUENCES))
    return Delivery(trained, load, answer, "score", SCORE_LIMITS[dtype], first)
