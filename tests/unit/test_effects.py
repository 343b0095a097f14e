"""Every key of the schema gives exactly the stages that use it another ID, or none, or is refused.

The keys are those that the schema has: a new one must be put into `USED_BY`, or the first test fails. That a key which
is said to have no effect has none, and that others have one, is measured in tests/oracle/test_effects.py.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from rlhf.config import dumped, resolve
from rlhf.config.effects import without_effect
from rlhf.config.expand import deep_merge, expand
from rlhf.config.schema import DatasetSection, ExperimentSettings, ModelSection
from rlhf.config.section import Section
from rlhf.config.specification import ResolvedPpo, ResolvedReward, ResolvedSft
from rlhf.errors import UserError

SFT = frozenset({"sft", "evaluate_sft", "baseline", "ppo", "evaluate_ppo"})
REWARD = frozenset({"reward", "evaluate_reward", "baseline", "ppo", "evaluate_ppo"})
PPO = frozenset({"ppo", "evaluate_ppo"})
ANSWERED = frozenset({"baseline", "evaluate_ppo"})
EVALUATED = ANSWERED | {"evaluate_sft", "evaluate_reward"}
TRAINED = SFT | REWARD
DATASET = TRAINED | {"dataset"}
NOTHING: frozenset[str] = frozenset()

OPTIMIZATION = (
    "learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon gradient_clipping lr_scheduler_type "
    "num_warmup_steps dropout lora_dim lora_alpha lora_module_name lora_learning_rate only_optimize_lora"
)
SUPERVISED = (
    f"{OPTIMIZATION} global_batch_size num_train_epochs max_seq_len max_eval_rows eval_interval "
    "early_stopping_patience keep_best on_nonfinite dtype"
)
EXECUTION = "nodes gpus_per_node gpu_type environment wrapper threads runtime mem_mb"
TRAINING = (
    f"{EXECUTION} deepspeed_config checkpoint_minutes checkpoint_steps collective_timeout keep_state offload "
    "saving.max_shard_size saving.license"
)
# (stages that use them, section, keys); NOTHING: how stages run, and what is shown.
USED_BY: list[tuple[frozenset[str], str, str]] = [
    (SFT, "sft", f"{SUPERVISED} loss_on"),
    (REWARD, "reward", f"{SUPERVISED} loss margin_coefficient start_from"),
    (PPO, "ppo.actor", OPTIMIZATION),
    (PPO, "ppo.critic", OPTIMIZATION),
    (
        PPO,
        "ppo",
        "num_train_epochs iterations prompts_per_rollout ppo_epochs minibatches answers_per_prompt "
        "advantage_estimator kl_coefficient kl_estimator kl_in kl_target kl_horizon gamma gae_lambda clip_range "
        "value_clip_range score_at reward_clip normalise_score whiten_rewards whiten_advantages "
        "missing_eos_penalty critic_warmup_iterations ema_decay ptx_coefficient ptx_rows_per_step "
        "max_sampling_logprob_error max_first_ratio_error on_nonfinite",
    ),
    (PPO | ANSWERED, "ppo", "temperature max_prompt_seq_len max_answer_seq_len dtype"),
    (ANSWERED, "evaluation", "prompts best_of_n seed"),
    (EVALUATED, "evaluation", "dtype"),
    (NOTHING, "evaluation", "samples"),
    (
        NOTHING,
        "evaluation.execution",
        f"{EXECUTION} deepspeed_config collective_timeout per_device_eval_batch_size zero_stage",
    ),
    *(
        (
            NOTHING,
            f"{stage}.execution",
            f"{TRAINING} per_device_train_batch_size per_device_eval_batch_size zero_stage gradient_checkpointing "
            f"{own}",
        )
        for stage, own in (("sft", "packing"), ("reward", "share_prompt"))
    ),
    (
        NOTHING,
        "ppo.execution",
        f"{TRAINING} per_device_generation_batch_size per_device_training_batch_size actor_zero_stage "
        "critic_zero_stage actor_gradient_checkpointing critic_gradient_checkpointing reference "
        "offload_reference_model offload_reward_model enable_hybrid_engine",
    ),
    (NOTHING, "memory", "on_misfit gpu gpu_memory_gib"),
    (TRAINED, "", "data_weights data_split split_seed seeds"),
    (TRAINED | {"dataset"}, "", "data_path"),
    (SFT | {"policy"}, "", "policy"),
    (REWARD | {"reward_model"}, "", "reward_model"),
]
USED = {".".join(filter(None, (section, key))): use for use, section, keys in USED_BY for key in keys.split()}
# A point of a sweep has IDs by its own keys, a program by the values that it stands for; phases say which stages are.
OF_OTHER_KEYS = {"compatibility", "sweep", "phases"}
# No other value is allowed.
FIXED = {"ppo.actor.dropout", "ppo.critic.dropout"}
# Of types that do not say what a value may be, or whose next value is refused for another reason.
VALUES: dict[str, Any] = {
    "data_weights": {"pairs": 2.0},
    "data_split": "1,1,1",
    "data_path": ["more"],
    "seeds": [7],
    "policy": "small",
    "reward_model": "big",
    "sft.lora_module_name": "attn",
    "reward.lora_module_name": "attn",
    "ppo.actor.lora_module_name": "attn",
    "ppo.critic.lora_module_name": "attn",
    "ppo.minibatches": 4,
    "evaluation.dtype": "fp16",  # the training's own, if said, changes nothing
    "memory.gpu": "a100-40g",
    **{
        f"{stage}.execution.deepspeed_config": {"log_level": "info"} for stage in ("sft", "reward", "ppo", "evaluation")
    },
    **{f"{stage}.execution.wrapper": ["env"] for stage in ("sft", "reward", "ppo", "evaluation")},
    **{f"{stage}.execution.environment": {"A": "1"} for stage in ("sft", "reward", "ppo", "evaluation")},
    **{f"{stage}.execution.gpu_type": "a100" for stage in ("sft", "reward", "ppo", "evaluation")},
    **{f"{stage}.execution.saving.max_shard_size": "1GB" for stage in ("sft", "reward", "ppo")},
    **{f"{stage}.execution.saving.license": "mit" for stage in ("sft", "reward", "ppo")},
}
LORA = {"lora_dim": 4, "lora_alpha": 8.0}
ALONE = {**LORA, "only_optimize_lora": True}
GPU = {"execution": {"gpus_per_node": 1}}
CONTEXTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "fp32": {**{stage: {"dtype": "fp32"} for stage in ("sft", "reward", "ppo")}},
    "several steps in fp32": {"ppo": {"dtype": "fp32", "minibatches": 2, "ppo_epochs": 2}},
    "adapters and all else": {"sft": LORA, "reward": LORA, "ppo": {"actor": LORA, "critic": LORA}},
    "adapters alone": {"sft": ALONE, "reward": ALONE, "ppo": {"actor": ALONE, "critic": ALONE}},
    "rloo": {"ppo": {"advantage_estimator": "rloo", "answers_per_prompt": 2}},
    "grpo, not whitened": {
        "ppo": {"advantage_estimator": "grpo", "answers_per_prompt": 4, "whiten_advantages": False, "minibatches": 2}
    },
    "no penalty": {"ppo": {"kl_coefficient": 0.0}},
    "adaptive penalty": {"ppo": {"kl_target": 6.0}},
    "so many iterations": {"ppo": {"iterations": 500, "critic_warmup_iterations": 2}},
    "SFT rows mixed in": {"ppo": {"ptx_coefficient": 0.5}},
    "no schedule": {
        **{stage: {"lr_scheduler_type": "constant"} for stage in ("sft", "reward")},
        "ppo": {role: {"lr_scheduler_type": "constant", "num_warmup_steps": 0} for role in ("actor", "critic")},
    },
    "many evaluations": {stage: {"num_train_epochs": 9, "early_stopping_patience": 3} for stage in ("sft", "reward")},
    "on GPUs": {"sft": GPU, "reward": GPU, "ppo": GPU, "evaluation": GPU, "memory": {"gpu": "a100-80g"}},
    "ZeRO": {
        **{stage: {"execution": {"zero_stage": 3, "gpus_per_node": 2}} for stage in ("sft", "reward")},
        "ppo": {"execution": {"actor_zero_stage": 3, "critic_zero_stage": 3, "gpus_per_node": 2}},
    },
    "one model for both": {"reward_model": "big"},
    "penalty in the loss": {"ppo": {"kl_in": "loss", "kl_estimator": "k3"}},
    "DeepSpeed-Chat": {"compatibility": "deepspeed_chat"},
}


def leaves(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of a section and of those in it, with their types."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from leaves(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind


def test_every_key_of_the_schema_is_known_by_who_uses_it() -> None:
    keys = {key for key, _ in leaves(ExperimentSettings)}
    assert keys == USED.keys() | OF_OTHER_KEYS


def configuration(experiment: dict[str, Any]) -> dict[str, Any]:
    return {
        "datasets": {"pairs": {"source": {"path": "pairs.jsonl"}}, "more": {"source": {"path": "more.jsonl"}}},
        "models": {"big": {"source": {"hub": "org/big"}}, "small": {"source": {"hub": "org/small"}}},
        "experiments": {
            "demo": deep_merge({"data_path": ["pairs"], "policy": "big", "reward_model": "small"}, experiment)
        },
    }


def ids(config: dict[str, Any]) -> dict[str, str]:
    (run,) = resolve(config, lambda path, key: path).runs
    return run.stages


def nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def settings_of(experiment: dict[str, Any]) -> ExperimentSettings:
    ((_, settings),) = expand("demo", configuration(experiment)["experiments"]["demo"])
    return settings


def value_at(section: Any, key: str) -> Any:
    for part in key.split("."):
        section = getattr(section, part)
    return section


def other_values(kind: Any, value: Any) -> Iterator[Any]:
    """Values of a type, of which the first that is valid is taken."""
    origin = get_origin(kind)
    if origin is Literal:
        yield from (choice for choice in get_args(kind) if choice != value)
    elif origin in (Union, types.UnionType):
        for part in get_args(kind):
            yield from other_values(part, value)
    elif kind is bool:
        yield not value
    elif kind is int:
        yield from ((value or 0) + 1, (value or 0) - 1) if not isinstance(value, str) else ()
    elif kind is float:
        yield from (0.7 * value, 0.3) if value else (0.3,)
    elif hasattr(kind, "__metadata__"):
        yield from other_values(get_args(kind)[0], value)


def other_value(key: str, kind: Any, settings: ExperimentSettings) -> Any:
    """A valid value that the key does not have."""
    value = value_at(settings, key)
    *parents, name = key.split(".")
    section = type(value_at(settings, ".".join(parents))) if parents else ExperimentSettings
    field = section.model_fields[name]
    check: TypeAdapter[Any] = TypeAdapter(field.annotation)
    for candidate in [VALUES[key]] if key in VALUES else other_values(kind, value):
        if candidate == value or isinstance(candidate, bool) != (kind is bool):
            continue
        try:
            check.validate_python(candidate)
            section.model_validate({name: candidate})
        except ValidationError:
            continue
        return candidate
    raise LookupError(f"{key}: no value but {value!r}; name one in VALUES")


def outcome(key: str, kind: Any, context: dict[str, Any], before: dict[str, str]) -> frozenset[str] | str:
    """The stages that another value of a key gives another ID, or what is said of it."""
    changed = deep_merge(context, nested(key, other_value(key, kind, settings_of(context))))
    try:
        after = ids(configuration(changed))
    except UserError as error:
        return str(error)
    return frozenset(stage for stage in before if before[stage] != after[stage])


@functools.cache
def ids_of_context(name: str) -> dict[str, str]:
    return ids(configuration(CONTEXTS[name]))


def outcomes(key: str, kind: Any) -> dict[str, frozenset[str] | str]:
    """By context, for those that say something of the key's section."""
    section = key.partition(".")[0]
    contexts = {
        name: context for name, context in CONTEXTS.items() if not context or (section in context and section != key)
    }
    if section == "reward":
        contexts["one model for both"] = CONTEXTS["one model for both"]
    return {name: outcome(key, kind, context, ids_of_context(name)) for name, context in contexts.items()}


TYPES = dict(leaves(ExperimentSettings))


@pytest.mark.parametrize("key", sorted(USED.keys() - FIXED))
def test_a_key_gives_the_stages_that_use_it_another_id_or_is_refused(key: str) -> None:
    found = outcomes(key, TYPES[key])
    for context, result in found.items():
        if isinstance(result, str):
            assert key.rpartition(".")[2] in result, context
        else:
            assert result == USED[key], context
    if key != "ppo.execution.enable_hybrid_engine":  # refused everywhere
        assert not all(isinstance(result, str) for result in found.values())


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_key_without_effect_is_in_no_specification(name: str) -> None:
    """So its value, which may come from `defaults` or a preset, makes no other ID."""
    settings = settings_of(CONTEXTS[name])
    classes = {"sft": (ResolvedSft, {}), "reward": (ResolvedReward, {}), "ppo": (ResolvedPpo, {"gold_reward": None})}
    for stage, (resolved, more) in classes.items():
        section = getattr(settings, stage)
        content = section.model_dump(exclude={"execution"}) | {"data_weights": [1.0], **more}
        before = dumped(resolved.model_validate(content))
        idle = without_effect(section)
        for key in idle:
            assert key not in dict(flat(before))
            for leaf in [one for one in TYPES if one == f"{stage}.{key}" or one.startswith(f"{stage}.{key}.")]:
                if leaf not in FIXED:
                    changed = nested(leaf.removeprefix(f"{stage}."), other_value(leaf, TYPES[leaf], settings))
                    own = resolved.model_validate(deep_merge(content, changed))
                    assert dumped(own) == before or key not in without_effect(own), leaf
        assert resolved.model_validate(before) == resolved.model_validate(dumped(resolved.model_validate(before)))


def flat(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")


# Where a key counts


def refused(config: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        ids(config)
    return str(error.value)


@pytest.mark.parametrize(
    ("experiment", "key", "why"),
    [
        ({"sft": {**ALONE, "learning_rate": 1e-3}}, "sft.learning_rate", "adapters, at lora_learning_rate"),
        ({"ppo": {"actor": {**ALONE, "learning_rate": 1e-3}}}, "ppo.actor.learning_rate", "adapters"),
        ({"reward": {"lora_learning_rate": 1e-3}}, "reward.lora_learning_rate", "lora_dim is 0"),
        ({"sft": {"only_optimize_lora": True}}, "sft.only_optimize_lora", "lora_dim is 0"),
        (
            {"reward": {"lr_scheduler_type": "constant", "num_warmup_steps": 5}},
            "reward.num_warmup_steps",
            "constant_with_warmup has one",
        ),
        ({"sft": {"num_train_epochs": 2, "early_stopping_patience": 2}}, "sft.early_stopping_patience", "2 epoch(s)"),
        ({"ppo": {"iterations": 500, "num_train_epochs": 2}}, "ppo.num_train_epochs", "iterations says"),
        ({"ppo": {"kl_horizon": 9}}, "ppo.kl_horizon", "kl_target is unset"),
        ({"ppo": {"kl_coefficient": 0.0, "kl_estimator": "k3"}}, "ppo.kl_estimator", "kl_coefficient is 0"),
        ({"ppo": {"ptx_rows_per_step": 9}}, "ppo.ptx_rows_per_step", "ptx_coefficient is 0"),
        ({"ppo": {"max_first_ratio_error": 1e-3}}, "ppo.max_first_ratio_error", "dtype is bf16"),
        ({"ppo": {"dtype": "fp32", "clip_range": 0.1}}, "ppo.clip_range", "before which nothing has moved"),
        (
            {"ppo": {"advantage_estimator": "rloo", "answers_per_prompt": 2, "critic": {"learning_rate": 1e-3}}},
            "ppo.critic.learning_rate",
            "rloo has no value model",
        ),
        (
            {"ppo": {"advantage_estimator": "grpo", "answers_per_prompt": 2, "whiten_rewards": True}},
            "ppo.whiten_rewards",
            "divided out again",
        ),
        ({"sft": {"execution": {"gpu_type": "a100"}}}, "sft.execution.gpu_type", "gpus_per_node is 0"),
        ({"memory": {"on_misfit": "refuse"}}, "memory.on_misfit", "memory.gpu is unset"),
    ],
)
def test_a_key_without_effect_is_refused_with_the_reason(experiment: dict[str, Any], key: str, why: str) -> None:
    message = refused(configuration(experiment))
    assert message.startswith(f"experiments.demo.{key}: it has no effect (")
    assert why in message and message.endswith("; leave it out") and "\n" not in message


def test_a_default_that_is_written_out_does_no_harm() -> None:
    plain, written = {"sft": ALONE}, {"sft": {**ALONE, "learning_rate": 9.65e-6}, "ppo": {"kl_horizon": 10_000}}
    assert ids(configuration(written)) == ids(configuration(plain))
    no_warm_up = {"lr_scheduler_type": "constant", "num_warmup_steps": 0}
    assert ids(configuration({"ppo": {"actor": no_warm_up}}))  # as it is, though the default is 100


def test_a_key_in_the_defaults_needs_one_run_that_uses_it() -> None:
    base = configuration({"sft": ALONE})
    own = {**base, "defaults": {"sft": {"learning_rate": 1e-3}}}
    assert refused(own).startswith("defaults.sft.learning_rate: it has no effect")
    demo = own["experiments"]["demo"]
    both = {**own, "experiments": {"demo": demo, "whole": deep_merge(demo, {"sft": {"lora_dim": 0}})}}
    del both["experiments"]["whole"]["sft"]["only_optimize_lora"], both["experiments"]["whole"]["sft"]["lora_alpha"]
    runs = resolve(both, lambda path, key: path).runs
    assert runs[0].stages == ids(base)
    assert runs[1].stages["sft"] != ids(base)["sft"]


def test_a_key_of_a_sweep_needs_one_point_that_uses_it() -> None:
    rates = {"sft.learning_rate": [1e-3, 2e-3]}
    assert refused(configuration({"sft": ALONE, "sweep": rates})).startswith(
        "experiments.demo.sweep.sft.learning_rate: it has no effect"
    )
    swept = {"sft": {"lora_dim": 4}, "sweep": {**rates, "sft.only_optimize_lora": [False, True]}}
    runs = resolve(configuration(swept), lambda path, key: path).runs
    assert len(runs) == 4
    assert len({run.stages["sft"] for run in runs}) == 3  # both rates without effect are one


def test_a_preset_sets_no_key_of_the_user() -> None:
    """It gives `lora_alpha`, which has no effect without adapters: neither refused, nor part of an ID."""
    preset = ids(configuration({"compatibility": "deepspeed_chat", "sft": {"loss_on": "completion"}}))
    assert preset["sft"] == ids(configuration({}))["sft"]


# Data and models


FILES = {"source": {"path": "pairs.jsonl"}}
HUB = {"source": {"hub": "org/pairs"}}
CODE = {"source": {"generator": "rlhf.data.reviews:generate_pairs"}}
SCRATCH = {"source": "scratch", "architecture": {"model_type": "gpt2"}, "tokenizer": {"dataset": "pairs"}}
REPORTED = frozenset({"ppo", "evaluate_reward", "baseline", "evaluate_ppo"})
# Key -> (a source that has it, another value, who gets another ID).
DATA: dict[str, tuple[dict[str, Any], Any, frozenset[str]]] = {
    "source.hub": (HUB, "org/other", DATASET),
    "source.revision": (HUB, "v2", DATASET),
    "source.name": (HUB, "part", DATASET),
    "source.data_dir": (HUB, "part", DATASET),
    "source.path": (FILES, "more.jsonl", DATASET),
    "source.generator": (CODE, "rlhf.data.reviews:gold_reward", DATASET),
    "source.arguments": (CODE, {"seed": 3}, DATASET),
    "source.reads": (CODE, ["notes.txt"], DATASET),
    "source.train_split": (HUB, "all", DATASET),
    "source.eval_split": (HUB, "test", DATASET),
    "source.eval_share": (HUB, 0.3, DATASET),
    "source.first_rows": (FILES, 10, DATASET),
    "shape": (FILES, "ranked", DATASET),
    "columns": (FILES, {"prompt": "question"}, DATASET),
    "assistant_turns": (FILES, "each", DATASET),
    "keep_together": (FILES, "row", DATASET),
    "prompt_format": (FILES, "Q: {prompt}", DATASET),
    "answer_format": (FILES, "A: {answer}", DATASET),
    "max_bad_share": (FILES, 0.5, DATASET),
    "chat_template": (FILES, "tokenizer", DATASET),
    "data_split": (FILES, "1,1,1", TRAINED),
    "gold_reward": (FILES, "rlhf.data.reviews:gold_reward", REPORTED),
    "gold_reward_reads": ({**FILES, "gold_reward": "rlhf.data.reviews:gold_reward"}, ["notes.txt"], REPORTED),
}
BIG = {"source": {"hub": "org/big"}}
POLICY = SFT | {"policy"}
MODEL: dict[str, tuple[dict[str, Any], Any, frozenset[str]]] = {
    "source": (BIG, {"path": "folder"}, POLICY),
    "architecture": (SCRATCH, {"model_type": "gpt2", "n_layer": 1}, POLICY),
    "tokenizer.kind": (SCRATCH, "bpe", POLICY),
    "tokenizer.vocab_size": (SCRATCH, 99, POLICY),
    "tokenizer.dataset": (SCRATCH, "more", POLICY),
    "tokenizer": (SCRATCH, {"dataset": "pairs", "kind": "bpe"}, POLICY),
    "seed": (SCRATCH, 3, POLICY),
    "eos_token": (BIG, "</s>", POLICY),
    "pad_token": (BIG, "<pad>", POLICY),
    "trust_remote_code": (BIG, True, POLICY),
}


def test_every_key_of_datasets_and_models_is_known_by_who_uses_it() -> None:
    assert {key for key, _ in leaves(DatasetSection)} == DATA.keys() | {"evaluation_only"}
    assert {key for key, _ in leaves(ModelSection)} == MODEL.keys() - {
        f"tokenizer.{key}" for key in ("kind", "vocab_size", "dataset")
    }


@pytest.mark.parametrize(("section", "key"), [("datasets", key) for key in DATA] + [("models", key) for key in MODEL])
def test_a_key_of_the_data_or_a_model_gives_another_id_to_who_uses_it(section: str, key: str) -> None:
    table, name = (DATA, "pairs") if section == "datasets" else (MODEL, "big")
    source, value, users = table[key]
    config = configuration({})
    config[section][name] = source
    other = copy.deepcopy(config)
    other[section][name] = {**source, key: value} if key in source else deep_merge(source, nested(key, value))
    before, after = ids(config), ids(other)
    assert {stage for stage in before if before[stage] != after[stage]} == users


@pytest.mark.parametrize(
    ("section", "name", "content", "said"),
    [
        (
            "models",
            "big",
            {"source": {"path": "folder", "revision": "v2"}},
            "revision has no effect on a source with `path`",
        ),
        ("models", "big", {**BIG, "seed": 3}, "seed has no effect on a model that has its weights"),
        ("models", "big", {**SCRATCH, "trust_remote_code": True}, "trust_remote_code has no effect on source: scratch"),
        (
            "datasets",
            "more",
            {"source": {"path": "more.jsonl"}, "data_split": "1,0,0", "gold_reward": "rlhf.data.reviews:gold_reward"},
            "datasets.more.gold_reward: it has no effect (its rows are for SFT alone",
        ),
    ],
)
def test_a_key_that_its_source_or_its_phases_do_without_is_refused(
    section: str, name: str, content: dict[str, Any], said: str
) -> None:
    config = configuration({"data_path": ["pairs", "more"]})
    config[section][name] = content
    assert said in refused(config)


def test_rows_for_evaluation_alone_are_another_dataset() -> None:
    """Also to stages that train on the rest: its rows are among their unseen ones."""
    config = configuration({"data_path": ["pairs", "more"]})
    before = ids(config)
    config["datasets"]["more"]["evaluation_only"] = True
    after = ids(config)
    assert {stage for stage in before if before[stage] != after[stage]} == TRAINED


def test_a_split_that_every_dataset_overrides_is_refused() -> None:
    config = configuration({"data_split": "1,1,1"})
    config["datasets"]["pairs"] = {**FILES, "data_split": "2,4,4"}
    assert "demo.data_split: it has no effect (every dataset" in refused(config)


def test_a_phase_without_rows_of_a_dataset_does_not_depend_on_it() -> None:
    config = configuration({"data_path": ["pairs", "more"]})
    config["datasets"]["more"] = {"source": {"path": "more.jsonl"}, "data_split": "1,0,0"}
    alone = configuration({})
    before, after = ids(alone), ids(config)
    assert {stage for stage in before if before[stage] != after[stage]} == SFT
    assert after["reward"] == before["reward"]
    plan = resolve(config, lambda path, key: path)
    assert [len(stage.upstream.tokens) for kind in ("sft", "reward", "ppo") for stage in plan.of_kind(kind)] == [
        2,
        1,
        1,
    ]
    config["experiments"]["demo"]["ppo"] = {"ptx_coefficient": 0.5}
    (ppo,) = resolve(config, lambda path, key: path).of_kind("ppo")
    assert len(ppo.upstream.tokens) == len(ppo.settings.data_weights) == 2  # SFT rows are mixed in


def test_an_experiment_narrowed_to_sft_leaves_the_datasets_as_they_are() -> None:
    config = configuration({"phases": ["sft"], "data_split": "1,0,0"})
    config["datasets"]["pairs"] = {**FILES, "gold_reward": "rlhf.data.reviews:gold_reward"}
    assert ids(config)
