"""One flag of DeepSpeed-Chat and what it becomes here: the rows of docs/from-deepspeed-chat.md."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal


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
    default: Any
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
