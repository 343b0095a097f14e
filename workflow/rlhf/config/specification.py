"""The specification of a stage: what it computes and from what, as in its spec.yaml, and how it runs.

One class for each kind of stage, so that a key that does not exist is an error where a file is read (in
`rlhf.config.specfile`), and in code an error of the type checker.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from rlhf.config.effects import without_effect
from rlhf.config.section import DataSplit, FunctionName, Section, Seed
from rlhf.config.sources import DatasetSettings, ModelSettings
from rlhf.config.stages import (
    Answered,
    Dtype,
    EvaluateExecution,
    EvaluationSettings,
    Execution,
    PpoExecution,
    PpoSettings,
    RewardExecution,
    RewardSettings,
    SftExecution,
    SftSettings,
)


def _is_none(value: object) -> bool:
    return value is None


# Absent, not null, where it has no value: what a stage does not depend on is no part of its identity.
ABSENT: Any = Field(None, exclude_if=_is_none)


class ResolvedDataset(DatasetSettings):
    """A dataset, with the content of its files."""

    turns: Literal[True] | None = ABSENT  # prompts are kept as the turns of a chat; which template is up to the tokens
    evaluation_only: Literal[True] | None = ABSENT
    content: list[str] | None = ABSENT  # hashes of the local files, or of a generator's code and what it reads


class ResolvedModel(ModelSettings):
    """A model to start from, with the content of its folder."""

    content: list[str] | None = ABSENT  # hashes of the local folder; empty: of a hub


class TokensSettings(Section):
    """How texts become tokens."""

    chat_template: str | None = ABSENT


class SplitSettings(Section):
    """How rows are divided among the phases."""

    data_split: DataSplit
    split_seed: Seed


class Effective(Section):
    """Settings that are written without those that change nothing: they are no part of the stage's identity."""

    @model_serializer(mode="wrap")
    def _without_what_changes_nothing(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = written(self)
        for key in without_effect(self):
            *sections, name = key.split(".")
            section = content
            for part in sections:
                section = section[part]
            del section[name]
        return content


class TrainingData(Effective):
    """What training stages know of their datasets."""

    data_weights: list[float] = Field(description="How often an epoch sees the rows of each dataset.")


class Judged(Section):
    """What stages know that report a gold reward."""

    gold_reward: FunctionName | None = Field(description="`module:function` that judges answers, if one exists.")
    gold_content: list[str] | None = ABSENT  # hashes of its code, where that is not of this library, and what it reads


class ResolvedSft(TrainingData, SftSettings):
    """Settings of an SFT stage."""


class ResolvedReward(TrainingData, RewardSettings):
    """Settings of a reward stage."""


class ResolvedPpo(TrainingData, Judged, PpoSettings):
    """Settings of a PPO stage."""


class ResolvedSftEvaluation(Section):
    """Settings of the evaluation of the SFT model's loss: all unseen rows are read, and nothing is drawn."""

    dtype: Dtype = Field(description="Precision of the model.")
    max_seq_len: int = Field(description="As in the training of the model.")


class ResolvedRewardEvaluation(Judged, ResolvedSftEvaluation):
    """Settings of the evaluation of a reward model."""


class ResolvedAnswers(Judged, Answered):
    """Settings of the evaluations that sample answers."""

    max_prompt_seq_len: int = Field(description="As in PPO.")
    max_answer_seq_len: int = Field(description="As in PPO.")
    temperature: float = Field(description="As in PPO.")
    dtype: Dtype = Field(description="Precision of all models.")


class ResolvedBaseline(ResolvedAnswers, EvaluationSettings):
    """Settings of the answers of the SFT model."""


class NoUpstream(Section):
    """Nothing: the stage is made of a source."""


class ModelUpstream(Section):
    """For a model from scratch, the dataset that its tokenizer is trained on."""

    dataset: str | None = ABSENT


class TokensUpstream(Section):
    """IDs of a dataset, and of the model whose tokenizer reads it."""

    dataset: str
    model: str


class SplitUpstream(Section):
    """ID of a dataset."""

    dataset: str


class SftUpstream(Section):
    """IDs of what an SFT stage is made from; `tokens` and `split` of each dataset."""

    model: str
    tokens: list[str]
    split: list[str]

    @property
    def start(self) -> tuple[str, str]:
        """Kind and ID of the stage whose model training starts from."""
        return "model", self.model

    @property
    def starts(self) -> list[tuple[str, str]]:
        """Kinds and IDs of the stages whose models are loaded, in the order of their roles."""
        return [self.start]


class RewardUpstream(Section):
    """IDs of what a reward stage is made from: either a pretrained model or an SFT stage, and the data."""

    model: str | None = ABSENT
    sft: str | None = ABSENT
    tokens: list[str]
    split: list[str]

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if (self.model is None) == (self.sft is None):
            raise ValueError("give exactly one of model, sft")
        return self

    @property
    def start(self) -> tuple[str, str]:
        """Kind and ID of the stage whose model training starts from."""
        return ("sft", self.sft) if self.sft is not None else ("model", str(self.model))

    @property
    def starts(self) -> list[tuple[str, str]]:
        """Kinds and IDs of the stages whose models are loaded, in the order of their roles."""
        return [self.start]


class PpoUpstream(Section):
    """IDs of what a PPO stage, or the answers of the SFT model, are made from."""

    sft: str
    reward: str
    tokens: list[str]
    split: list[str]

    @property
    def start(self) -> tuple[str, str]:
        """Kind and ID of the stage whose model training starts from."""
        return "sft", self.sft

    @property
    def starts(self) -> list[tuple[str, str]]:
        """Kinds and IDs of the stages whose models are loaded, in the order of their roles."""
        return [self.start, ("reward", self.reward)]


class SftEvaluationUpstream(Section):
    """IDs of what the evaluation of an SFT model is made from."""

    sft: str
    tokens: list[str]
    split: list[str]

    @property
    def starts(self) -> list[tuple[str, str]]:
        """Kinds and IDs of the stages whose models are loaded, in the order of their roles."""
        return [("sft", self.sft)]


class RewardEvaluationUpstream(Section):
    """IDs of what the evaluation of a reward model is made from."""

    reward: str
    tokens: list[str]
    split: list[str]

    @property
    def starts(self) -> list[tuple[str, str]]:
        """Kinds and IDs of the stages whose models are loaded, in the order of their roles."""
        return [("reward", self.reward)]


class PpoEvaluationUpstream(Section):
    """IDs of what the comparison of the policy with the SFT model is made from."""

    ppo: str
    baseline: str
    sft: str
    reward: str
    tokens: list[str]
    split: list[str]

    @property
    def starts(self) -> list[tuple[str, str]]:
        """Kinds and IDs of the stages whose models are loaded, in the order of their roles."""
        return [("ppo", self.ppo), ("sft", self.sft), ("reward", self.reward)]


class Planned(Section):
    """What the memory plan adds to how a stage runs."""

    memory_steps: list[str] = Field([], description="Names of the steps that were taken to fit the memory.")


class PlannedSft(Planned, SftExecution):
    """How an attempt at an SFT stage runs."""


class PlannedReward(Planned, RewardExecution):
    """How an attempt at a reward stage runs."""


class PlannedPpo(Planned, PpoExecution):
    """How an attempt at a PPO stage runs."""


class PlannedEvaluation(Planned, EvaluateExecution):
    """How an attempt at an evaluation runs."""


SettingsT = TypeVar("SettingsT", bound=Section, covariant=True)
UpstreamT = TypeVar("UpstreamT", bound=Section, covariant=True)
ExecutionT = TypeVar("ExecutionT", bound=Execution, covariant=True)


class Specification(Section, Generic[SettingsT, UpstreamT]):
    """What a stage computes and from what: the content of its spec.yaml, which its ID stands for."""

    schema_version: Literal[1]
    stage: str
    id: str
    seed: Seed | None
    settings: SettingsT
    upstream: UpstreamT

    def identity(self) -> dict[str, Any]:
        """What its ID stands for, as JSON types: the content of spec.yaml."""
        return self.model_dump(mode="json", exclude={"execution"})


class JobSpecification(Specification[SettingsT, UpstreamT], Generic[SettingsT, UpstreamT, ExecutionT]):
    """The specification of a stage that trains or evaluates, and how it runs."""

    execution: ExecutionT


class SeededSpecification(
    JobSpecification[SettingsT, UpstreamT, ExecutionT], Generic[SettingsT, UpstreamT, ExecutionT]
):
    """The specification of a stage that draws at random, as training and sampling do."""

    seed: Seed


class SeedlessSpecification(
    JobSpecification[SettingsT, UpstreamT, ExecutionT], Generic[SettingsT, UpstreamT, ExecutionT]
):
    """The specification of a stage that trains or evaluates and draws nothing."""

    seed: None


class DatasetSpecification(Specification[ResolvedDataset, NoUpstream]):
    """A cached dataset."""

    stage: Literal["dataset"]


class ModelSpecification(Specification[ResolvedModel, ModelUpstream]):
    """A cached model."""

    stage: Literal["model"]


class TokensSpecification(Specification[TokensSettings, TokensUpstream]):
    """A tokenised dataset."""

    stage: Literal["tokens"]


class SplitSpecification(Specification[SplitSettings, SplitUpstream]):
    """The rows of each phase."""

    stage: Literal["split"]


class SftSpecification(SeededSpecification[ResolvedSft, SftUpstream, PlannedSft]):
    """Phase 1."""

    stage: Literal["sft"]


class RewardSpecification(SeededSpecification[ResolvedReward, RewardUpstream, PlannedReward]):
    """Phase 2."""

    stage: Literal["reward"]


class PpoSpecification(SeededSpecification[ResolvedPpo, PpoUpstream, PlannedPpo]):
    """Phase 3."""

    stage: Literal["ppo"]


class SftEvaluationSpecification(
    SeedlessSpecification[ResolvedSftEvaluation, SftEvaluationUpstream, PlannedEvaluation]
):
    """Loss of the SFT model on unseen rows."""

    stage: Literal["evaluate_sft"]


class RewardEvaluationSpecification(
    SeedlessSpecification[ResolvedRewardEvaluation, RewardEvaluationUpstream, PlannedEvaluation]
):
    """Agreement of the reward model with unseen preferences."""

    stage: Literal["evaluate_reward"]


class BaselineSpecification(SeededSpecification[ResolvedBaseline, PpoUpstream, PlannedEvaluation]):
    """Answers of the SFT model."""

    stage: Literal["baseline"]


class PpoEvaluationSpecification(SeededSpecification[ResolvedAnswers, PpoEvaluationUpstream, PlannedEvaluation]):
    """Answers of the policy against those of the SFT model."""

    stage: Literal["evaluate_ppo"]


AnySpecification = Specification[Section, Section]
TrainingSettings = ResolvedSft | ResolvedReward | ResolvedPpo
TrainingUpstream = SftUpstream | RewardUpstream | PpoUpstream
PlannedTraining = PlannedSft | PlannedReward | PlannedPpo
PlannedJob = PlannedTraining | PlannedEvaluation
TrainingSpecification = SeededSpecification[TrainingSettings, TrainingUpstream, PlannedTraining]
TRAINING: dict[str, type[TrainingSpecification]] = {
    "sft": SftSpecification,
    "reward": RewardSpecification,
    "ppo": PpoSpecification,
}
# Of training stages too, as one reads them that does not care how they are run.
TrainedSpecification = Specification[TrainingSettings, TrainingUpstream]
TRAINED: dict[str, type[TrainedSpecification]] = {
    "sft": Specification[ResolvedSft, SftUpstream],
    "reward": Specification[ResolvedReward, RewardUpstream],
    "ppo": Specification[ResolvedPpo, PpoUpstream],
}
LoadedUpstream = TrainingUpstream | SftEvaluationUpstream | RewardEvaluationUpstream | PpoEvaluationUpstream
LoadingSettings = TrainingSettings | ResolvedSftEvaluation | ResolvedRewardEvaluation | ResolvedAnswers
LoadingSpecification = JobSpecification[LoadingSettings, LoadedUpstream, PlannedJob]
JOBS: dict[str, type[LoadingSpecification]] = {
    **TRAINING,
    "evaluate_sft": SftEvaluationSpecification,
    "evaluate_reward": RewardEvaluationSpecification,
    "baseline": BaselineSpecification,
    "evaluate_ppo": PpoEvaluationSpecification,
}
SpecificationT = TypeVar("SpecificationT", bound=AnySpecification)
