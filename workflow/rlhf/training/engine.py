"""A DeepSpeed engine around one trained model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn
from transformers import get_scheduler

from rlhf.config.expand import deep_merge
from rlhf.config.stages import Optimization
from rlhf.errors import UserError
from rlhf.records.manifest import EngineFacts
from rlhf.runtime.logging import get_logger
from rlhf.training.accumulation import add_up_on_host, sums_on_host, with_fp32_sums
from rlhf.training.distributed import require_dtype, world_size
from rlhf.training.recomputation import Recomputation
from rlhf.training.weights import is_matrix

logger = get_logger(__name__)

CHECKPOINT_TAG = "engine"

# Computes the loss of a micro-batch: a scalar that is already divided by the count of the whole global step.
LazyLoss = Callable[[], Tensor]


@dataclass(frozen=True)
class EngineSettings:
    """How one engine runs: nothing here changes the mathematics beyond rounding."""

    zero_stage: int
    dtype: str
    micro_batch_size: int
    offload: bool
    gradient_checkpointing: bool
    overrides: dict[str, Any]

    @property
    def engine_stage(self) -> int:
        """ZeRO stage that DeepSpeed is told: in half precision at least 2 (deepspeed 0.19.8).

        Its optimizers for half precision without ZeRO start Adam with a step on zero gradients, and divide fp16
        gradients by a loss scale that the loss was not multiplied with. Under ZeRO 1 sums of gradients are exact only
        until they are reduced (`rlhf.training.accumulation`).
        """
        return self.zero_stage if self.dtype == "fp32" else max(2, self.zero_stage)


class Trainer:
    """One model, its optimizer and its schedule behind a DeepSpeed engine.

    Losses are sums over a micro-batch, divided by the count of the whole global step, so that the result does not
    depend on how the step is cut.

    Args:
        model: module to train; parameters that do not require gradients stay as they are.
        optimization: `Optimization` settings.
        settings: how the engine runs.
        total_steps: optimizer steps of the whole run, for the schedule.

    Raises:
        UserError: the device cannot compute in this precision, or the family knows no gradient checkpointing.
    """

    def __init__(
        self, model: nn.Module, optimization: Optimization, settings: EngineSettings, total_steps: int
    ) -> None:
        require_dtype(settings.dtype)
        if settings.offload and not settings.zero_stage:
            logger.warning("execution.offload has no effect on a model with ZeRO 0: its optimizer stays on the device")
        self._recomputation = Recomputation(model) if settings.gradient_checkpointing else None
        optimizer = torch.optim.AdamW(
            parameter_groups(model, optimization),
            betas=(optimization.adam_beta1, optimization.adam_beta2),
            eps=optimization.adam_epsilon,
        )
        if 0 < total_steps <= optimization.num_warmup_steps:
            logger.warning(
                "num_warmup_steps: %d of %d steps; the learning rate never reaches %g",
                optimization.num_warmup_steps,
                total_steps,
                optimization.learning_rate,
            )
        scheduler = get_scheduler(optimization.lr_scheduler_type, optimizer, optimization.num_warmup_steps, total_steps)
        self._measures_norm = settings.engine_stage == 0
        config = deepspeed_config(optimization, settings)
        self.engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            lr_scheduler=scheduler,
            model_parameters=[parameter for parameter in model.parameters() if parameter.requires_grad],
            config=config,
        )
        if settings.dtype != "fp32" and sums_on_host(config):
            add_up_on_host(self.engine.optimizer)
        self.engine.train()  # a loaded model is in evaluation mode: no dropout, no gradient checkpointing

    @property
    def module(self) -> nn.Module:
        """The model as it was given."""
        module: nn.Module = self.engine.module
        return module

    def step(self, losses: Sequence[LazyLoss], before_update: Callable[[], None] = lambda: None) -> float | None:
        """One optimizer step.

        Args:
            losses: one for each micro-batch, as many on all processes. They are computed one after the other, each
                followed by its backward pass, so that only one micro-batch's activations are in memory.
            before_update: called when all gradients are there and the weights have not moved; may hold a collective.
                What it raises leaves the weights as they were.

        Returns:
            Gradient norm before clipping, or None where it is not finite and the step was therefore not applied. In
            fp32 with ZeRO, DeepSpeed applies such a step all the same: the norm is then not finite.

        Raises:
            UserError: gradient checkpointing has no effect (seen in the first step).
        """
        for number, compute in enumerate(losses, start=1):
            loss = compute()
            self.engine.set_gradient_accumulation_boundary(number == len(losses))
            with self._first_backward():
                # DeepSpeed averages gradients over processes; the loss is divided by the global count already.
                self.engine.backward(loss * world_size(), scale_wrt_gas=False)
        before_update()
        norm = self._own_norm() if self._measures_norm else None
        if norm is not None and not norm.isfinite():
            self.engine.zero_grad()
            return None
        self.engine.step()
        if not self.engine.was_step_applied():
            return None
        return float(norm if norm is not None else self.engine.get_global_grad_norm())

    def facts(self) -> EngineFacts:
        """What the manifest says of this training: whether gradient checkpointing worked, where it was asked for."""
        if self._recomputation is None or self._recomputation.effective is None:
            return {}
        return {"gradient_checkpointing_effective": self._recomputation.effective}

    def save(self, folder: Path) -> None:
        """Write trained weights, optimizer, schedule and loss scale; frozen weights are loaded from where they came."""
        self.engine.save_checkpoint(str(folder), tag=CHECKPOINT_TAG, save_latest=False, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        """Take the state that `save` wrote, into an engine made like the one that wrote it.

        Raises:
            UserError: DeepSpeed finds no state there.
        """
        # Not strict, because frozen weights are left out; that nothing else is missing is what the hashes ensure.
        path, _ = self.engine.load_checkpoint(str(folder), tag=CHECKPOINT_TAG, load_module_strict=False)
        if path is None:
            raise UserError(f"{folder}: DeepSpeed cannot load this checkpoint; remove it to start anew")

    def learning_rate(self) -> float:
        """Rate of the main parameter groups for the next step."""
        return float(self.engine.lr_scheduler.get_last_lr()[0])

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Evaluation mode without gradients; training mode is restored."""
        self.engine.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.engine.train()

    @contextmanager
    def _first_backward(self) -> Iterator[None]:
        """The first backward pass of the run shows whether gradient checkpointing works."""
        check = self._recomputation
        if check is None or check.effective is not None:
            yield
            return
        check.begin_backward()
        yield
        check.end_backward()

    def _own_norm(self) -> Tensor:
        # In fp32 without ZeRO DeepSpeed clips but keeps no norm.
        return nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])


def deepspeed_config(optimization: Optimization, settings: EngineSettings) -> dict[str, Any]:
    """The DeepSpeed configuration of an engine, with the user's `deepspeed_config` merged over it."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        # Accumulation is driven step by step, because the last batch of an epoch may be smaller.
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimization.gradient_clipping,
        "steps_per_print": 1_000_000_000,
        "zero_optimization": {"stage": settings.engine_stage},
        # A client optimizer keeps DeepSpeed from compiling one of its own, and is what offload then needs.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if settings.dtype != "fp32":
        config[settings.dtype] = {"enabled": True}
    if settings.offload and settings.zero_stage:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
        if settings.zero_stage == 3:
            config["zero_optimization"]["offload_param"] = {"device": "cpu"}
    config = deep_merge(config, settings.overrides)
    config["zero_optimization"]["stage"] = settings.engine_stage  # the user's own, where given, is `zero_stage`
    return config if settings.dtype == "fp32" else with_fp32_sums(config)


def partitioned_loading(optimization: Optimization, settings: EngineSettings) -> dict[str, Any] | None:
    """What loads a model in the partitions of its engine: a DeepSpeed configuration; None without ZeRO-3."""
    config = deepspeed_config(optimization, settings)
    return config if config["zero_optimization"]["stage"] == 3 else None


def parameter_groups(model: nn.Module, optimization: Optimization) -> list[dict[str, Any]]:
    """Trainable parameters by rate and decay: main with decay, main without (biases, norms), LoRA.

    Returns:
        Non-empty groups only; the first holds main parameters wherever there are any.
    """
    decayed, plain, lora = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if "lora_" in name:
            lora.append(parameter)
        elif is_matrix(parameter):
            decayed.append(parameter)
        else:
            plain.append(parameter)
    rate, decay = optimization.learning_rate, optimization.weight_decay
    groups = [
        {"params": decayed, "lr": rate, "weight_decay": decay},
        {"params": plain, "lr": rate, "weight_decay": 0.0},
        {"params": lora, "lr": optimization.lora_learning_rate, "weight_decay": decay},
    ]
    return [group for group in groups if group["params"]]
