"""Losses and gradients that are not finite: stop and name the rows, or skip the step and count it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rlhf.records.attempts import NONFINITE, NonFinite, write_nonfinite
from rlhf.runtime.logging import get_logger
from rlhf.training.distributed import rank

logger = get_logger(__name__)


class FaultCounter:
    """Decides about each optimizer step whether training may go on behind it.

    With fp16, a step whose gradients overflow is part of dynamic loss scaling: it is always skipped, and counted.

    Args:
        folder: state folder of the stage, for `nonfinite.json`.
        dtype: `fp32`, `bf16` or `fp16`.
        on_nonfinite: `stop` or `skip`.
    """

    def __init__(self, folder: Path, dtype: str, on_nonfinite: str) -> None:
        self._folder = folder
        self._skips_overflow, self._skips = dtype == "fp16", on_nonfinite == "skip"

    def check(self, step: int, loss: float | None, norm: float | None, rows: Sequence[tuple[int, int]]) -> bool:
        """Decide about a step; the same on all ranks, which see the same loss and norm.

        Args:
            step: number of the step.
            loss: its mean loss, or None where the gradients alone are judged.
            norm: gradient norm, or None where the optimizer did not apply the step.
            rows: (number of the dataset, row in its cached split) of the batch.

        Returns:
            Whether the step was applied.

        Raises:
            FloatingPointError: the loss or the gradients are not finite, and the step must not or cannot be skipped.
        """
        lost = loss is not None and not math.isfinite(loss)
        if norm is not None and math.isfinite(norm) and not lost:
            return True
        if norm is None and (self._skips or self._skips_overflow):
            logger.warning("step %d is skipped: its gradients are not finite (loss %s)", step, loss)
            return False
        if rank() == 0:
            found: NonFinite = {"step": step, "loss": str(loss), "gradient_norm": str(norm), "rows": list(rows)}
            write_nonfinite(self._folder, found)
        what = "loss" if lost else "gradient"
        kept = "the step was not applied" if norm is None else "the step was applied: the weights are lost"
        shown = ", ".join(f"{dataset}:{row}" for dataset, row in rows[:8])
        raise FloatingPointError(
            f"the {what} of step {step} is not finite ({kept}); dataset:row of its batch: {shown}"
            f"{', ...' if len(rows) > 8 else ''} (all of them in {self._folder / NONFINITE})"
        )
