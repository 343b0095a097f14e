"""The flags of step 1 (SFT) and step 2 (reward model)."""

from __future__ import annotations

from rlhf.convert import flag as text
from rlhf.convert.flag import Flag

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
