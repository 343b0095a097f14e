"""Memory of the evaluations, which hold one model at a time, from dry runs of sampling and scoring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig

from rlhf.config.specification import (
    ResolvedAnswers,
    ResolvedBaseline,
    ResolvedRewardEvaluation,
    ResolvedSftEvaluation,
)
from rlhf.config.stages import EvaluateExecution
from rlhf.memory.blueprint import Blueprint, EarlierAdapters
from rlhf.memory.dryrun import DryRun, Program
from rlhf.memory.parts import Part, Resident, dynamic, largest, load_part, static
from rlhf.memory.states import Engine
from rlhf.planning.ppo import DECODE, PREFILL, SCORE, generation_program, longest_samples, scoring_program
from rlhf.planning.rows import LongestRows
from rlhf.planning.supervised import Forecast, micro_batch_shape
from rlhf.planning.traces import Traces
from rlhf.training.inference import evaluation_config
from rlhf.training.reward import GroupPreference
from rlhf.training.sft import AnswerLikelihood

EvaluationSettings = ResolvedSftEvaluation | ResolvedRewardEvaluation | ResolvedAnswers


@dataclass(frozen=True)
class _Stage:
    settings: EvaluationSettings
    execution: EvaluateExecution
    traces: Traces

    @property
    def rows(self) -> int:
        """Sequences, or groups of answers, that a process computes at once."""
        size = self.execution.per_device_eval_batch_size
        if isinstance(self.settings, ResolvedAnswers):
            each = self.settings.best_of_n + 1 if isinstance(self.settings, ResolvedBaseline) else 1
            return micro_batch_shape(self.settings.prompts * each, self.execution, size)[0]
        return size

    def loaded(self, role: str, blueprint: Blueprint) -> Resident:
        """A model, whole or as this process's share of it."""
        execution, dtype, cuda = self.execution, self.settings.dtype, self.traces.cuda
        config = evaluation_config(execution, dtype)
        engine = Engine.from_deepspeed(config or {}, dtype, execution.world_size if config else 1, cuda)
        return Resident(role, engine, self.traces.counts(blueprint))

    def part(
        self, phase: str, model: Resident, blueprint: Blueprint, program: Program, places: tuple[str, ...] = (SCORE,)
    ) -> Part:
        """A pass by one model, at the largest of its instants."""
        name, role = f"{phase} {model.model}", model.model
        traced = self.traces.places(blueprint, name, program, 1.0, self.rows)
        parts = [dynamic(static(phase, name, [model], role), role, largest(traced, place)) for place in places]
        return max(parts, key=lambda part: part.total)


def forecast_evaluation(
    settings: EvaluationSettings,
    execution: EvaluateExecution,
    configs: dict[str, PreTrainedConfig],
    traces: Traces,
    earlier: dict[str, tuple[EarlierAdapters, ...]],
) -> Forecast:
    """Memory of one process of an evaluation: the load of each model, and the passes by it.

    Args:
        settings: of the stage.
        execution: how it runs.
        configs: of the models by their roles, in the order in which they are loaded.
        traces: dry runs of this stage.
        earlier: by the same roles: adapters merged into these models.
    """
    stage = _Stage(settings, execution, traces)
    parts: list[Part] = []
    models: list[Resident] = []
    for role, config in configs.items():
        head = "score" if role == "reward" else "lm"
        blueprint = Blueprint(config, head, settings.dtype, None, earlier=earlier.get(role, ()))
        model = stage.loaded(role, blueprint)
        load = load_part([model])
        load.name = f"load {role}"
        models.append(model)
        parts += [load, *_passes(stage, model, blueprint, compared="reference" in configs)]
    return Forecast(parts, models, accumulates=False, one_at_a_time=True)


def _passes(stage: _Stage, model: Resident, blueprint: Blueprint, compared: bool) -> list[Part]:
    settings, role, rows = stage.settings, model.model, stage.rows
    if not isinstance(settings, ResolvedAnswers):
        return [stage.part("score", model, blueprint, _rows_program(settings, rows))]
    lengths = settings.max_prompt_seq_len, settings.max_answer_seq_len
    parts = []
    if role == "policy":
        parts.append(stage.part("generate", model, blueprint, generation_program(rows, *lengths), (PREFILL, DECODE)))
    if role != "policy" or compared:
        # Of the policy, as of the reference, log-probabilities alone are asked.
        asked = "reward" if role == "reward" else "reference"
        program = scoring_program(longest_samples(rows, *lengths), asked, settings.temperature)
        parts.append(stage.part("score", model, blueprint, program))
    return parts


def _rows_program(settings: EvaluationSettings, rows: int) -> Program:
    """Loss or scores of unseen rows of the greatest length."""
    assert isinstance(settings, ResolvedSftEvaluation)
    unseen: Any = LongestRows.of_length(settings.max_seq_len)
    judged = isinstance(settings, ResolvedRewardEvaluation)

    def program(run: DryRun) -> None:
        run.model.eval()
        run.clock.start(SCORE)
        with torch.no_grad():
            if judged:
                GroupPreference().scores(run.model, unseen, np.arange(rows))
            else:
                AnswerLikelihood().loss(run.model, unseen, np.arange(rows))

    return program
