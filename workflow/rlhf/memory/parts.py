"""The parts of a stage's phases, each with its bytes by model and kind.

Phases are those of the measurement (`rlhf.memory.measure`): load, train, normalise, save; in PPO load, generate, score,
train, save. A phase has parts where its memory has instants of different cause: `train` has backward, step, evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from rlhf.memory.blueprint import Counts
from rlhf.memory.dryrun import Places
from rlhf.memory.states import (
    MASTER,
    MOMENTS,
    Engine,
    accumulated_gradients,
    backward_buffers,
    delivered_weights,
    gathered_weights,
    load_extra,
    optimizer_states,
    reduction,
    resident_buffers,
    resident_gradients,
    resident_weights,
    step_extra,
    step_gradients,
)
from rlhf.memory.tracker import ACTIVATIONS, CACHE, GRADIENTS, LOGITS, WEIGHTS

OPTIMIZER, BUFFERS = "optimizer", "buffers"
ALL_KINDS = (WEIGHTS, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOGITS, CACHE, BUFFERS)
Cell = tuple[str, str]  # model, kind


@dataclass
class Part:
    """One part of a phase at its largest instant.

    Args:
        phase: as measured.
        name: of the part, for example `backward`.
        bytes: of each model (policy, reference, reward, value) and kind.
    """

    phase: str
    name: str
    bytes: dict[Cell, int] = field(default_factory=dict)

    def add(self, model: str, kind: str, amount: int) -> Part:
        """Add an amount to the entry of a model and kind; an amount of 0 makes no entry."""
        if amount:
            self.bytes[model, kind] = self.bytes.get((model, kind), 0) + amount
        return self

    @property
    def total(self) -> int:
        """Sum over all models and kinds."""
        return sum(self.bytes.values())


@dataclass(frozen=True)
class Resident:
    """A model that stays in memory, and its engine.

    Args:
        model: its role.
        engine: how it is kept.
        counts: its parameters.
        on_device: False: kept in host memory except while it is used.
    """

    model: str
    engine: Engine
    counts: Counts
    on_device: bool = True

    def add_to(self, part: Part, used: bool = False) -> Part:
        """Add what the model keeps for the whole run and, where used, the weights gathered or fetched for that."""
        if self.on_device or used:
            part.add(self.model, WEIGHTS, resident_weights(self.engine, self.counts))
        part.add(self.model, OPTIMIZER, optimizer_states(self.engine, self.counts) if self.counts.trained else 0)
        part.add(self.model, GRADIENTS, resident_gradients(self.engine, self.counts))
        part.add(self.model, BUFFERS, resident_buffers(self.engine, self.counts))
        if used:
            part.add(self.model, BUFFERS, gathered_weights(self.engine, self.counts))
        return part


def largest(places: Places, program: str, direction: str = "") -> dict[str, int]:
    """Bytes by kind at the largest place of a part of a traced program."""
    prefix = f"{program}|{direction}"
    found = [peak for place, peak in places.items() if place.startswith(prefix)]
    return max(found, key=lambda peak: peak.total).kinds


def dynamic(part: Part, model: str, kinds: dict[str, int]) -> Part:
    """Add what a trace shows; its weights are left out, because `static` counts those by the model's engine."""
    for kind, amount in kinds.items():
        if kind != WEIGHTS:
            part.add(model, kind, amount)
    return part


def static(phase: str, name: str, models: Iterable[Resident], used: str = "") -> Part:
    """A part with all that its models keep for the whole run; `dynamic` adds what comes and goes."""
    part = Part(phase, name)
    for model in models:
        model.add_to(part, used=model.model == used)
    return part


def training_parts(
    models: list[Resident], trained: str, places: Places, names: tuple[str, str], programs: tuple[str, str]
) -> list[Part]:
    """The backward pass and the step of one trained model, each at its largest instant.

    Args:
        models: everything that stays.
        trained: role of the model.
        places: trace of its forward and backward pass.
        names: of the two parts.
        programs: parts of the trace: the first micro-batch of a step, and a later one where there are any.
    """
    own = next(model for model in models if model.model == trained)
    engine, counts = own.engine, own.counts
    accumulates = any(place.startswith(f"{programs[1]}|") for place in places)
    # Only without ZeRO do gradients wait where autograd put them.
    traced = programs if accumulates and engine.zero_stage == 0 else programs[:1]
    candidates = [
        dynamic(static("train", names[0], models, trained), trained, largest(places, name)) for name in traced
    ]
    candidates.append(static("train", names[0], models).add(trained, GRADIENTS, reduction(engine, counts)))
    for part in candidates[:-1]:
        part.add(trained, GRADIENTS, accumulated_gradients(engine, counts, accumulates))
    backward = max(candidates, key=lambda part: part.total).add(trained, BUFFERS, backward_buffers(engine, counts))
    step = static("train", names[1], models).add(trained, GRADIENTS, step_gradients(engine, counts))
    return [backward, step.add(trained, BUFFERS, step_extra(engine, counts))]


def load_part(models: list[Resident]) -> Part:
    """The larger one of reading all models, and of making their engines one after the other."""
    made = static("load", "load", models)
    for model in models:
        if model.counts.trained and (model.engine.zero_stage or model.engine.dtype == "fp32"):
            _without_moments(made, model)
    extra = [load_extra(model.engine, model.counts) for model in models]
    largest_extra = max(range(len(models)), key=extra.__getitem__)
    made.add(models[largest_extra].model, BUFFERS, extra[largest_extra])
    return max(_read(models), made, key=lambda part: part.total)


def _read(models: list[Resident]) -> Part:
    """Weights alone, and the largest tensor that ZeRO-3 cuts into partitions, which each process has whole for that."""
    part = Part("load", "load")
    for model in models:
        part.add(model.model, WEIGHTS, resident_weights(model.engine, model.counts) if model.on_device else 0)
    cut = [model for model in models if model.engine.zero_stage == 3]
    if cut:
        largest_cut = max(cut, key=lambda model: model.engine.element * model.counts.largest)
        part.add(largest_cut.model, BUFFERS, largest_cut.engine.element * largest_cut.counts.largest)
    return part


def save_part(models: list[Resident], saved: str, asked: dict[str, int]) -> Part:
    """The larger one of writing a model, and of comparing it with the model that is loaded from what was written.

    Tensors are gathered (ZeRO-3) and merged (adapters) one by one, and wait in host memory. To compare, both models
    compute in fp32, one module after the other; the loaded one is in host memory.

    Args:
        models: everything that stays.
        saved: role of the model.
        asked: bytes by kind of a forward pass in fp32 over one of the sequences that both models answer.
    """
    own = next(model for model in models if model.model == saved)
    engine, counts = own.engine, own.counts
    gathered = engine.element * counts.largest if engine.zero_stage == 3 and engine.world_size > 1 else 0
    # The adapters' product, scaled or summed, and the merged weight; beside half precision, the weight in fp32 too.
    merged = MASTER * counts.largest_adapted * (2 if engine.dtype == "fp32" else 3)
    written = static("save", "save", models).add(saved, BUFFERS, gathered + merged)
    compared = dynamic(static("save", "save", models), saved, asked).add(saved, BUFFERS, gathered)
    compared.add(saved, BUFFERS, 0 if engine.dtype == "fp32" else MASTER * counts.largest)
    if not engine.cuda:
        copied = delivered_weights(engine, counts) if engine.zero_stage == 3 else MASTER * counts.adapted
        written.add(saved, BUFFERS, copied)
        compared.add(saved, BUFFERS, engine.element * counts.all)
    return max(written, compared, key=lambda part: part.total)


def in_fp32(kinds: dict[str, int], rows: int, element: int) -> dict[str, int]:
    """Upper bound of the bytes of one row in fp32, from those of several rows with weights of `element` bytes."""
    return {kind: -(-amount * MASTER // (element * rows)) for kind, amount in kinds.items()}


def _without_moments(part: Part, model: Resident) -> None:
    """Take a model's moments out of a part: the optimizer allocates them at its first step."""
    states = part.bytes.pop((model.model, OPTIMIZER), 0)
    each = MOMENTS + (MASTER if model.engine.keeps_master else 0)
    part.add(model.model, OPTIMIZER, states * (each - MOMENTS) // each)
