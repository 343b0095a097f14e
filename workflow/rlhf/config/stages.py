"""Settings of the stages: training of the three phases, and evaluation.

Each kind has three classes: `...Settings` determines what a stage computes, `...Execution` says how it runs and is no
part of its identity, and `...Section` is the configuration's section with both.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from rlhf.config.deepspeed import DeepSpeedSettings
from rlhf.config.section import FileSize, GpuType, License, Section, Seed, Share, Variable

Scheduler = Literal["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]
Dtype = Literal["fp32", "bf16", "fp16"]
Role = Literal["actor", "critic"]  # the models that PPO trains
# Mean |ratio - 1| above which old and new log-probabilities are of another computation: one unit in the last place of a
# logit between 16 and 32, where the logits of sampled tokens usually lie. Two kernels that round the same logit apart
# differ by a third of a unit on average: two kinds of attention in bf16 by 0.02 (stories260K) and 0.05 (SmolLM2-135M),
# where a dropout of 0.01 in the residual stream makes 0.5.
HALF_PRECISION_RATIO_ERROR = {"bf16": 2.0**-3, "fp16": 2.0**-6}
NONFINITE: Any = Field(
    "stop",
    description="At a loss or gradient that is not finite: stop and name the rows, or skip the step and count it. "
    "Overflows of fp16 are always skipped.",
)

DEEPSPEED_CONFIG: Any = Field(
    {},
    description="DeepSpeed settings merged over the generated ones, or the path of a JSON file with them; what the "
    "trainer drives itself (batch sizes, optimizer, schedule, precision) is refused.",
)


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

    @property
    def trains_adapters_alone(self) -> bool:
        """Whether the weights that the model starts with stay as they are."""
        return self.lora_dim > 0 and self.only_optimize_lora


class ActorOptimization(Optimization):
    """Training of the policy in PPO."""

    num_warmup_steps: int = Field(100, ge=0, description="Linear warm-up, in optimizer steps.")
    dropout: float = Field(
        0.0, ge=0, le=0, description="Must be 0: dropout makes old and new log-probabilities differ."
    )


class CriticOptimization(ActorOptimization):
    """Training of the value model in PPO."""

    learning_rate: float = Field(5e-6, gt=0, description="Peak learning rate.")


class Saving(Section):
    """How a trained model is saved."""

    max_shard_size: FileSize = Field(
        "5GB",
        description="Largest weight file; a larger model is cut into several with an index.",
    )
    license: License = Field(
        "unknown",
        description="Licence that the model card states, as an identifier such as `apache-2.0`.",
    )


class Execution(Section):
    """How a stage runs. Cannot change a result beyond rounding, so it is no part of a stage's identity."""

    nodes: int = Field(1, ge=1, description="Nodes.")
    gpus_per_node: int = Field(0, ge=0, description="GPUs per node; 0 runs on the CPU.")
    gpu_type: GpuType | None = Field(None, description="Kind of GPU as the cluster names it, as a100; unset takes any.")
    environment: dict[Variable, str | int] = Field(
        {}, description="Environment variables of the stage's processes, as NCCL_SOCKET_IFNAME: ib0, NCCL_DEBUG: INFO."
    )
    wrapper: list[str] = Field(
        [], description="Words in front of the training program, as [apptainer, exec, --nv, image.sif]."
    )
    threads: int = Field(1, ge=1, description="CPU threads of each process.")
    runtime: int = Field(60, ge=1, description="Time limit, in minutes.")
    mem_mb: int | None = Field(None, ge=1, description="Host memory per node, in MB; unset: as the memory plan says.")
    collective_timeout: int = Field(30, ge=1, description="Minutes a process waits for another before it gives up.")

    @property
    def world_size(self) -> int:
        """Number of processes: one per GPU, or one on the CPU."""
        return self.nodes * max(1, self.gpus_per_node)


class TrainingExecution(Execution):
    """How a stage runs that trains."""

    deepspeed_config: DeepSpeedSettings = DEEPSPEED_CONFIG
    checkpoint_minutes: float | None = Field(
        10.0, gt=0, description="Save the training state after so many minutes; null: not by time."
    )
    checkpoint_steps: int | None = Field(
        None, ge=1, description="Save the training state after so many steps (PPO: iterations); unset: not by steps."
    )
    keep_state: bool = Field(False, description="Keep `state/STAGE/ID` after the stage is done.")


class SupervisedExecution(TrainingExecution):
    """How an SFT or reward stage runs."""

    per_device_train_batch_size: int = Field(
        8, ge=1, description="Sequences (SFT) or groups of answers to one prompt (reward) per micro-batch."
    )
    per_device_eval_batch_size: int = Field(16, ge=1, description="The same in evaluation.")
    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="ZeRO stage; in bf16 and fp16, 0 and 1 run as 2.")
    offload: bool = Field(False, description="Keep optimizer state (and ZeRO-3 parameters) on the host; needs ZeRO.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass.")
    saving: Saving = Field(Saving(), description="How the model is saved.")


class RewardExecution(SupervisedExecution):
    """How a reward stage runs."""

    share_prompt: bool = Field(
        False,
        description="Compute the prompt once for all its answers, in one sequence with a mask; not with `token_wise`.",
    )


class SftExecution(SupervisedExecution):
    """How an SFT stage runs."""

    packing: bool = Field(
        False,
        description="Put several rows into one sequence of at most `max_seq_len` tokens, each attending to itself "
        "only; batch sizes per device then count such sequences.",
    )


class PpoExecution(TrainingExecution):
    """How a PPO stage runs."""

    per_device_generation_batch_size: int = Field(16, ge=1, description="Prompts per generation batch.")
    per_device_training_batch_size: int = Field(16, ge=1, description="Answers per scoring and training micro-batch.")
    actor_zero_stage: Literal[0, 1, 2, 3] = Field(0, description="ZeRO stage of the policy; see `sft`.")
    critic_zero_stage: Literal[0, 1, 2, 3] = Field(0, description="ZeRO stage of the value model; see `sft`.")
    actor_gradient_checkpointing: bool = Field(False, description="Recompute the policy's activations.")
    critic_gradient_checkpointing: bool = Field(False, description="Recompute the value model's activations.")
    offload: bool = Field(False, description="Keep optimizer states (and ZeRO-3 parameters) on the host; needs ZeRO.")
    reference: Literal["auto", "adapters_off", "separate"] = Field(
        "auto",
        description="The reference is the policy with its adapters off where only adapters train (no second copy), "
        "else a model of its own.",
    )
    offload_reference_model: bool = Field(False, description="Keep the reference model in host memory.")
    offload_reward_model: bool = Field(False, description="Keep the reward model in host memory.")
    enable_hybrid_engine: bool = Field(
        False, description="DeepSpeed's hybrid engine. Refused: with the pinned versions no model family works with it."
    )
    saving: Saving = Field(Saving(), description="How the model is saved.")

    def zero_stage(self, role: Role) -> int:
        """ZeRO stage of a trained model."""
        return self.actor_zero_stage if role == "actor" else self.critic_zero_stage

    def gradient_checkpointing(self, role: Role) -> bool:
        """Whether a trained model's activations are recomputed."""
        return self.actor_gradient_checkpointing if role == "actor" else self.critic_gradient_checkpointing

    def offloads_frozen(self, role: Role) -> bool:
        """Whether a trained model's frozen twin is kept in host memory: the reference, or the reward model."""
        return self.offload_reference_model if role == "actor" else self.offload_reward_model


class SupervisedSettings(Optimization):
    """Training on rows: SFT and the reward model."""

    global_batch_size: int = Field(
        32, ge=1, description="Sequences (SFT) or groups of answers to one prompt (reward) per optimizer step."
    )
    num_train_epochs: int = Field(1, ge=1, description="Passes over the training data.")
    max_seq_len: int = Field(
        512, ge=2, description="Longest prompt + answer, in tokens; longer rows are left out; the log says how many."
    )
    max_eval_rows: int = Field(
        1000,
        ge=1,
        description="Unseen rows used to evaluate, at most: a random sample in which every dataset has its share, the "
        "same for runs of all seeds.",
    )
    eval_interval: int = Field(0, ge=0, description="Steps between evaluations in an epoch; 0: at its end only.")
    early_stopping_patience: int | None = Field(
        None, ge=1, description="Stop after so many evaluations without a lower unseen loss; unset: never."
    )
    keep_best: bool = Field(False, description="End with the weights of the lowest unseen loss, not with the last.")
    on_nonfinite: Literal["stop", "skip"] = NONFINITE
    dtype: Dtype = Field("bf16", description="Precision of the weights in training.")


class SftSettings(SupervisedSettings):
    """Supervised fine-tuning on prompt + chosen."""

    loss_on: Literal["completion", "all"] = Field(
        "completion", description="Tokens that the loss counts: those of the answer, or (as DeepSpeed-Chat) all."
    )


class SftSection(SftSettings):
    """Supervised fine-tuning on prompt + chosen, and how it runs."""

    execution: SftExecution = Field(SftExecution(), description="How the stage runs.")


class RewardSettings(SupervisedSettings):
    """Reward model: Bradley-Terry loss on all comparisons among the answers to a prompt."""

    loss: Literal["last_token", "token_wise"] = Field(
        "last_token",
        description="Compare the scores at the answers' ends, or (as DeepSpeed-Chat) at each position from the first "
        "difference on.",
    )
    margin_coefficient: float = Field(
        0.0,
        ge=0,
        description="Factor of the margin by which the better answer shall win (as Llama 2): the `margin` of a pair, "
        "or the difference of two ratings; 0: none.",
    )
    start_from: Literal["pretrained", "sft"] = Field(
        "pretrained", description="Backbone: the model `reward_model`, or the SFT model of the same run."
    )

    learning_rate: float = Field(5e-5, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.1, ge=0, description="AdamW decay; not applied to biases and norms.")


class RewardSection(RewardSettings):
    """The reward model, and how its training runs."""

    execution: RewardExecution = Field(RewardExecution(), description="How the stage runs.")


class PpoSettings(Section):
    """PPO against the reward model, with a KL penalty towards the SFT model."""

    num_train_epochs: int = Field(1, ge=1, description="Passes over the prompts, unless `iterations` is given.")
    iterations: int | None = Field(None, ge=1, description="Rollouts; unset follows from `num_train_epochs`.")
    prompts_per_rollout: int = Field(64, ge=1, description="Prompts per rollout, over all processes.")
    ppo_epochs: int = Field(1, ge=1, description="Passes over each rollout.")
    minibatches: int = Field(1, ge=1, description="Optimizer steps per pass; divides `prompts_per_rollout`.")
    max_prompt_seq_len: int = Field(
        256, ge=1, description="Longest prompt, in tokens; longer ones are left out; the log says how many."
    )
    max_answer_seq_len: int = Field(256, ge=1, description="Longest answer, in tokens.")
    temperature: float = Field(1.0, gt=0, description="Sampling temperature, used in every log-probability.")
    answers_per_prompt: int = Field(1, ge=1, description="Answers sampled for each prompt; `rloo` and `grpo` need 2.")
    advantage_estimator: Literal["gae", "rloo", "grpo"] = Field(
        "gae",
        description="`gae` needs a value model; `rloo` (leave-one-out baseline) and `grpo` (score relative to the "
        "prompt's other answers) do not.",
    )
    kl_coefficient: float = Field(0.1, ge=0, description="Weight of the KL penalty: where adaptive, at the start.")
    kl_estimator: Literal["k1", "k2", "k3"] = Field(
        "k1", description="Per-token estimator: log ratio d; d^2 / 2; exp(-d) - 1 + d."
    )
    kl_in: Literal["reward", "loss"] = Field("reward", description="Subtracted from the reward, or added to the loss.")
    kl_target: float | None = Field(
        None, gt=0, description="KL in nats per answer that the coefficient adapts to; unset keeps it fixed."
    )
    kl_horizon: int = Field(10_000, ge=1, description="Answers over which an adaptive coefficient moves.")
    gamma: float = Field(1.0, ge=0, le=1, description="Discount.")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="Lambda of generalised advantage estimation.")
    clip_range: float = Field(0.2, gt=0, description="Clip range of the probability ratio.")
    value_clip_range: float | None = Field(0.2, gt=0, description="Clip range of the value update; null: none.")
    score_at: Literal["eos", "before_eos"] = Field(
        "eos",
        description="Token at which a finished answer's score is read: its EOS, or (as DeepSpeed-Chat) the one before. "
        "A cut answer is read at its last token.",
    )
    reward_clip: float = Field(5.0, gt=0, description="Clip of the score, after any normalisation.")
    normalise_score: bool = Field(True, description="Use the reward model's stored mean and deviation.")
    whiten_rewards: bool = Field(
        False, description="Divide token rewards by their deviation over the rollout; the mean stays."
    )
    whiten_advantages: bool = Field(True, description="Mean 0 and variance 1 over all answer tokens of a rollout.")
    missing_eos_penalty: float = Field(1.0, ge=0, description="Subtracted from the score of an answer without end.")
    critic_warmup_iterations: int = Field(
        0, ge=0, description="First iterations in which only the value model is trained."
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="Decay of an average of the policy's weights, saved beside it; unset: none."
    )
    ptx_coefficient: float = Field(
        0.0, ge=0, description="Weight of the SFT loss mixed into the policy's (InstructGPT's pretraining mix)."
    )
    ptx_rows_per_step: int = Field(32, ge=1, description="SFT rows mixed into each optimizer step.")
    max_sampling_logprob_error: float = Field(
        1e-4, gt=0, description="Largest difference of sampling and training log-probabilities (fp32)."
    )
    max_first_ratio_error: float = Field(
        1e-6,
        gt=0,
        description="Largest |ratio - 1| on the first minibatch of a rollout (fp32). In half precision the mean is "
        "limited instead, to 1/8 (bf16) or 1/64 (fp16): one unit in the last place of a logit between 16 and 32.",
    )
    on_nonfinite: Literal["stop", "skip"] = NONFINITE
    dtype: Dtype = Field("bf16", description="Precision of the weights.")
    actor: ActorOptimization = Field(ActorOptimization(), description="Training of the policy.")
    critic: CriticOptimization = Field(CriticOptimization(), description="Training of the value model.")

    def optimization(self, role: Role) -> ActorOptimization:
        """Training of one of the models."""
        return self.actor if role == "actor" else self.critic


class PpoSection(PpoSettings):
    """PPO, and how it runs."""

    execution: PpoExecution = Field(PpoExecution(), description="How the stage runs.")

    @property
    def adapters_off(self) -> bool:
        """Whether the reference is the policy with its adapters off."""
        return adapters_off(self, self.execution)


def adapters_off(settings: PpoSettings, execution: PpoExecution) -> bool:
    """Whether the reference is the policy with its adapters off, and not a second model.

    It can be where adapters alone train: without them the policy is then the SFT model still.
    """
    return execution.reference != "separate" and settings.actor.trains_adapters_alone


class EvaluateExecution(Execution):
    """How the evaluation stages run: each loads one model after the other."""

    per_device_eval_batch_size: int = Field(64, ge=1, description="Sequences per batch, sampled or scored.")
    zero_stage: Literal[0, 3] = Field(
        0, description="0: each process has the whole model; 3: they share its weights, and gather them layer by layer."
    )
    deepspeed_config: DeepSpeedSettings = DEEPSPEED_CONFIG


AnyTrainingExecution = SupervisedExecution | PpoExecution
JobExecution = AnyTrainingExecution | EvaluateExecution


class Answered(Section):
    """Whose answers are compared."""

    prompts: int = Field(256, ge=1, description="Unseen prompts answered by the policy and by the SFT model.")


class EvaluationSettings(Answered):
    """What the evaluation stages measure."""

    best_of_n: int = Field(4, ge=1, description="Answers per prompt sampled from the SFT model.")


class EvaluationSection(EvaluationSettings):
    """What the evaluation stages measure and show, and how they run."""

    dtype: Dtype | None = Field(
        None,
        description="Precision of the models that are evaluated; unset: that of the training: `sft.dtype` for the loss "
        "of the SFT model, `reward.dtype` for the reward model, and `ppo.dtype` for sampled answers.",
    )
    samples: int = Field(20, ge=0, description="Answers shown in the sample table.")
    seed: Seed = Field(1234, description="Seed of the sampled answers.")
    execution: EvaluateExecution = Field(EvaluateExecution(), description="How the stages run.")
