"""The flags of DeepSpeed-Chat's three programs: step 1 (SFT), step 2 (reward model) and step 3 (PPO)."""

from __future__ import annotations

from rlhf.convert import flags as text
from rlhf.convert.flags import Flag

_BATCH = ("PHASE.global_batch_size", "PHASE.execution.per_device_train_batch_size")
_RUN = "PHASE.execution."

_SHARED = (
    Flag("data_path", list, ["Dahoas/rm-static"], ("data_path", "datasets.NAME.source.hub"), text.DATA, "convert"),
    Flag("data_split", str, "2,4,4", ("data_split",), text.SPLIT, "convert"),
    Flag("data_output_path", str, None, (), text.CACHE, "report"),
    Flag(
        "per_device_train_batch_size",
        int,
        16,
        _BATCH,
        "`global_batch_size` is this x GPUs x accumulation; the value per device decides speed and memory only.",
        "convert",
    ),
    Flag("per_device_eval_batch_size", int, 16, (_RUN + "per_device_eval_batch_size",), text.SAME),
    Flag(
        "max_seq_len",
        int,
        512,
        ("PHASE.max_seq_len",),
        "Longer rows are left out and counted, not cut (a cut row has lost its end); nothing is padded to this length.",
    ),
    Flag("weight_decay", float, 0.0, ("PHASE.weight_decay",), "The same: not applied to biases and norms."),
    Flag("num_train_epochs", int, 1, ("PHASE.num_train_epochs",), "The same; each pass has an order of its own."),
    Flag(
        "gradient_accumulation_steps",
        int,
        1,
        ("PHASE.global_batch_size",),
        "A factor of `global_batch_size`; the accumulation follows from it, the GPUs and the size per device.",
        "convert",
    ),
    Flag("lr_scheduler_type", str, "cosine", ("PHASE.lr_scheduler_type",), text.SAME),
    Flag("num_warmup_steps", int, 0, ("PHASE.num_warmup_steps",), text.STEPS),
    Flag("output_dir", str, None, (), text.OUTPUT, "report"),
    Flag("seed", int, 1234, ("seeds", "split_seed"), text.SEED, "convert"),
    Flag("local_rank", int, -1, (), text.RANK, "report"),
    Flag("gradient_checkpointing", bool, False, (_RUN + "gradient_checkpointing",), text.CHECKPOINTING),
    Flag("dropout", float, None, ("PHASE.dropout",), "The same: unset keeps the model's own."),
    Flag("offload", bool, False, (_RUN + "offload",), text.OFFLOAD, "convert"),
    Flag("dtype", str, "fp16", ("PHASE.dtype",), "The same, and fp32."),
    Flag("zero_stage", int, 0, (_RUN + "zero_stage",), text.SAME),
    Flag("lora_dim", int, 0, ("PHASE.lora_dim",), text.LORA),
    Flag("lora_module_name", str, "decoder.layers.", ("PHASE.lora_module_name",), text.MODULES),
    Flag("only_optimize_lora", bool, False, ("PHASE.only_optimize_lora",), "The same; a value head trains on."),
    Flag("lora_learning_rate", float, 5e-4, ("PHASE.lora_learning_rate",), text.SAME),
    Flag("compute_fp32_loss", bool, False, (), text.FP32, "report"),
    Flag("enable_tensorboard", bool, False, (), text.TENSORBOARD, "report"),
    Flag("tensorboard_path", str, None, (), text.TENSORBOARD, "report"),
    Flag("add_eot_token", bool, False, ("models.NAME.eos_token",), text.EOT, "report"),
)

_SFT_ONLY = (
    Flag(
        "model_name_or_path",
        str,
        None,
        ("policy", "models.NAME.source.hub", "models.NAME.source.path"),
        "A name under `models`.",
        "convert",
    ),
    Flag("learning_rate", float, 1e-3, ("sft.learning_rate",), "The same; the default here is 9.65e-6."),
    Flag(
        "sft_only_data_path",
        list,
        [],
        ("datasets.NAME.data_split",),
        "A dataset with `data_split: 1,0,0` serves SFT only.",
        "convert",
    ),
    Flag("eot_token", str, "<|endoftext|>", ("models.NAME.eos_token",), text.EOT, "report"),
    Flag("print_loss", bool, False, (), text.LOGS, "report"),
)

_REWARD_ONLY = (
    Flag(
        "model_name_or_path",
        str,
        None,
        ("reward_model", "models.NAME.source.hub", "models.NAME.source.path"),
        "A name under `models`; `reward.start_from: sft` takes the SFT model of the run.",
        "convert",
    ),
    Flag("learning_rate", float, 5e-5, ("reward.learning_rate",), text.SAME),
    Flag(
        "num_padding_at_beginning",
        int,
        1,
        (),
        "Padding is known by length, not by its id, so the end of an answer is found for every model.",
        "report",
    ),
    Flag("eval_interval", int, 0, (), "Unseen rows are evaluated before training and after each epoch.", "report"),
    Flag(
        "eval_iters",
        int,
        100,
        ("reward.max_eval_rows",),
        "Counted in rows, the same rows whatever the GPUs and batch sizes.",
        "report",
    ),
)

SFT: tuple[Flag, ...] = tuple(item.of("sft") for item in (*_SHARED, *_SFT_ONLY))
REWARD: tuple[Flag, ...] = tuple(item.of("reward") for item in (*_SHARED, *_REWARD_ONLY))

_HYBRID = "Belongs to the hybrid engine, which works with no model family here."
_DROPOUT = "Must be 0: dropout would make old and new log-probabilities, or values, differ. (Unset, OPT has 0.1 there.)"
_ROLLOUT = ("ppo.prompts_per_rollout", "ppo.minibatches")
_MIX = "Rows of the SFT phase are mixed in, not a second corpus: the mean loss per answer token, times the coefficient."
_SAMPLES = (
    "Sampled answers are shown in the report and in `samples.jsonl`; a rollout's statistics are in `metrics.jsonl`."
)
_TEST = "`ppo.iterations` ends a run after a number of rollouts."

MODELS_AND_DATA = (
    Flag("data_path", list, ["Dahoas/rm-static"], ("data_path", "datasets.NAME.source.hub"), text.DATA, "convert"),
    Flag("data_split", str, "2,4,4", ("data_split",), text.SPLIT, "convert"),
    Flag("data_output_path", str, None, (), text.CACHE, "report"),
    Flag("unsupervised_dataset_name", str, None, ("ppo.ptx_coefficient", "ppo.ptx_rows_per_step"), _MIX, "convert"),
    Flag("unsupervised_dataset_config_name", str, None, (), _MIX, "convert"),
    Flag("unsup_coef", float, 27.8, ("ppo.ptx_coefficient",), _MIX, "convert"),
    Flag(
        "actor_model_name_or_path", str, None, ("policy",), "The SFT model of the same run, found by its ID.", "report"
    ),
    Flag(
        "critic_model_name_or_path",
        str,
        None,
        ("reward_model",),
        "The reward model of the same run, which also starts the value model.",
        "report",
    ),
    Flag("num_padding_at_beginning", int, 1, (), "Padding is known by length, not by its id.", "report"),
)

ROLLOUT = (
    Flag(
        "per_device_generation_batch_size",
        int,
        16,
        ("ppo.prompts_per_rollout", _RUN + "per_device_generation_batch_size"),
        "`prompts_per_rollout` is this x GPUs x `generation_batches`; the value per device decides speed and memory.",
        "convert",
    ),
    Flag(
        "per_device_training_batch_size",
        int,
        16,
        ("ppo.minibatches", _RUN + "per_device_training_batch_size"),
        "`minibatches` counts the optimizer steps of a pass; the value per device decides speed and memory only.",
        "convert",
    ),
    Flag("generation_batches", int, 1, _ROLLOUT, "A factor of `prompts_per_rollout`.", "convert"),
    Flag("ppo_epochs", int, 1, ("ppo.ppo_epochs",), "The same; each pass has an order of its own."),
    Flag(
        "max_prompt_seq_len",
        int,
        256,
        ("ppo.max_prompt_seq_len",),
        "The same: longer prompts are left out and counted; shorter ones are padded to the longest of a batch only.",
    ),
    Flag("max_answer_seq_len", int, 256, ("ppo.max_answer_seq_len",), text.SAME),
    Flag("print_answers", bool, False, ("evaluation.samples",), _SAMPLES, "report"),
    Flag("print_answers_interval", int, 1, (), _SAMPLES, "report"),
)

OPTIMISATION = (
    Flag("actor_learning_rate", float, 9.65e-6, ("ppo.actor.learning_rate",), text.SAME),
    Flag("critic_learning_rate", float, 5e-6, ("ppo.critic.learning_rate",), text.SAME),
    Flag("actor_weight_decay", float, 0.0, ("ppo.actor.weight_decay",), text.SAME),
    Flag("critic_weight_decay", float, 0.0, ("ppo.critic.weight_decay",), text.SAME),
    Flag("num_train_epochs", int, 1, ("ppo.num_train_epochs",), "The same, unless `ppo.iterations` is given."),
    Flag(
        "lr_scheduler_type", str, "cosine", ("ppo.actor.lr_scheduler_type", "ppo.critic.lr_scheduler_type"), text.SAME
    ),
    Flag("gradient_accumulation_steps", int, 1, _ROLLOUT, "Micro-batches of one optimizer step, as above.", "convert"),
    Flag("num_warmup_steps", int, 100, ("ppo.actor.num_warmup_steps", "ppo.critic.num_warmup_steps"), text.STEPS),
    Flag(
        "seed",
        int,
        None,
        ("seeds", "split_seed"),
        text.SEED + " Without one, DeepSpeed-Chat draws step 3's rows at random.",
        "convert",
    ),
    Flag("actor_dropout", float, None, ("ppo.actor.dropout",), _DROPOUT, "convert"),
    Flag("critic_dropout", float, None, ("ppo.critic.dropout",), _DROPOUT, "convert"),
    Flag("actor_lora_dim", int, 0, ("ppo.actor.lora_dim",), text.LORA),
    Flag("critic_lora_dim", int, 0, ("ppo.critic.lora_dim",), text.LORA),
    Flag("actor_lora_module_name", str, "decoder.layers.", ("ppo.actor.lora_module_name",), text.MODULES),
    Flag("critic_lora_module_name", str, "decoder.layers.", ("ppo.critic.lora_module_name",), text.MODULES),
    Flag(
        "only_optimize_lora",
        bool,
        False,
        ("ppo.actor.only_optimize_lora", "ppo.critic.only_optimize_lora"),
        "One key for each model; the value head trains on (DeepSpeed-Chat freezes it in step 3).",
    ),
    Flag("actor_lora_learning_rate", float, 5e-4, ("ppo.actor.lora_learning_rate",), text.SAME),
    Flag("critic_lora_learning_rate", float, 5e-4, ("ppo.critic.lora_learning_rate",), text.SAME),
    Flag(
        "enable_ema",
        bool,
        False,
        ("ppo.ema_decay",),
        "The decay, 0.992 there; trained weights only, in fp32.",
        "convert",
    ),
)

RUNNING = (
    Flag("dtype", str, "fp16", ("ppo.dtype",), "The same, and fp32."),
    Flag("actor_zero_stage", int, 0, (_RUN + "actor_zero_stage",), text.SAME),
    Flag("critic_zero_stage", int, 0, (_RUN + "critic_zero_stage",), text.SAME),
    Flag("actor_gradient_checkpointing", bool, False, (_RUN + "actor_gradient_checkpointing",), text.CHECKPOINTING),
    Flag("critic_gradient_checkpointing", bool, False, (_RUN + "critic_gradient_checkpointing",), text.CHECKPOINTING),
    Flag("offload", bool, False, (_RUN + "offload",), text.OFFLOAD, "convert"),
    Flag("offload_reference_model", bool, False, (_RUN + "offload_reference_model",), text.SAME),
    Flag("offload_reward_model", bool, False, (_RUN + "offload_reward_model",), text.SAME),
    Flag(
        "enable_hybrid_engine",
        bool,
        False,
        (_RUN + "enable_hybrid_engine",),
        "Refused when the configuration is read: it works with no model family here (see below).",
        "report",
    ),
    Flag("unpin_actor_parameters", bool, False, (), _HYBRID, "report"),
    Flag("release_inference_cache", bool, False, (), _HYBRID, "report"),
    Flag("inference_tp_size", int, 1, (), _HYBRID, "report"),
    Flag("tp_gather_partition_size", int, 8, (), _HYBRID, "report"),
    Flag(
        "enable_mixed_precision_lora",
        bool,
        False,
        (),
        "Frozen weights are quantised there, which changes what is computed; no stage does that here.",
        "report",
    ),
    Flag("compute_fp32_loss", bool, False, (), text.FP32, "report"),
    Flag(
        "align_overflow",
        bool,
        False,
        (),
        "In fp16 each engine skips its own overflowing step; bf16 has no overflow to align.",
        "report",
    ),
    Flag("preprocessing_num_workers", int, None, (), "It is for the second corpus, which is not read here.", "report"),
    Flag("output_dir", str, None, (), text.OUTPUT, "report"),
    Flag("local_rank", int, -1, (), text.RANK, "report"),
    Flag("enable_tensorboard", bool, False, (), text.TENSORBOARD, "report"),
    Flag("tensorboard_path", str, None, (), text.TENSORBOARD, "report"),
    Flag("add_eot_token", bool, False, ("models.NAME.eos_token",), text.EOT, "report"),
    Flag("enable_test_mode", bool, False, ("ppo.iterations",), _TEST, "report"),
    Flag("test_stop_step", int, 0, ("ppo.iterations",), _TEST, "report"),
)

PPO: tuple[Flag, ...] = tuple(item.of("ppo") for item in (*MODELS_AND_DATA, *ROLLOUT, *OPTIMISATION, *RUNNING))

PROGRAMS: dict[str, tuple[Flag, ...]] = {"sft": SFT, "reward": REWARD, "ppo": PPO}
