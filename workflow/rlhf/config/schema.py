"""Typed configuration: one class per section, one line of documentation per key.

The JSON schema and `config/README.md` are generated from these classes; a test fails when they drift.
Every key has a default, because experiments are overlays on `defaults`; what must be given is checked on resolution.
Keys under `execution` say how a stage runs, not what it computes, and are no part of a stage's identity.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
DataSplit = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?(,\d+(\.\d+)?){2}$")]
Scheduler = Literal["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]
Dtype = Literal["fp32", "bf16", "fp16"]


class Section(BaseModel):
    """A section of the configuration: unknown keys are refused with the nearest valid name, text is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for key in values:
            if key not in cls.model_fields:
                near = difflib.get_close_matches(str(key), cls.model_fields, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(sorted(cls.model_fields))}"
                raise ValueError(f"unknown key {key!r}; {hint}")
        return values


class DatasetSource(Section):
    """Where a dataset comes from: exactly one of `hub`, `path`, `generator`."""

    hub: str | None = Field(None, description="Name of a hub dataset, for example `Dahoas/rm-static`.")
    revision: str | None = Field(None, description="Commit or tag of the hub dataset; unset takes the newest.")
    name: str | None = Field(None, description="Configuration name of the hub dataset.")
    path: str | list[str] | dict[str, str] | None = Field(
        None,
        description="Local files (json, jsonl, csv, tsv, parquet, optionally .gz), a folder written by "
        "`save_to_disk`, a list of files, or `{train: ..., eval: ...}`.",
    )
    generator: str | None = Field(None, description="`module:function` that yields rows; called with `arguments`.")
    arguments: dict[str, Any] = Field({}, description="Keyword arguments of the generator.")
    train_split: str = Field("train", description="Split used for training.")
    eval_split: str | None = Field(None, description="Split used as unseen data; unset holds out `eval_share`.")
    eval_share: Share = Field(0.1, description="Share of rows held out as unseen data where there is no eval split.")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        given = [key for key in ("hub", "path", "generator") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of hub, path, generator (given: {', '.join(given) or 'none'})")
        return self


class DatasetSettings(Section):
    """A dataset and how its rows become prompt / chosen / rejected."""

    source: DatasetSource = Field(description="Where the rows come from.")
    shape: Literal["pairs", "dialogues", "instructions", "messages", "ratings", "comparisons"] | None = Field(
        None, description="Shape of a row; unset uses the ready mapping of a known hub dataset, else `pairs`."
    )
    columns: dict[str, str] = Field({}, description="Role -> column; dots reach into nested fields.")
    prompt_format: str | None = Field(None, description="Template of the prompt text, for example `Human: {prompt}`.")
    answer_format: str | None = Field(None, description="Template of the answer text; default `{answer}`.")
    max_bad_share: Share = Field(0.05, description="Largest share of unusable rows before the rule fails.")
    gold_reward: str | None = Field(
        None, description="`module:function(prompt, answer, finished) -> float` that judges answers, if one exists."
    )


class ModelSource(Section):
    """A hub model or a local Hugging Face folder: exactly one of `hub`, `path`."""

    hub: str | None = Field(None, description="Name of a hub model, for example `facebook/opt-1.3b`.")
    revision: str | None = Field(None, description="Commit or tag of the hub model; unset takes the newest.")
    path: str | None = Field(None, description="Local model folder with its tokenizer.")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.hub is None) == (self.path is None):
            raise ValueError("give exactly one of hub, path")
        return self


class TokenizerSettings(Section):
    """A tokenizer made for a model that starts from scratch."""

    dataset: str = Field(description="Dataset whose texts it is trained on.")
    kind: Literal["words", "bpe"] = Field("words", description="One token per word, or byte-level BPE.")
    vocab_size: int = Field(4096, ge=16, description="Largest vocabulary, special tokens included.")


class ModelSettings(Section):
    """A model to start from."""

    source: ModelSource | Literal["scratch"] = Field(description="Hub name, local folder, or `scratch`.")
    architecture: dict[str, Any] = Field(
        {}, description="For `scratch`: `model_type` and the keys of that Hugging Face configuration class."
    )
    tokenizer: TokenizerSettings | None = Field(None, description="For `scratch`: the tokenizer to train.")
    seed: int = Field(0, ge=0, description="For `scratch`: seed of the initial weights.")
    eos_token: str | None = Field(None, description="Token that ends an answer, where the tokenizer's own is wrong.")
    pad_token: str | None = Field(None, description="Padding token; unset takes the tokenizer's, or adds one.")
    trust_remote_code: bool = Field(False, description="Allow code from the model repository to run. Unsafe.")

    @model_validator(mode="after")
    def _scratch_is_complete(self) -> Self:
        if self.source == "scratch" and ("model_type" not in self.architecture or self.tokenizer is None):
            raise ValueError("source: scratch needs architecture.model_type and tokenizer.dataset")
        if self.source != "scratch" and (self.architecture or self.tokenizer):
            raise ValueError("architecture and tokenizer belong to source: scratch only")
        return self


class Optimization(Section):
    """Optimizer, schedule and adapters of one trained model."""

    learning_rate: float = Field(9.65e-6, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW decay; not applied to biases and norms.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="First-moment decay of AdamW.")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="Second-moment decay of AdamW.")
    adam_epsilon: float = Field(1e-8, gt=0, description="Epsilon of AdamW.")
    gradient_clipping: float = Field(1.0, ge=0, description="Largest gradient norm; 0 switches clipping off.")
    lr_scheduler_type: Scheduler = Field("cosine", description="Learning-rate schedule after warm-up.")
    num_warmup_steps: int = Field(0, ge=0, description="Linear warm-up, in optimizer steps.")
    dropout: Share | None = Field(None, description="Overrides every dropout of the model; unset keeps its own.")
    lora_dim: int = Field(0, ge=0, description="LoRA rank; 0 trains without adapters.")
    lora_alpha: float | None = Field(None, gt=0, description="LoRA numerator: scale = lora_alpha / lora_dim; unset: 1.")
    lora_module_name: str = Field("decoder.layers.", description="Linear modules whose name contains this get LoRA.")
    lora_learning_rate: float = Field(5e-4, gt=0, description="Learning rate of the LoRA matrices.")
    only_optimize_lora: bool = Field(False, description="Freeze everything but the LoRA matrices (and a value head).")


class ActorOptimization(Optimization):
    """Training of the policy in PPO."""

    num_warmup_steps: int = Field(100, ge=0, description="Linear warm-up, in optimizer steps.")
    dropout: float = Field(
        0.0, ge=0, le=0, description="Must be 0: dropout makes old and new log-probabilities differ."
    )


class CriticOptimization(ActorOptimization):
    """Training of the value model in PPO."""

    learning_rate: float = Field(5e-6, gt=0, description="Peak learning rate.")


class Execution(Section):
    """How a stage runs. Cannot change a result beyond rounding, so it is no part of a stage's identity."""

    nodes: int = Field(1, ge=1, description="Nodes.")
    gpus_per_node: int = Field(0, ge=0, description="GPUs per node; 0 runs on the CPU.")
    threads: int = Field(1, ge=1, description="CPU threads of each process.")
    mem_mb: int = Field(4000, ge=1, description="Host memory per node, in MB.")
    runtime: int = Field(60, ge=1, description="Time limit, in minutes.")
    deepspeed_config: dict[str, Any] = Field({}, description="DeepSpeed settings merged over the generated ones.")

    @property
    def world_size(self) -> int:
        """Number of processes: one per GPU, or one on the CPU."""
        return self.nodes * max(1, self.gpus_per_node)


class TrainExecution(Execution):
    """How an SFT or reward stage runs."""

    per_device_train_batch_size: int = Field(8, ge=1, description="Sequences (SFT) or pairs (reward) per micro-batch.")
    per_device_eval_batch_size: int = Field(16, ge=1, description="The same in evaluation.")
    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="DeepSpeed ZeRO stage.")
    offload: bool = Field(False, description="Keep optimizer state (and ZeRO-3 parameters) in host memory.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass.")


class PpoExecution(Execution):
    """How a PPO stage runs."""

    per_device_generation_batch_size: int = Field(16, ge=1, description="Prompts per generation batch.")
    per_device_training_batch_size: int = Field(16, ge=1, description="Answers per scoring and training micro-batch.")
    actor_zero_stage: Literal[0, 1, 2, 3] = Field(0, description="ZeRO stage of the policy.")
    critic_zero_stage: Literal[0, 1, 2, 3] = Field(0, description="ZeRO stage of the value model.")
    actor_gradient_checkpointing: bool = Field(False, description="Recompute the policy's activations.")
    critic_gradient_checkpointing: bool = Field(False, description="Recompute the value model's activations.")
    offload: bool = Field(False, description="Keep optimizer states (and ZeRO-3 parameters) in host memory.")
    offload_reference_model: bool = Field(False, description="Keep the reference model in host memory.")
    offload_reward_model: bool = Field(False, description="Keep the reward model in host memory.")


class _Supervised(Optimization):
    global_batch_size: int = Field(32, ge=1, description="Sequences (SFT) or pairs (reward) per optimizer step.")
    num_train_epochs: int = Field(1, ge=1, description="Passes over the training data.")
    max_seq_len: int = Field(512, ge=2, description="Longest prompt + answer, in tokens; longer rows are counted out.")
    max_eval_rows: int = Field(1000, ge=1, description="Unseen rows used to evaluate, at most.")
    dtype: Dtype = Field("bf16", description="Precision of the weights in training.")
    execution: TrainExecution = Field(TrainExecution(), description="How the stage runs.")


class SftSettings(_Supervised):
    """Supervised fine-tuning on prompt + chosen; the loss counts answer tokens only."""


class RewardSettings(_Supervised):
    """Reward model: last-token Bradley-Terry loss on pairs."""

    learning_rate: float = Field(5e-5, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.1, ge=0, description="AdamW decay; not applied to biases and norms.")


class PpoSettings(Section):
    """PPO against the reward model, with a KL penalty towards the SFT model."""

    num_train_epochs: int = Field(1, ge=1, description="Passes over the prompts, unless `iterations` is given.")
    iterations: int | None = Field(None, ge=1, description="Rollouts; unset follows from `num_train_epochs`.")
    prompts_per_rollout: int = Field(64, ge=1, description="Prompts per rollout, over all processes.")
    ppo_epochs: int = Field(1, ge=1, description="Passes over each rollout.")
    minibatches: int = Field(1, ge=1, description="Optimizer steps per pass; divides `prompts_per_rollout`.")
    max_prompt_seq_len: int = Field(256, ge=1, description="Longest prompt, in tokens; longer ones are counted out.")
    max_answer_seq_len: int = Field(256, ge=1, description="Longest answer, in tokens.")
    temperature: float = Field(1.0, gt=0, description="Sampling temperature, used in every log-probability.")
    kl_coefficient: float = Field(0.1, ge=0, description="Weight of the per-token KL penalty in the reward.")
    gamma: float = Field(1.0, ge=0, le=1, description="Discount.")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="Lambda of generalised advantage estimation.")
    clip_range: float = Field(0.2, gt=0, description="Clip range of the probability ratio.")
    value_clip_range: float = Field(0.2, gt=0, description="Clip range of the value update.")
    reward_clip: float = Field(5.0, gt=0, description="Clip of the normalised score.")
    whiten_advantages: bool = Field(True, description="Mean 0 and variance 1 over all answer tokens of a rollout.")
    missing_eos_penalty: float = Field(1.0, ge=0, description="Subtracted from the score of an answer without end.")
    max_sampling_logprob_error: float = Field(
        1e-4, gt=0, description="Largest difference of sampling and training log-probabilities (fp32)."
    )
    max_first_ratio_error: float = Field(
        1e-6, gt=0, description="Largest |ratio - 1| on the first minibatch of a rollout (fp32)."
    )
    dtype: Dtype = Field("bf16", description="Precision of the weights.")
    actor: ActorOptimization = Field(ActorOptimization(), description="Training of the policy.")
    critic: CriticOptimization = Field(CriticOptimization(), description="Training of the value model.")
    execution: PpoExecution = Field(PpoExecution(), description="How the stage runs.")


class EvaluateExecution(Execution):
    """How an evaluation stage runs."""

    per_device_eval_batch_size: int = Field(64, ge=1, description="Sequences per batch.")


class EvaluationSettings(Section):
    """What the evaluation stages measure."""

    prompts: int = Field(256, ge=1, description="Unseen prompts answered by the policy and by the SFT model.")
    best_of_n: int = Field(4, ge=1, description="Answers per prompt sampled from the SFT model.")
    samples: int = Field(20, ge=0, description="Answers shown in the sample table.")
    seed: int = Field(1234, ge=0, description="Seed of the sampled answers.")
    execution: EvaluateExecution = Field(EvaluateExecution(), description="How the stages run.")


class ExperimentSettings(Section):
    """One experiment; keys not given come from `defaults`."""

    data_path: list[str] = Field([], description="Names under `datasets`, used together.")
    data_split: DataSplit = Field("2,4,4", description="Proportions of the rows for SFT, reward, PPO.")
    split_seed: int = Field(1234, ge=0, description="Seed of the partition; the same for all training seeds.")
    policy: str | None = Field(None, description="Name under `models`: the model that becomes the policy.")
    reward_model: str | None = Field(None, description="Name under `models`: the model that becomes the reward model.")
    sft: SftSettings = Field(SftSettings(), description="Phase 1.")
    reward: RewardSettings = Field(RewardSettings(), description="Phase 2.")
    ppo: PpoSettings = Field(PpoSettings(), description="Phase 3.")
    evaluation: EvaluationSettings = Field(EvaluationSettings(), description="What is measured.")
    seeds: list[Annotated[int, Field(ge=0)]] = Field([1234], min_length=1, description="One run per seed.")
    sweep: dict[str, list[Any]] = Field({}, description="Dotted key -> values; the grid of all combinations is run.")

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds {seeds} repeat a value")
        return seeds

    @field_validator("sweep")
    @classmethod
    def _different_values(cls, sweep: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, values in sweep.items():
            if not values or any(value in values[:index] for index, value in enumerate(values)):
                raise ValueError(f"{key} needs at least one value and none twice")
        return sweep


class Configuration(Section):
    """The whole configuration file."""

    datasets: dict[Name, DatasetSettings] = Field({}, description="Datasets by name.")
    models: dict[Name, ModelSettings] = Field({}, description="Models by name.")
    defaults: ExperimentSettings = Field(ExperimentSettings(), description="Settings shared by all experiments.")
    experiments: dict[Name, ExperimentSettings] = Field({}, description="Experiments by name.")
