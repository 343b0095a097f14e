"""What is run: models, stages and sizes. The only place that writes configurations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

OPT = {"model_type": "opt", "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 2, "activation_function": "relu"}
PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"  # with the ids that OPT gives them


def _opt(layers: int, width: int, heads: int, embedding: int, **more: Any) -> dict[str, Any]:
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "ffn_dim": 4 * width, "num_attention_heads": heads}
    # The one size whose embedding is narrower also normalises after its layers.
    narrow = {"word_embed_proj_dim": embedding, "do_layer_norm_before": embedding == width}
    return OPT | sizes | narrow | more


PUBLISHED = {
    "opt-1300m": _opt(24, 2048, 32, 2048),
    "opt-350m": _opt(24, 1024, 16, 512),
    "opt-125m": _opt(12, 768, 12, 768),
}
MINIATURE = {"opt-large": _opt(2, 32, 2, 32, max_position_embeddings=64), "opt-small": _opt(2, 32, 2, 16)}


@dataclass(frozen=True)
class Case:
    """One training stage that is run, measured and planned.

    Args:
        kind: `sft`, `reward` or `ppo`.
        policy: name of a model.
        reward_model: name of a model; for `sft` it is not used.
        settings: of the stage, beside those of its scale.
        note: what is special about it.
        seconds: time it may take, at most.
    """

    kind: str
    policy: str
    reward_model: str
    settings: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    seconds: float = 90.0

    @property
    def name(self) -> str:
        """For people, folders and `--only`."""
        models = {"sft": [self.policy], "reward": [self.reward_model], "ppo": [self.policy, self.reward_model]}
        return "-".join([self.kind, *models[self.kind], *([self.note.replace(" ", "-")] if self.note else [])])


@dataclass(frozen=True)
class Scale:
    """The whole measurement, for a GPU or in miniature.

    Args:
        models: name -> configuration.
        vocabulary: tokens.
        prompt: tokens of the longest prompt.
        answer: tokens of the longest answer, EOS included.
        batch: sequences of an SFT step; half as many pairs of a reward step.
        samples: prompts of a rollout.
        micro: answers of a training micro-batch in PPO.
        steps: of SFT; a few less of reward.
        cases: in the order of their worth.
        plain: name of the model that the plain loops train and sample.
    """

    models: dict[str, dict[str, Any]]
    vocabulary: int
    prompt: int
    answer: int
    batch: int
    samples: int
    micro: int
    steps: int
    cases: tuple[Case, ...]
    plain: str

    @property
    def rows(self) -> tuple[int, int, int]:
        """Training rows of the three phases."""
        return self.steps * self.batch, self.steps * self.batch // 2, 2 * self.samples

    @property
    def unseen(self) -> int:
        """Rows to evaluate on."""
        return self.batch


BIG, MIDDLE, SMALL = PUBLISHED
FULL = Scale(
    models=PUBLISHED,
    vocabulary=50272,
    prompt=256,
    answer=256,
    batch=16,
    samples=64,
    micro=16,
    steps=12,
    cases=(
        Case("sft", BIG, MIDDLE),
        Case("reward", BIG, MIDDLE),
        Case("ppo", BIG, MIDDLE, {"iterations": 3}, seconds=150),
        Case("reward", BIG, BIG),
        Case("sft", SMALL, SMALL),
        Case("ppo", SMALL, SMALL, {"iterations": 2}),
        Case("sft", MIDDLE, SMALL),
        Case("sft", BIG, MIDDLE, {"execution": {"gradient_checkpointing": True}}, "checkpointing"),
        Case("ppo", MIDDLE, MIDDLE, {"iterations": 2}),
        Case("sft", BIG, MIDDLE, {"execution": {"zero_stage": 3}}, "zero 3"),
        Case("sft", BIG, MIDDLE, {"execution": {"zero_stage": 2}}, "zero 2"),
        Case("sft", BIG, MIDDLE, {"lora_dim": 128, "only_optimize_lora": True}, "lora"),
        Case("sft", SMALL, SMALL, {"execution": {"zero_stage": 2, "offload": True}}, "offload"),
    ),
    plain=BIG,
)
TINY = Scale(
    models=MINIATURE,
    vocabulary=200,
    prompt=16,
    answer=16,
    batch=4,
    samples=4,
    micro=2,
    steps=4,
    cases=(
        Case("sft", "opt-large", "opt-small"),
        Case("reward", "opt-large", "opt-small"),
        Case("ppo", "opt-large", "opt-small", {"iterations": 2}),
        Case("sft", "opt-large", "opt-small", {"execution": {"zero_stage": 3}}, "zero 3"),
    ),
    plain="opt-large",
)
SCALES = {"full": FULL, "tiny": TINY}


def configuration(scale: Scale, rows: str, gpus: int) -> dict[str, Any]:
    """A configuration with one experiment for each case.

    Args:
        scale: what is run.
        rows: file of the dataset, as `material.prepare` writes it.
        gpus: 1, or 0 on the CPU.
    """
    execution = {"gpus_per_node": gpus, "checkpoint_minutes": None}
    supervised = {
        "max_seq_len": scale.prompt + scale.answer,
        "execution": {
            **execution,
            "per_device_train_batch_size": scale.batch,
            "per_device_eval_batch_size": scale.batch,
        },
    }
    pairs = scale.batch // 2
    return {
        "datasets": {"rows": {"source": {"path": rows, "eval_share": scale.unseen / (sum(scale.rows) + scale.unseen)}}},
        "models": {name: {"source": {"path": name}} for name in scale.models},
        "defaults": {
            "data_path": ["rows"],
            "data_split": ",".join(map(str, scale.rows)),
            "sft": supervised | {"global_batch_size": scale.batch},
            "reward": {
                **supervised,
                "global_batch_size": pairs,
                "execution": supervised["execution"]
                | {"per_device_train_batch_size": pairs, "per_device_eval_batch_size": pairs},
            },
            "ppo": {
                "prompts_per_rollout": scale.samples,
                "max_prompt_seq_len": scale.prompt,
                "max_answer_seq_len": scale.answer,
                "actor": {"num_warmup_steps": 0},
                "critic": {"num_warmup_steps": 0},
                "execution": {
                    **execution,
                    "per_device_generation_batch_size": scale.samples,
                    "per_device_training_batch_size": scale.micro,
                },
            },
        },
        "experiments": {
            case.name: {"policy": case.policy, "reward_model": case.reward_model, case.kind: case.settings}
            for case in scale.cases
        },
    }
