"""Typed configuration: one class per section, one line of documentation per key.

The JSON schema and `config/README.md` are generated from these classes; a test fails when they drift.
Every key has a default, because experiments are overlays on `defaults`; what must be given is checked on resolution.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator

from rlhf.config.section import DataSplit, Name, Section, Seed
from rlhf.config.sources import DatasetSection, ModelSection
from rlhf.config.stages import EvaluationSection, PpoSection, RewardSection, SftSection
from rlhf.phases import PHASES, PhaseName


class MemorySettings(Section):
    """The GPU that stages are planned for, and what follows where one does not fit. No part of a stage's identity."""

    on_misfit: Literal["warn", "adapt", "refuse"] = Field(
        "warn",
        description="A stage that does not fit: say so; also plan steps that do not change its result; or fail.",
    )
    gpu: str | None = Field(None, description="Name of the GPU, for example `a100-40g`; unset: nothing is judged.")
    gpu_memory_gib: float | None = Field(None, gt=0, description="Its memory in GiB; unset: as the name says.")


class ExperimentSettings(Section):
    """One experiment; keys not given come from `defaults`."""

    compatibility: Literal["deepspeed_chat"] | None = Field(
        None,
        description="`deepspeed_chat`: its formulas and constants take the place of the defaults below; keys that are "
        "given still win. `docs/from-deepspeed-chat.md` lists them.",
    )
    phases: list[PhaseName] = Field(
        list(PHASES),
        min_length=1,
        description="What is trained, in this order: `[sft]`, `[reward]`, `[sft, reward]` or all three. Rows that "
        "`data_split` gives to a phase left out stay unused: `1,0,0` gives all to SFT.",
    )
    data_path: list[str] = Field([], description="Names under `datasets`, used together.")
    data_weights: dict[Name, Annotated[float, Field(gt=0)]] = Field(
        {},
        description="Dataset -> how often an epoch sees its training rows, default 1; at 0.5, half of them, and the "
        "other half in the next epoch.",
    )
    data_split: DataSplit = Field("2,4,4", description="Proportions of the rows for SFT, reward, PPO.")
    split_seed: Seed = Field(1234, description="Seed of the partition; the same for all training seeds.")
    policy: str | None = Field(None, description="Name under `models`: the model that becomes the policy.")
    reward_model: str | None = Field(None, description="Name under `models`: the model that becomes the reward model.")
    sft: SftSection = Field(SftSection(), description="Phase 1.")
    reward: RewardSection = Field(RewardSection(), description="Phase 2.")
    ppo: PpoSection = Field(PpoSection(), description="Phase 3.")
    memory: MemorySettings = Field(MemorySettings(), description="Planning of memory.")
    evaluation: EvaluationSection = Field(EvaluationSection(), description="What is measured.")
    seeds: list[Seed] = Field([1234], min_length=1, description="One run per seed.")
    sweep: dict[str, list[JsonValue]] = Field(
        {}, description="Dotted key -> values; the grid of all combinations is run."
    )

    @field_validator("phases")
    @classmethod
    def _ordered(cls, phases: list[PhaseName]) -> list[PhaseName]:
        if phases != [phase for phase in PHASES if phase in phases]:
            raise ValueError(f"name each phase once, in the order {', '.join(PHASES)}")
        return phases

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds {seeds} repeat a value")
        return seeds

    @field_validator("sweep")
    @classmethod
    def _different_values(cls, sweep: dict[str, list[JsonValue]]) -> dict[str, list[JsonValue]]:
        for key, values in sweep.items():
            if not values or any(value in values[:index] for index, value in enumerate(values)):
                raise ValueError(f"{key} needs at least one value and none twice")
        return sweep


class Configuration(Section):
    """The whole configuration file."""

    datasets: dict[Name, DatasetSection] = Field({}, description="Datasets by name.")
    models: dict[Name, ModelSection] = Field({}, description="Models by name.")
    defaults: ExperimentSettings = Field(ExperimentSettings(), description="Settings shared by all experiments.")
    experiments: dict[Name, ExperimentSettings] = Field({}, description="Experiments by name.")
    overrides: ExperimentSettings = Field(
        ExperimentSettings(),
        description="Settings laid over every experiment, whatever it says itself; a sweep's own keys stay. For a file "
        "beside another one, as `config/miniature.yaml`. Keys without effect are not judged then.",
    )
