"""What DeepSpeed-Chat fixes in its code, DeepSpeed's own flags, and those of the launcher."""

from __future__ import annotations

from rlhf.convert.flag import Flag

_TRAINED = ("sft", "reward", "ppo.actor", "ppo.critic")
_RUNS = ("sft.execution", "reward.execution", "ppo.execution")


def _everywhere(key: str, places: tuple[str, ...] = _TRAINED) -> tuple[str, ...]:
    return tuple(f"{place}.{key}" for place in places)


_PRESET = "Set by `compatibility: deepspeed_chat`; free here."

CONSTANTS = (
    Flag("KL coefficient", float, 0.1, ("ppo.kl_coefficient",), _PRESET + " It may adapt (`ppo.kl_target`)."),
    Flag("KL estimator and place", str, "k1", ("ppo.kl_estimator", "ppo.kl_in"), _PRESET),
    Flag("ratio clip", float, 0.2, ("ppo.clip_range",), _PRESET),
    Flag("value clip", float, 0.2, ("ppo.value_clip_range",), _PRESET),
    Flag("reward clip", float, 5.0, ("ppo.reward_clip",), _PRESET),
    Flag("gamma", float, 1.0, ("ppo.gamma",), _PRESET),
    Flag("lambda", float, 0.95, ("ppo.gae_lambda",), _PRESET),
    Flag("advantage whitening", bool, False, ("ppo.whiten_advantages",), _PRESET + " The default here is on."),
    Flag("reward whitening", bool, False, ("ppo.whiten_rewards",), _PRESET),
    Flag("score normalisation", bool, False, ("ppo.normalise_score",), _PRESET + " The default here is on."),
    Flag("penalty of a cut answer", float, 0.0, ("ppo.missing_eos_penalty",), _PRESET + " The default here is 1."),
    Flag("token of the score", str, "before_eos", ("ppo.score_at",), _PRESET + " The default here is the EOS."),
    Flag("EMA decay", float, 0.992, ("ppo.ema_decay",), "Free here; averaged after each optimizer step."),
    Flag("tokens of the SFT loss", str, "all", ("sft.loss_on",), _PRESET + " The default here is the answer."),
    Flag("reward loss", str, "token_wise", ("reward.loss",), _PRESET + " The default here compares the ends."),
    Flag("Adam beta1", float, 0.9, _everywhere("adam_beta1"), _PRESET),
    Flag("Adam beta2", float, 0.95, _everywhere("adam_beta2"), _PRESET),
    Flag("Adam epsilon", float, 1e-8, _everywhere("adam_epsilon"), _PRESET),
    Flag("gradient clip", float, 1.0, _everywhere("gradient_clipping"), _PRESET),
    Flag("LoRA alpha", float, 1.0, _everywhere("lora_alpha"), _PRESET + " The default here gives a scale of 1."),
    Flag("LoRA dropout", float, 0.0, (), "Always 0 here too."),
    Flag(
        "sampling",
        str,
        "greedy",
        ("ppo.temperature",),
        "Answers are sampled from softmax(logits / temperature), and every log-probability is of that distribution. "
        "There is no top-k and no top-p: what they cut off would still have probability in training.",
    ),
    Flag(
        "fp16 loss-scale window",
        int,
        100,
        _everywhere("deepspeed_config", _RUNS),
        "DeepSpeed's own (1000 steps); `fp16: {loss_scale_window: 100}` in this key changes it.",
    ),
    Flag(
        "ZeRO-3 thresholds",
        str,
        "1e4, 3e7, 3e7",
        _everywhere("deepspeed_config", _RUNS),
        "DeepSpeed's own; `zero_optimization` in this key changes them.",
    ),
    Flag("steps_per_print", int, 10, (), "A progress line every ten seconds, and every step in `metrics.jsonl`."),
    Flag("vocabulary in multiples of", int, 8, (), "The embedding grows only where a padding token is added."),
)

CORE = (
    Flag("deepspeed", bool, False, (), "Always on.", "report"),
    Flag(
        "deepspeed_config",
        str,
        None,
        _everywhere("deepspeed_config", _RUNS),
        "DeepSpeed-Chat does not allow it; here its settings are merged over the generated ones.",
        "report",
    ),
    Flag("deepscale", bool, False, (), "DeepSpeed's former name of `--deepspeed`.", "report"),
    Flag("deepscale_config", str, None, (), "DeepSpeed's former name of `--deepspeed_config`.", "report"),
)

_CLUSTER = "The profile says where a stage runs (`profiles/slurm`)."

LAUNCHER = (
    Flag("num_gpus", int, None, _everywhere("gpus_per_node", _RUNS), "GPUs of each node.", "convert"),
    Flag("num_nodes", int, 1, _everywhere("nodes", _RUNS), "Nodes.", "convert"),
    Flag("master_port", int, None, (), "A port that follows from the stage's ID.", "report"),
    Flag("master_addr", str, None, (), "Found by the launcher, or from Slurm's variables.", "report"),
    Flag("hostfile", str, None, (), _CLUSTER, "report"),
    Flag("include", str, None, (), _CLUSTER, "report"),
    Flag("exclude", str, None, (), _CLUSTER, "report"),
)
