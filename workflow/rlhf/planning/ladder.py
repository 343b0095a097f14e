"""Named steps that make a stage need less memory without changing its result, cheapest first.

Each step changes `execution` only. What it saves is told by the function that predicts, so advice and prediction cannot
disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rlhf.config.expand import deep_merge
from rlhf.config.stages import AnyTrainingExecution, EvaluateExecution, JobExecution, PpoExecution, SupervisedExecution
from rlhf.files import JsonObject
from rlhf.memory.states import BUCKET
from rlhf.records.plan import NextStep


@dataclass(frozen=True)
class Step:
    """A change of how a stage runs.

    Args:
        name: what is done, for the report.
        cost: what it costs.
        change: keys of `execution` and their new values.
    """

    name: str
    cost: str
    change: JsonObject

    @property
    def moves_states(self) -> bool:
        """Whether the step moves weights or states elsewhere; the other steps compute less at a time."""
        return any(key.endswith("zero_stage") or key.startswith("offload") for key in self.change)

    def apply(self, execution: JobExecution) -> JobExecution:
        """How the stage runs after the step."""
        return type(execution).model_validate(deep_merge(execution.model_dump(), self.change))


def ladder(execution: JobExecution, trained: int) -> Iterator[Step]:
    """All steps that are possible, in the order of their cost. Each one starts from `execution` as it is given here.

    Args:
        execution: how the stage runs now.
        trained: parameters of its largest trained model.
    """
    if isinstance(execution, EvaluateExecution):
        yield from _partition(execution, ("",), (3,))
        yield from _smaller_batches(execution)
        return
    engines = ("actor", "critic") if isinstance(execution, PpoExecution) else ("",)
    yield from _evaluation(execution)
    yield from _bucket(execution, trained)
    for engine in engines:
        key = _key(engine, "gradient_checkpointing")
        if not getattr(execution, key):
            yield Step(f"{key}", "about 30 % more computation", {key: True})
    yield from _partition(execution, engines, (1, 2))
    if isinstance(execution, PpoExecution):
        for key in ("offload_reference_model", "offload_reward_model"):
            if not getattr(execution, key):
                yield Step(key, "weights cross the bus for each scoring", {key: True})
    yield from _partition(execution, engines, (3,))
    yield from _offload(execution, engines)
    yield from _smaller_batches(execution)


def as_planned(execution: JobExecution) -> JsonObject:
    """`execution` as a plan holds it; the names of the steps that led there stand beside it in the plan."""
    return execution.model_dump(mode="json", exclude={"memory_steps"})


def _key(engine: str, name: str) -> str:
    return f"{engine}_{name}" if engine else name


def _evaluation(execution: JobExecution) -> Iterator[Step]:
    if not isinstance(execution, SupervisedExecution):
        return
    size = execution.per_device_train_batch_size
    if execution.per_device_eval_batch_size > size:
        yield Step("evaluate in batches of the training size", "nothing", {"per_device_eval_batch_size": size})


def _bucket(execution: AnyTrainingExecution, trained: int) -> Iterator[Step]:
    """DeepSpeed allocates its gradient bucket at the configured size, also where all gradients together are smaller."""
    zero: Any = execution.deepspeed_config.get("zero_optimization", {})
    size = int(zero.get("reduce_bucket_size", BUCKET))
    stages = [value for key, value in execution if key.endswith("zero_stage")]
    if max(stages) > 0 and trained < size:
        change = {"deepspeed_config": {"zero_optimization": {"reduce_bucket_size": trained}}}
        yield Step("a gradient bucket no larger than the gradients", "nothing", change)


def _partition(execution: JobExecution, engines: tuple[str, ...], stages: tuple[int, ...]) -> Iterator[Step]:
    if execution.world_size == 1:
        return
    for stage in stages:
        for engine in engines:
            key = _key(engine, "zero_stage")
            if getattr(execution, key) < stage:
                yield Step(f"{key} {stage}", "more communication" if stage == 3 else "little", {key: stage})


def _offload(execution: AnyTrainingExecution, engines: tuple[str, ...]) -> Iterator[Step]:
    if execution.offload:
        return
    # Without ZeRO there is nothing that DeepSpeed offloads.
    stages = {
        _key(engine, "zero_stage"): 2 for engine in engines if getattr(execution, _key(engine, "zero_stage")) == 0
    }
    yield Step("offload", "optimizer steps on the host", {"offload": True, **stages})


def _smaller_batches(execution: JobExecution) -> Iterator[Step]:
    keys = ["per_device_train_batch_size"]
    if isinstance(execution, EvaluateExecution):
        keys = ["per_device_eval_batch_size"]
    if isinstance(execution, PpoExecution):
        keys = ["per_device_generation_batch_size", "per_device_training_batch_size"]
    for key in keys:
        size = getattr(execution, key) // 2
        while size >= 1:
            yield Step(f"{key} {size}", "smaller matrices, the same global batch", {key: size})
            size //= 2


@dataclass(frozen=True)
class Taken:
    """A step that was taken, and the bytes it saved of the upper bound."""

    step: Step
    saves: int
    upper: int


def descend(
    execution: JobExecution,
    trained: int,
    upper: Callable[[JobExecution], tuple[int, str]],
    limit: int,
) -> tuple[JobExecution, list[Taken]]:
    """Take steps until the upper bound is within a limit, leaving out those that save nothing.

    Args:
        execution: how the stage runs.
        trained: parameters of its largest trained model.
        upper: upper bound of a way of running, in bytes, and the phase that needs it.
        limit: bytes that may be used.

    Returns:
        The last settings, whether they fit or not, and the steps that led there.
    """
    taken: list[Taken] = []
    present, phase = upper(execution)
    for step in ladder(execution, trained):
        if present <= limit:
            break
        if _undoes(step, execution) or (phase in ("load", "save") and not step.moves_states):
            continue
        changed = step.apply(execution)
        reached, phase_then = upper(changed)
        if reached < present:
            taken.append(Taken(step, present - reached, reached))
            execution, present, phase = changed, reached, phase_then
    return execution, taken


def _undoes(step: Step, execution: JobExecution) -> bool:
    """Whether an earlier step went further: a ZeRO stage is never lowered."""
    return any(key.endswith("zero_stage") and getattr(execution, key) > value for key, value in step.change.items())


def descent(execution: JobExecution, trained: int) -> list[NextStep]:
    """Further steps for a stage that ran out of memory though it was expected to fit: one for each failure.

    The ZeRO stage stays, because the stage's checkpoints depend on it. What a step saves is not predicted: the
    prediction has just been wrong.

    Returns:
        `name` and `cost` of each step, and `execution` after it and all before it.
    """
    steps: list[NextStep] = []
    while True:
        possible = (step for step in ladder(execution, trained) if not any("zero" in key for key in step.change))
        step = next(possible, None)
        if step is None:
            return steps
        execution = step.apply(execution)
        steps.append({"name": step.name, "cost": step.cost, "execution": as_planned(execution)})
