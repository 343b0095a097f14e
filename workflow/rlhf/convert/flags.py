"""Flags of DeepSpeed-Chat and what each becomes here: the rows of docs/from-deepspeed-chat.md.

Here are those that all three programs share, what DeepSpeed-Chat fixes in its code, and the launcher's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Value = bool | int | float | str | list[str] | None  # of a flag; None: neither given nor a default


@dataclass(frozen=True)
class Flag:
    """A flag of one of DeepSpeed-Chat's programs.

    Attributes:
        name: without dashes.
        kind: type of its value; `bool` is a switch without a value, `list` takes any number of words.
        default: DeepSpeed-Chat's; None where it has none, or where the flag is required.
        keys: keys here, dotted as in config/README.md; none where there is no counterpart.
        note: the difference, or the reason why there is no key; never empty.
        use: `copy`: the value is that of every key; `convert`: `rlhf.convert.configuration` works it out;
            `report`: a script that gives it gets the note as a comment.
    """

    name: str
    kind: type
    default: Value
    keys: tuple[str, ...]
    note: str
    use: Literal["copy", "convert", "report"] = "copy"

    def of(self, phase: str) -> Flag:
        """The flag with `PHASE` in its keys replaced."""
        return replace(self, keys=tuple(key.replace("PHASE", phase) for key in self.keys))


SAME = "The same."
STEPS = "The same, counted in optimizer steps."
DATA = "Names under `datasets`; one list serves all three phases. Public names that are known here need no mapping."
SPLIT = (
    "The same proportions; rows are drawn by another generator, from one seed for all phases, and phases never overlap."
)
CACHE = "Caches are found by the content of what they hold, in `resources/` and `results/`."
OUTPUT = "Results lie in `results/STAGE/ID`; the ID follows from settings and inputs."
RANK = "Set by the launcher."
TENSORBOARD = "Metrics are written to `metrics.jsonl` of each stage, and to the tables and figures of the report."
FP32 = "Always on: log-probabilities and losses are computed in fp32 from the model's logits."
OFFLOAD = "The same. The optimizer is AdamW of torch; without ZeRO (stage 0) nothing is moved, and the key is left out."
MODULES = "The same; a pattern that matches nothing is an error, found when the model is cached."
LORA = "The same rank. DeepSpeed-Chat's scale is 1 / rank: `lora_alpha` 1, which `compatibility: deepspeed_chat` sets."
EOT = (
    "DeepSpeed-Chat only registers the token. Answers end with the tokenizer's own EOS; where another token is to end "
    "them, name it in this key."
)
SEED = "One seed for all phases, and `split_seed` for the partition, so that several seeds can share the data."
CHECKPOINTING = "The same."
LOGS = "Each step is a line of `metrics.jsonl` with the loss over all processes."

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
