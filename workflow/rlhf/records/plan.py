"""memory_plan.json: what memory a training stage will need, how it shall run therefore, and what follows a misfit."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypedDict

from rlhf.files import JsonObject, read_object, write_json

MEMORY_PLAN = "memory_plan.json"
Verdict = Literal["fits", "does not fit", "not judged"]
Decision = Literal["accept", "adapt", "warn", "refuse"]


class Place(TypedDict):
    """A part of a phase."""

    phase: str
    part: str


class DeviceNumbers(TypedDict):
    """What one process needs of its device, in bytes; the last two are None on the CPU.

    Attributes:
        expected_allocated: largest sum of tensors.
        expected_device: what the driver will count.
        upper_device: what it will not exceed.
        peak: where the largest sum is.
    """

    expected_allocated: int
    expected_device: int | None
    upper_device: int | None
    peak: Place


class KindBytes(TypedDict):
    """Bytes of one kind (weights, gradients, ...) of one model (policy, reference, reward, value)."""

    model: str
    kind: str
    bytes: int


class PartMemory(Place):
    """One part of a phase at its largest instant: its sum and what makes it; resident set on the CPU, else None."""

    allocated: int
    peak_rss: int | None
    rows: list[KindBytes]


class PlannedStep(TypedDict):
    """A step that makes a stage need less, with what it saves of the upper bound, and the bound after it, in bytes.

    `change` are keys of `execution` with their new values.
    """

    name: str
    cost: str
    change: JsonObject
    saves: int
    upper_device: int


class NextStep(TypedDict):
    """A step after an attempt that ran out of memory, and the whole `execution` after it and all before it."""

    name: str
    cost: str
    execution: JsonObject


class PlannedDevice(TypedDict):
    """The GPU that is planned for; capacity in bytes."""

    name: str
    capacity: int


class HostNumbers(TypedDict):
    """Host memory in bytes: of one process while it loads, trains and saves, and of all processes of a node."""

    load: int
    steady: int
    save: int
    node: int


class Resources(TypedDict):
    """What is asked of a scheduler: nodes, GPUs in all, and MB of each node."""

    nodes: int
    gpus: int
    mem_mb: int


class ArticleNumbers(TypedDict):
    """The article's formula, in bytes."""

    weights: int
    activations: int


class ClosedForm(TypedDict):
    """The explanation beside the dry run, in bytes."""

    weights: int
    activations: int
    logits: int
    article: ArticleNumbers


class MemoryPlan(DeviceNumbers):
    """A plan: the device's numbers are those of the way of running that was decided on.

    Attributes:
        device: None where nothing is judged.
        as_given: numbers of the way of running that was asked for.
        on_misfit: `memory.on_misfit` of the configuration.
        execution: how the stage shall run.
        adaptations: steps that were taken.
        advice: steps that would help.
        remedy: what would do where all steps do not.
        after_out_of_memory: steps for attempts that run out of memory all the same.
        closed_form: None where the family has none.
        disk: folder of the outputs -> bytes on disk.
    """

    schema_version: int
    stage: str
    method: str
    unit: Literal["bytes"]
    device: PlannedDevice | None
    as_given: DeviceNumbers
    on_misfit: str
    verdict: Verdict
    decision: Decision
    execution: JsonObject
    adaptations: list[PlannedStep]
    advice: list[PlannedStep]
    remedy: str | None
    phases: list[PartMemory]
    host: HostNumbers
    resources: Resources
    after_out_of_memory: list[NextStep]
    closed_form: ClosedForm | None
    disk: dict[str, int]


class StagePlan(MemoryPlan):
    """Content of memory_plan.json: the plan of the stage with this ID."""

    id: str


def read_plan(file: Path) -> StagePlan:
    """The memory plan of a stage.

    Raises:
        UserError: the file is missing or damaged.
    """
    plan: StagePlan = read_object(file)
    return plan


def write_plan(file: Path, plan: StagePlan) -> None:
    """Write the memory plan of a stage."""
    write_json(file, plan)
