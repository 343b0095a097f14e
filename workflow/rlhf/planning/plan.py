"""The memory plan of a stage: what it needs, whether that fits, and what would make it fit."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from transformers import PreTrainedConfig

from rlhf.config.stages import JobExecution, Optimization, PpoSettings, RewardSettings, SftSettings, SupervisedExecution
from rlhf.memory.article import article_activations, article_weights
from rlhf.memory.blueprint import Blueprint
from rlhf.memory.closed_form import COEFFICIENTS, ActivationShape, activations, cross_entropy
from rlhf.memory.devices import GIB, TABLE, USABLE, Device, DeviceMemory
from rlhf.memory.host import LIBRARIES
from rlhf.memory.parts import Resident
from rlhf.memory.states import ELEMENT, delivered_weights
from rlhf.planning.forecast import Earlier, Settings, forecast, on_device, on_host
from rlhf.planning.ladder import Taken, as_planned, descend, descent
from rlhf.planning.supervised import Forecast
from rlhf.planning.traces import Traces
from rlhf.records.plan import (
    ClosedForm,
    Decision,
    DeviceNumbers,
    MemoryPlan,
    PartMemory,
    PlannedStep,
    Verdict,
)

SCHEMA_VERSION = 1
MAX_GPUS, GPUS_OF_A_NODE = 128, 8  # how far more of them are tried


@dataclass(frozen=True)
class Judgement:
    """Whether a stage fits a device, and what is decided.

    Args:
        verdict: `fits`, `does not fit` or `not judged`.
        decision: `accept`, `adapt`, `warn` or `refuse`.
        execution: how the stage shall run.
        adaptations: steps that were taken.
        advice: steps that would help.
        remedy: what would do where all steps do not.
    """

    verdict: Verdict
    decision: Decision
    execution: JobExecution
    adaptations: list[PlannedStep] = field(default_factory=list)
    advice: list[PlannedStep] = field(default_factory=list)
    remedy: str | None = None


class Planner:
    """Plans one stage.

    Args:
        kind: of the stage, as `sft`, `ppo` or `evaluate_ppo`.
        settings: of the stage.
        configs: configurations of its models, by the roles of `rlhf.planning.forecast.ROLES`.
        device: the GPU; None where it is unknown, or on the CPU.
        cuda: the stage runs on GPUs.
        earlier: adapters merged into these models.
    """

    def __init__(
        self,
        kind: str,
        settings: Settings,
        configs: dict[str, PreTrainedConfig],
        device: Device | None,
        cuda: bool,
        earlier: Earlier,
    ) -> None:
        self._kind, self._settings, self._configs, self._device = kind, settings, configs, device
        self._earlier = earlier
        self._traces = Traces(cuda)

    def forecast(self, execution: JobExecution) -> Forecast:
        """Memory of one process."""
        return forecast(self._settings, execution, self._configs, self._traces, self._earlier)

    def plain_parameters(self) -> int:
        """Parameters of a supervised stage's model without adapters."""
        config = self._configs["model"]
        head = "score" if self._kind == "reward" else "lm"
        return self._traces.counts(Blueprint(config, head, self._settings.dtype, None)).all

    def upper(self, execution: JobExecution) -> int:
        """Upper bound of a device, in bytes."""
        return self._upper_and_phase(execution)[0]

    def _upper_and_phase(self, execution: JobExecution) -> tuple[int, str]:
        found = self.forecast(execution)
        return on_device(found, self._device, execution).upper_device, found.largest.phase

    def adapt(self, execution: JobExecution, limit: int) -> tuple[JobExecution, list[Taken]]:
        """Take steps until the upper bound is within a limit, or none is left."""
        trained = max(model.counts.trained for model in self.forecast(execution).models)
        return descend(execution, trained, self._upper_and_phase, limit)

    def judge(self, execution: JobExecution, on_misfit: str) -> Judgement:
        """Whether a way of running fits, and what follows."""
        if self._device is None:
            return Judgement("not judged", "accept", execution)
        limit = int(USABLE * self._device.capacity)
        if self.upper(execution) <= limit:
            return Judgement("fits", "accept", execution)
        adapted, taken = self.adapt(execution, limit)
        steps = [_entry(step) for step in taken]
        reached = self.upper(adapted) <= limit
        if reached and on_misfit == "adapt":
            return Judgement("fits", "adapt", adapted, adaptations=steps)
        remedy = None if reached else self.remedy(adapted, limit)
        decision: Decision = "warn" if on_misfit == "warn" else "refuse"
        return Judgement("does not fit", decision, execution, advice=steps, remedy=remedy)

    def remedy(self, execution: JobExecution, limit: int) -> str:
        """What would make the stage fit where all steps do not: more GPUs, or another device."""
        upper = least = self.upper(execution)
        more = execution
        while more.nodes * more.gpus_per_node < MAX_GPUS:
            grows = "nodes" if more.gpus_per_node >= GPUS_OF_A_NODE else "gpus_per_node"
            more, _ = self.adapt(more.model_copy(update={grows: 2 * getattr(more, grows)}), limit)
            reached = self.upper(more)
            if reached <= limit:
                return f"{more.nodes} node(s) with {more.gpus_per_node} GPUs each would do"
            if reached > 0.98 * least:
                break  # what is left is not shared among processes
            least = reached
        larger = sorted((gib, name) for name, (gib, _) in TABLE.items() if gib * GIB * USABLE >= upper)
        return f"a GPU such as {larger[0][1]} would do" if larger else "no device of the table is large enough"


def plan_stage(
    kind: str,
    settings: Settings,
    execution: JobExecution,
    configs: dict[str, PreTrainedConfig],
    device: Device | None = None,
    on_misfit: str = "warn",
    earlier: Earlier | None = None,
) -> MemoryPlan:
    """What a stage needs, and how it shall run therefore.

    Args:
        kind: of the stage, as `sft`, `ppo` or `evaluate_ppo`.
        settings: of the stage.
        execution: how it shall run.
        configs: configurations of its models, by the roles of `rlhf.planning.forecast.ROLES`.
        device: the GPU; None where it is not known, so that nothing is judged.
        on_misfit: `refuse`, `adapt` or `warn`: what follows where it does not fit.
        earlier: adapters merged into these models, by the same roles; None: none.
    """
    cuda = execution.gpus_per_node > 0
    device = device if cuda else None
    planner = Planner(kind, settings, configs, device, cuda, earlier or {})
    given = planner.forecast(execution)
    judged = planner.judge(execution, on_misfit)
    chosen = judged.execution
    found = planner.forecast(chosen)
    host = on_host(found, chosen)
    gpus = chosen.nodes * chosen.gpus_per_node
    return {
        "schema_version": SCHEMA_VERSION,
        "stage": kind,
        "method": "dry-run",
        "unit": "bytes",
        "device": {"name": device.name, "capacity": device.capacity} if device else None,
        "as_given": _numbers(on_device(given, device, execution), given, execution),
        "on_misfit": on_misfit,
        "verdict": judged.verdict,
        "decision": judged.decision,
        "execution": as_planned(chosen),
        "adaptations": judged.adaptations,
        "advice": judged.advice,
        "remedy": judged.remedy,
        **_numbers(on_device(found, device, chosen), found, chosen),
        "phases": _phases(found, cuda),
        "host": {"load": host.load, "steady": host.steady, "save": host.save, "node": host.node},
        "disk": _disk(settings, found.models[0]),
        "resources": {"nodes": chosen.nodes, "gpus": gpus, "mem_mb": chosen.mem_mb or host.mem_mb},
        "after_out_of_memory": descent(chosen, max(model.counts.trained for model in found.models)),
        "closed_form": _closed_form(kind, settings, chosen, configs, planner),
    }


def _disk(settings: Settings, trained: Resident) -> dict[str, int]:
    """Bytes of what the stage leaves on disk, by folder, beside what is small."""
    if not isinstance(settings, Optimization | PpoSettings):
        return {}
    optimization = settings.optimization("actor") if isinstance(settings, PpoSettings) else settings
    counts, element = trained.counts, trained.engine.element
    model = delivered_weights(trained.engine, counts) + element * counts.adapters
    sizes = {"model": model, "adapter": element * counts.trained if optimization.lora_dim else 0}
    if isinstance(settings, PpoSettings) and settings.ema_decay is not None:
        sizes["model_ema"] = model
    return {folder: size for folder, size in sizes.items() if size}


def _numbers(memory: DeviceMemory, found: Forecast, execution: JobExecution) -> DeviceNumbers:
    return {
        "expected_allocated": memory.expected_allocated,
        "expected_device": memory.expected_device if execution.gpus_per_node else None,
        "upper_device": memory.upper_device if execution.gpus_per_node else None,
        "peak": {"phase": found.largest.phase, "part": found.largest.name},
    }


def _entry(taken: Taken) -> PlannedStep:
    step = taken.step
    change = copy.deepcopy(step.change)
    return {"name": step.name, "cost": step.cost, "change": change, "saves": taken.saves, "upper_device": taken.upper}


def _phases(found: Forecast, cuda: bool) -> list[PartMemory]:
    """Bytes by phase and part; on the CPU, `peak_rss` is what the measurement of the process should show."""
    return [
        {
            "phase": part.phase,
            "part": part.name,
            "allocated": part.total,
            "peak_rss": None if cuda else LIBRARIES[cuda] + part.total,
            "rows": [{"model": model, "kind": kind, "bytes": amount} for (model, kind), amount in part.bytes.items()],
        }
        for part in found.parts
    ]


def _closed_form(
    kind: str,
    settings: Settings,
    execution: JobExecution,
    configs: dict[str, PreTrainedConfig],
    planner: Planner,
) -> ClosedForm | None:
    """The explanation beside the dry run, and the article's formula; None where family or stage has no closed form."""
    if not isinstance(execution, SupervisedExecution) or configs["model"].model_type not in COEFFICIENTS:
        return None
    assert isinstance(settings, SftSettings | RewardSettings)
    config, parameters = configs["model"], planner.plain_parameters()
    rows = execution.per_device_train_batch_size * (2 if kind == "reward" else 1)
    shape = ActivationShape(
        config.model_type,
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        _inner_width(config),
        config.vocab_size,
        rows,
        settings.max_seq_len,
    )
    return {
        "weights": ELEMENT[settings.dtype] * parameters,
        "activations": activations(shape, execution.gradient_checkpointing),
        "logits": cross_entropy(shape) if kind == "sft" else 0,
        "article": {
            "weights": article_weights(parameters),
            "activations": article_activations(shape),
        },
    }


def _inner_width(config: PreTrainedConfig) -> int:
    for name in ("ffn_dim", "intermediate_size", "n_inner"):
        width = getattr(config, name, None)
        if width:
            return int(width)
    return 4 * int(config.hidden_size)
