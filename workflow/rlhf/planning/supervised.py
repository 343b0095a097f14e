"""Memory of the SFT and the reward stage, from a dry run of their losses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig

from rlhf.config.stages import (
    AnyTrainingExecution,
    Execution,
    Optimization,
    RewardSettings,
    SftSettings,
    SupervisedExecution,
)
from rlhf.memory.blueprint import Blueprint, EarlierAdapters
from rlhf.memory.dryrun import DryRun, Program
from rlhf.memory.parts import Part, Resident, dynamic, in_fp32, largest, load_part, save_part, static, training_parts
from rlhf.memory.states import Engine
from rlhf.planning.rows import LongestRows
from rlhf.planning.traces import Traces
from rlhf.training.engine import EngineSettings, deepspeed_config
from rlhf.training.reward import GroupPreference
from rlhf.training.sft import AnswerLikelihood

FIRST, LATER, EVALUATION = "first micro-batch", "later micro-batch", "evaluation"


@dataclass(frozen=True)
class Forecast:
    """What a stage will need: its parts, the models in them, and whether a step has several micro-batches.

    Its models are in memory together, unless they are loaded `one_at_a_time`.
    """

    parts: list[Part]
    models: list[Resident]
    accumulates: bool
    one_at_a_time: bool = False

    @property
    def largest(self) -> Part:
        """The part that needs most."""
        return max(self.parts, key=lambda part: part.total)


def forecast_supervised(
    settings: SftSettings | RewardSettings,
    execution: SupervisedExecution,
    config: PreTrainedConfig,
    traces: Traces,
    earlier: tuple[EarlierAdapters, ...] = (),
) -> Forecast:
    """Memory of one process of an SFT or reward stage.

    Args:
        settings: of the stage.
        execution: how it runs.
        config: of the model it starts from.
        traces: dry runs of this stage.
        earlier: adapters merged into the model it starts from.
    """
    kind, role, head = ("sft", "policy", "lm") if isinstance(settings, SftSettings) else ("reward", "reward", "score")
    checkpointing = execution.gradient_checkpointing
    blueprint = Blueprint(config, head, settings.dtype, settings, checkpointing, kind, earlier)
    engine = make_engine(settings, execution, settings.dtype, execution.zero_stage, traces.cuda)
    micro, steps = micro_batch_shape(settings.global_batch_size, execution, execution.per_device_train_batch_size)
    evaluated = execution.per_device_eval_batch_size
    program = supervised_program(settings, micro, steps > 1, evaluated)
    places = traces.places(blueprint, kind, program, engine.gradient_share, micro, steps > 1, evaluated)
    models = [resident(role, blueprint, engine, traces)]
    seen = largest(places, EVALUATION)
    evaluation = dynamic(static("train", "evaluation", models, role), role, seen)
    parts = [load_part(models), *training_parts(models, role, places, ("backward", "step"), (FIRST, LATER)), evaluation]
    if kind == "reward":
        parts.append(replace(evaluation, phase="normalise", name="normalise", bytes=dict(evaluation.bytes)))
    saving = save_part(models, role, in_fp32(seen, evaluated, engine.element))
    return Forecast([*parts, saving], models, steps > 1)


def supervised_program(
    settings: SftSettings | RewardSettings, micro: int, accumulates: bool, evaluated: int
) -> Program:
    """One or two micro-batches of training and one of evaluation, by the loss of the stage."""
    objective: Any
    if isinstance(settings, SftSettings):
        objective = AnswerLikelihood(settings.loss_on)
    else:
        objective = GroupPreference(settings.loss)
    rows = LongestRows.of_length(settings.max_seq_len)

    def program(run: DryRun) -> None:
        for name in (FIRST, LATER) if accumulates else (FIRST,):
            run.clock.start(name)
            loss, _ = objective.loss(run.model, rows, np.arange(micro))
            loss.backward()
            del loss
        run.clock.start("step")
        run.clear_gradients()
        run.model.eval()
        run.clock.start(EVALUATION)
        with torch.no_grad():
            objective.loss(run.model, rows, np.arange(evaluated))

    return program


def make_engine(
    optimization: Optimization, execution: AnyTrainingExecution, dtype: str, zero_stage: int, cuda: bool
) -> Engine:
    """The engine that a stage's settings make."""
    settings = EngineSettings(zero_stage, dtype, 1, execution.offload, False, execution.deepspeed_config)
    return Engine.from_deepspeed(deepspeed_config(optimization, settings), dtype, execution.world_size, cuda)


def micro_batch_shape(global_batch: int, execution: Execution, size: int) -> tuple[int, int]:
    """(rows of a micro-batch, micro-batches per step) of one process."""
    own = -(-global_batch // execution.world_size)
    size = min(size, own)
    return size, -(-own // size)


def resident(role: str, blueprint: Blueprint, engine: Engine, traces: Traces, on_device: bool = True) -> Resident:
    """A model of a stage, with its engine and the number of its parameters."""
    return Resident(role, engine, traces.counts(blueprint), on_device)
