"""The published recipes: that they resolve, and that their numbers are those of the sources."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rlhf.config import Plan, Stage, cluster_resources, resolve
from rlhf.config.specification import SplitSettings

RECIPES = Path(__file__).resolve().parents[2] / "config/recipes"
NAMES = ["llama-2-7b", "opt-1.3b", "opt-1.3b-single-gpu", "opt-13b", "opt-6.7b", "opt-66b"]
FOUR = {
    "Dahoas/rm-static",
    "Dahoas/full-hh-rlhf",
    "Dahoas/synthetic-instruct-gptj-pairwise",
    "yitingxie/rlhf-reward-datasets",
}
BATCH_KEYS = {
    "sft": ("global_batch_size", "per_device_train_batch_size"),
    "reward": ("global_batch_size", "per_device_train_batch_size"),
    "ppo": ("prompts_per_rollout", "per_device_training_batch_size"),
}
# DeepSpeed-Chat's scripts: processes, then per phase (per-device batch, accumulation, rate, decay, ZeRO stage).
TABLE = {
    "opt-1.3b-single-gpu": (1, (16, 8, 1e-3, 0.0, 0), (16, 4, 5e-5, 0.1, 0), (16, 2, 9.65e-6, 0.0, 0)),
    "opt-1.3b": (8, (8, 1, 9.65e-6, 0.0, 2), (4, 1, 5e-5, 0.1, 0), (4, 1, 9.65e-6, 0.0, 2)),
    "opt-6.7b": (8, (6, 1, 9.65e-6, 0.0, 3), (4, 1, 5e-5, 0.1, 0), (4, 1, 9.65e-6, 0.1, 3)),
    "opt-13b": (8, (4, 1, 1e-4, 0.0, 3), (4, 1, 5e-5, 0.1, 0), (16, 1, 5e-4, 0.0, 3)),
    "opt-66b": (64, (4, 1, 1e-4, 0.1, 3), (2, 1, 5e-5, 0.1, 0), (4, 1, 5e-4, 0.1, 3)),
    "llama-2-7b": (8, (4, 1, 9.65e-6, 0.0, 3), (8, 1, 9.65e-6, 0.1, 3), (1, 1, 9.65e-6, 0.1, 3)),
}
EPOCHS = {
    "opt-1.3b-single-gpu": 1,
    "opt-1.3b": 16,
    "opt-6.7b": 16,
    "opt-13b": 16,
    "opt-66b": 2,
    "llama-2-7b": 4,
}


def load(name: str) -> Plan:
    return resolve(yaml.safe_load((RECIPES / f"{name}.yaml").read_text()), lambda path, key: "content")


def stage(name: str, kind: str) -> Stage:
    (found,) = load(name).of_kind(kind)
    return found


def test_all_recipes_are_known_here() -> None:
    assert sorted(path.stem for path in RECIPES.glob("*.yaml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_one_experiment_with_one_seed(name: str) -> None:
    (run,) = load(name).runs
    assert (run.experiment, run.seed, run.point) == (name, 1234, {})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", BATCH_KEYS)
def test_the_global_batch_is_a_whole_number_of_steps_on_all_gpus(name: str, kind: str) -> None:
    found = stage(name, kind)
    batch, per_device = getattr(found.settings, BATCH_KEYS[kind][0]), getattr(found.job, BATCH_KEYS[kind][1])
    assert batch % (per_device * found.job.world_size) == 0


@pytest.mark.parametrize("name", NAMES)
def test_batches_rates_decay_and_zero_are_those_of_the_scripts(name: str) -> None:
    processes, *phases = TABLE[name]
    for kind, (per_device, accumulation, rate, decay, zero) in zip(("sft", "reward", "ppo"), phases, strict=True):
        found = stage(name, kind)
        batch_key, per_device_key = BATCH_KEYS[kind]
        trained = found.settings.actor if kind == "ppo" else found.settings
        zero_key = "actor_zero_stage" if kind == "ppo" else "zero_stage"
        assert found.job.world_size == processes, kind
        assert getattr(found.job, per_device_key) == per_device, kind
        assert getattr(found.settings, batch_key) == per_device * processes * accumulation, kind
        assert (trained.learning_rate, trained.weight_decay) == (rate, decay), kind
        assert getattr(found.job, zero_key) == zero, kind


@pytest.mark.parametrize("name", NAMES)
def test_what_all_scripts_have_in_common(name: str) -> None:
    sft, reward, ppo = (stage(name, kind) for kind in ("sft", "reward", "ppo"))
    (split, *_) = load(name).of_kind("split")
    assert split.settings == SplitSettings(data_split="2,4,4", split_seed=1234)
    for found in (sft, reward):
        assert found.settings.max_seq_len == 512
        assert found.settings.lr_scheduler_type == "cosine"
        assert found.settings.num_warmup_steps == 0
        assert found.settings.dtype == "fp16"
    assert sft.settings.num_train_epochs == EPOCHS[name]
    assert reward.settings.num_train_epochs == 1
    assert (ppo.settings.max_prompt_seq_len, ppo.settings.max_answer_seq_len) == (256, 256)
    assert (ppo.settings.num_train_epochs, ppo.settings.iterations) == (1, None)
    assert (ppo.settings.ppo_epochs, ppo.settings.minibatches) == (1, 1)
    assert ppo.settings.critic.learning_rate == 5e-6
    assert ppo.settings.actor.num_warmup_steps == ppo.settings.critic.num_warmup_steps == 100
    assert ppo.settings.dtype == "fp16"


@pytest.mark.parametrize("name", NAMES)
def test_formulas_and_constants_are_those_of_the_source(name: str) -> None:
    assert stage(name, "sft").settings.loss_on == "all"
    assert stage(name, "reward").settings.loss == "token_wise"
    settings = stage(name, "ppo").settings
    expected = {
        "kl_coefficient": 0.1,
        "gamma": 1.0,
        "gae_lambda": 0.95,
        "clip_range": 0.2,
        "value_clip_range": 0.2,
        "reward_clip": 5.0,
        "whiten_advantages": False,
        "missing_eos_penalty": 0.0,
        "normalise_score": False,
        "score_at": "before_eos",
        "ema_decay": 0.992 if name == "opt-1.3b" else None,  # the only script with --enable_ema
    }
    assert {key: getattr(settings, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "rank"), [(name, 128 if name in ("opt-1.3b-single-gpu", "opt-13b", "opt-66b") else 0) for name in NAMES]
)
def test_adapters(name: str, rank: int) -> None:
    for trained in (stage(name, "sft").settings, stage(name, "ppo").settings.actor):
        assert trained.lora_dim == rank
        if rank:  # DeepSpeed-Chat's scale is 1 / rank
            assert (trained.lora_alpha, trained.lora_module_name) == (1.0, "decoder.layers.")
            assert (trained.lora_learning_rate, trained.only_optimize_lora) == (5e-4, False)
    assert stage(name, "reward").settings.lora_dim == stage(name, "ppo").settings.critic.lora_dim == 0


@pytest.mark.parametrize("name", NAMES)
def test_datasets_and_models(name: str) -> None:
    plan = load(name)
    datasets = {found.settings.source.hub for found in plan.of_kind("dataset")}
    models = {found.settings.source.hub for found in plan.of_kind("model")}
    assert datasets == (FOUR if name in ("opt-1.3b", "opt-6.7b", "opt-66b") else {"Dahoas/rm-static"})
    size = name.removeprefix("opt-").removesuffix("-single-gpu")
    llama = {"meta-llama/Llama-2-7b-hf"}
    assert models == (llama if name == "llama-2-7b" else {f"facebook/opt-{size}", "facebook/opt-350m"})


def test_opt_13b_supervised_fine_tuning_number_by_number() -> None:
    sft = stage("opt-13b", "sft")
    assert sft.execution.per_device_train_batch_size == 4
    assert sft.settings.global_batch_size == 32
    assert sft.settings.max_seq_len == 512
    assert sft.settings.learning_rate == 1e-4
    assert sft.settings.weight_decay == 0.0
    assert sft.settings.num_train_epochs == 16
    assert sft.settings.lora_dim == 128
    assert sft.settings.lora_module_name == "decoder.layers."
    assert sft.settings.lr_scheduler_type == "cosine"
    assert sft.settings.num_warmup_steps == 0
    assert sft.settings.dropout is None
    assert sft.execution.zero_stage == 3
    assert sft.execution.gradient_checkpointing is True
    assert sft.execution.offload is False
    assert sft.seed == 1234


def test_opt_13b_reward_model_number_by_number() -> None:
    reward = stage("opt-13b", "reward")
    assert reward.execution.per_device_train_batch_size == 4
    assert reward.settings.global_batch_size == 32
    assert reward.settings.max_seq_len == 512
    assert reward.settings.learning_rate == 5e-5
    assert reward.settings.weight_decay == 0.1
    assert reward.settings.num_train_epochs == 1
    assert reward.settings.dropout == 0.0
    assert reward.settings.lr_scheduler_type == "cosine"
    assert reward.settings.num_warmup_steps == 0
    assert reward.execution.zero_stage == 0
    assert reward.execution.gradient_checkpointing is False
    assert reward.seed == 1234


def test_opt_13b_ppo_number_by_number() -> None:
    ppo = stage("opt-13b", "ppo")
    assert ppo.execution.per_device_generation_batch_size == 16
    assert ppo.execution.per_device_training_batch_size == 16
    assert ppo.settings.prompts_per_rollout == 128
    assert (ppo.settings.max_prompt_seq_len, ppo.settings.max_answer_seq_len) == (256, 256)
    assert ppo.settings.actor.learning_rate == 5e-4
    assert ppo.settings.critic.learning_rate == 5e-6
    assert ppo.settings.actor.weight_decay == ppo.settings.critic.weight_decay == 0.0
    assert ppo.settings.actor.num_warmup_steps == ppo.settings.critic.num_warmup_steps == 100
    assert ppo.settings.actor.lr_scheduler_type == ppo.settings.critic.lr_scheduler_type == "cosine"
    assert ppo.settings.actor.lora_dim == 128
    assert ppo.settings.actor.lora_module_name == "decoder.layers."
    assert ppo.settings.actor.dropout == 0.0
    assert (ppo.execution.actor_zero_stage, ppo.execution.critic_zero_stage) == (3, 3)
    assert ppo.execution.actor_gradient_checkpointing is True
    assert ppo.execution.critic_gradient_checkpointing is False
    assert ppo.execution.offload_reference_model is True
    assert ppo.execution.offload_reward_model is False
    assert ppo.seed == 1234


def test_opt_13b_runs_on_one_node_of_eight_gpus() -> None:
    for kind in ("sft", "reward", "ppo"):
        found = stage("opt-13b", kind)
        assert (found.execution.nodes, found.execution.gpus_per_node) == (1, 8)
        assert cluster_resources(found)["gpu"] == 8


def test_the_largest_recipe_asks_for_eight_whole_nodes() -> None:
    for kind in ("sft", "reward", "ppo"):
        asked = cluster_resources(stage("opt-66b", kind))
        assert stage("opt-66b", kind).execution.nodes == 8
        assert (asked["tasks_per_node"], asked["gres"]) == (8, "gpu:8")


def test_checkpointing_and_offload_are_those_of_the_scripts() -> None:
    checkpointing = {name: stage(name, "sft").execution.gradient_checkpointing for name in NAMES}
    assert checkpointing == {name: name not in ("opt-1.3b", "opt-1.3b-single-gpu") for name in NAMES}
    actor = {name: stage(name, "ppo").execution.actor_gradient_checkpointing for name in NAMES}
    assert actor == {name: name != "opt-1.3b" for name in NAMES}
    assert {name for name in NAMES if stage(name, "reward").execution.offload} == {"llama-2-7b"}
    reference = {name for name in NAMES if stage(name, "ppo").execution.offload_reference_model}
    assert reference == {"llama-2-7b", "opt-13b"}
