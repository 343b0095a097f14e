"""Configuration, its resolution into stages, and what stages are identified by."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf.config import Fingerprints, Plan, dumped, parse, resolve
from rlhf.config.expand import deep_merge
from rlhf.config.identity import REVISIONS, slug, stage_id
from rlhf.config.schema import Configuration
from rlhf.config.section import ALLOWED
from rlhf.errors import UserError
from tests.project import tiny_config

STAGES = {"dataset", "policy", "reward_model", "sft", "reward", "ppo"}
EVALUATIONS = {"evaluate_sft", "evaluate_reward", "baseline", "evaluate_ppo"}


def make_config(path: str = "pairs.jsonl", **experiment: Any) -> dict[str, Any]:
    """One experiment on a local file, with a policy and a reward model from the hub."""
    return {
        "datasets": {"pairs": {"source": {"path": path}}},
        "models": {"big": {"source": {"hub": "org/big"}}, "small": {"source": {"hub": "org/small"}}},
        "defaults": {"data_path": ["pairs"], "policy": "big", "reward_model": "small"},
        "experiments": {"demo": experiment},
    }


def plan(config: dict[str, Any], content: str = "content") -> Plan:
    return resolve(config, lambda path, key: content)


def ids(config: dict[str, Any], content: str = "content") -> dict[str, str]:
    """Stage kind -> ID of a configuration with one run."""
    (run,) = plan(config, content).runs
    return run.stages


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys()
    return {kind for kind in before if before[kind] != after[kind]}


def refused(config: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        plan(config)
    return str(error.value)


def with_value(config: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    copied = copy.deepcopy(config)
    *parents, last = dotted.split(".")
    section = copied
    for key in parents:
        section = section.setdefault(key, {})
    section[last] = value
    return copied


# Stages


def test_a_reward_model_can_start_from_the_sft_model_of_its_run() -> None:
    config = make_config(reward={"start_from": "sft"}, reward_model=None, seeds=[1, 2])
    resolved = plan(config)
    for run in resolved.runs:
        assert resolved.stages["reward", run.stages["reward"]].upstream.sft == run.stages["sft"]
    assert len(resolved.of_kind("model")) == len(resolved.of_kind("tokens")) == 1  # one family for all
    assert "reward.start_from is sft" in refused(make_config(reward={"start_from": "sft"}))


def test_weights_belong_to_training_and_not_to_the_data_or_evaluation_rows() -> None:
    config = with_value(make_config(), "datasets.more", {"source": {"path": "more.jsonl"}})
    config = with_value(config, "defaults.data_path", ["pairs", "more"])
    weighted = with_value(config, "defaults.data_weights", {"more": 2.5})
    assert changed(ids(config), ids(weighted)) == {"sft", "reward", "ppo"} | EVALUATIONS
    before, after = plan(config), plan(weighted)
    assert {stage.id for stage in before.of_kind("split")} == {stage.id for stage in after.of_kind("split")}
    for kind in ("sft", "reward", "ppo"):
        assert [stage.settings.data_weights for stage in after.of_kind(kind)] == [[1.0, 2.5]]
    assert ids(with_value(config, "defaults.data_weights", {"more": 1.0})) == ids(config)
    assert "data_weights: 'mor' is not in data_path: pairs, more" in refused(
        with_value(config, "defaults.data_weights", {"mor": 2.0})
    )
    assert "greater than 0" in refused(with_value(config, "defaults.data_weights", {"more": 0.0}))


def test_a_chat_template_belongs_to_the_tokens_and_its_text_not_to_the_dataset() -> None:
    plain, own, written, other = (
        plan(with_value(make_config(), "datasets.pairs.chat_template", template))
        for template in (None, "tokenizer", "{{ messages }}", "{{ messages[0] }}")
    )
    assert {stage.id for stage in own.of_kind("dataset")} == {stage.id for stage in other.of_kind("dataset")}
    assert {stage.id for stage in own.of_kind("dataset")} != {stage.id for stage in plain.of_kind("dataset")}
    assert plan(make_config()).stages.keys() == plain.stages.keys()
    tokens = [{stage.id for stage in each.of_kind("tokens")} for each in (plain, own, written, other)]
    assert len(set.union(*tokens)) == 8  # of two models each
    for stage in written.of_kind("tokens"):
        assert dumped(stage.settings) == {"chat_template": "{{ messages }}"}


def test_packing_is_how_a_stage_runs() -> None:
    assert ids(make_config(sft={"execution": {"packing": True}})) == ids(make_config())
    assert "packing" in refused(make_config(reward={"execution": {"packing": True}}))


def test_a_run_has_every_stage_in_the_plan() -> None:
    resolved = plan(make_config())
    (run,) = resolved.runs
    assert (run.experiment, run.seed, run.point) == ("demo", 1234, {})
    assert run.stages.keys() == STAGES | EVALUATIONS
    for kind in ("sft", "reward", "ppo", *EVALUATIONS):
        assert [stage.id for stage in resolved.of_kind(kind)] == [run.stages[kind]]
    ppo = resolved.stages["ppo", run.stages["ppo"]]
    assert ppo.upstream.sft == run.stages["sft"]
    assert ppo.upstream.reward == run.stages["reward"]


def test_upstream_ids_are_in_the_plan() -> None:
    resolved = plan(make_config(seeds=[1, 2], sweep={"ppo.kl_coefficient": [0.0, 0.1]}))
    known = {identifier for _, identifier in resolved.stages}
    for stage in resolved.stages.values():
        for value in dumped(stage.upstream).values():
            assert set([value] if isinstance(value, str) else value) <= known


def test_sweep_points_share_everything_before_ppo() -> None:
    resolved = plan(make_config(sweep={"ppo.kl_coefficient": [0.0, 0.1, 0.2], "ppo.ppo_epochs": [1, 2]}))
    assert [run.point for run in resolved.runs] == [
        {"ppo.kl_coefficient": kl, "ppo.ppo_epochs": epochs} for kl in (0.0, 0.1, 0.2) for epochs in (1, 2)
    ]
    counts = {kind: len(resolved.of_kind(kind)) for kind in ("dataset", "sft", "reward", "baseline", "ppo")}
    assert counts == {"dataset": 1, "sft": 1, "reward": 1, "baseline": 1, "ppo": 6}


def test_seeds_share_data_and_base_models() -> None:
    resolved = plan(make_config(seeds=[1, 2, 3]))
    counts = {kind: len(resolved.of_kind(kind)) for kind in ("dataset", "model", "tokens", "split", "sft", "ppo")}
    assert counts == {"dataset": 1, "model": 2, "tokens": 2, "split": 1, "sft": 3, "ppo": 3}


def test_experiments_with_other_names_for_the_same_things_share_stages() -> None:
    config = make_config()
    config["datasets"]["again"] = copy.deepcopy(config["datasets"]["pairs"])
    config["experiments"]["second"] = {"data_path": ["again"]}
    first, second = plan(config).runs
    assert first.stages == second.stages


# Identity


def test_kl_coefficient_changes_ppo_only() -> None:
    base = make_config()
    other = with_value(base, "defaults.ppo.kl_coefficient", 0.05)
    assert changed(ids(base), ids(other)) == {"ppo", "evaluate_ppo"}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("sft.learning_rate", 1.0e-3, {"sft", "evaluate_sft", "baseline", "ppo", "evaluate_ppo"}),
        ("reward.weight_decay", 0.0, {"reward", "evaluate_reward", "baseline", "ppo", "evaluate_ppo"}),
        ("evaluation.best_of_n", 8, {"baseline", "evaluate_ppo"}),
        ("evaluation.prompts", 8, {"baseline", "evaluate_ppo"}),
        ("evaluation.seed", 8, {"baseline", "evaluate_ppo"}),
        ("ppo.temperature", 0.9, {"baseline", "ppo", "evaluate_ppo"}),
        ("ppo.max_answer_seq_len", 64, {"baseline", "ppo", "evaluate_ppo"}),
        ("sft.max_seq_len", 256, {"sft", "evaluate_sft", "baseline", "ppo", "evaluate_ppo"}),
        ("data_split", "1,1,1", {"sft", "reward", "ppo", *EVALUATIONS}),
        ("seeds", [7], {"sft", "reward", "ppo", *EVALUATIONS}),
        ("policy", "small", {"policy", "sft", "ppo", "evaluate_sft", "baseline", "evaluate_ppo"}),
    ],
)
def test_a_setting_changes_what_depends_on_it(key: str, value: Any, expected: set[str]) -> None:
    base = make_config()
    assert changed(ids(base), ids(with_value(base, f"defaults.{key}", value))) == expected


TRAINED = ("sft", "reward", "ppo")


@pytest.mark.parametrize(
    ("stage", "key", "value"),
    [
        (stage, key, value)
        for stage in (*TRAINED, "evaluation")
        for key, value in (("gpus_per_node", 8), ("nodes", 2), ("wrapper", ["env"]))
    ]
    + [(stage, key, 9) for stage in (*TRAINED, "evaluation") for key in ("mem_mb", "runtime", "threads")],
)
def test_how_a_stage_runs_changes_no_id(stage: str, key: str, value: Any) -> None:
    base = make_config()
    other = with_value(base, f"defaults.{stage}.execution.{key}", value)
    assert changed(ids(base), ids(other)) == set()
    kind = "baseline" if stage == "evaluation" else stage
    assert getattr(plan(other).of_kind(kind)[0].job, key) == value


def test_defaults_written_out_change_no_id() -> None:
    base = make_config()
    assert ids(base) == ids(with_value(base, "defaults.ppo.kl_coefficient", 0.1))


def test_gold_reward_leaves_trained_supervised_models_alone() -> None:
    base = make_config()
    other = with_value(base, "datasets.pairs.gold_reward", "rlhf.data.reviews:gold_reward")
    assert not changed(ids(base), ids(other)) & {"dataset", "sft", "reward"}


def test_an_id_is_a_label_and_eight_hex_digits() -> None:
    identifier = stage_id("Org/Model 7B", "model", {"a": 1}, {})
    assert identifier.startswith("org-model-7b-")
    assert len(identifier.rsplit("-", 1)[1]) == 8
    assert identifier != stage_id("Org/Model 7B", "sft", {"a": 1}, {})
    assert identifier == stage_id("Org/Model 7B", "model", {"a": 1}, {})


def test_code_that_gives_other_results_gives_its_kind_other_ids(monkeypatch):
    """And no other kind: a dataset need not be cached again because SFT computes something else."""
    before = {kind: stage_id("x", kind, {}, {}) for kind in ("sft", "dataset")}
    monkeypatch.setitem(REVISIONS, "sft", REVISIONS["sft"] + 1)
    after = {kind: stage_id("x", kind, {}, {}) for kind in before}
    assert after["sft"] != before["sft"]
    assert after["dataset"] == before["dataset"]


@pytest.mark.parametrize("text", ["../../etc", "", "...", "ÄÖÜ", "a" * 100])
def test_labels_cannot_leave_their_folder(text: str) -> None:
    assert set(slug(text)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert 1 <= len(slug(text)) <= 32


# Local files


def test_an_edited_file_is_another_dataset_and_a_touched_one_is_not(tmp_path: Path) -> None:
    file, memory = tmp_path / "pairs.jsonl", tmp_path / "cache/fingerprints.json"
    file.write_text("{}\n")
    config = make_config(str(file))

    def dataset() -> str:
        fingerprints = Fingerprints(memory)
        resolved = resolve(config, fingerprints.of)
        fingerprints.save()
        return resolved.runs[0].stages["dataset"]

    first = dataset()
    os.utime(file, (1, 1))
    assert dataset() == first
    file.write_text('{"prompt": "new"}\n')
    second = dataset()
    assert second != first
    file.write_text("{}\n")
    assert dataset() == first
    assert memory.exists()


@pytest.mark.parametrize("how", ["written", "replaced"])
def test_an_edit_that_keeps_size_and_time_is_seen(tmp_path: Path, how: str) -> None:
    file, memory = tmp_path / "pairs.jsonl", tmp_path / "fingerprints.json"

    def hashed() -> str:
        fingerprints = Fingerprints(memory)
        found = fingerprints.of(str(file), "key")
        fingerprints.save()
        return found

    file.write_text("{1}\n")
    before, stat = hashed(), file.stat()
    other = file if how == "written" else tmp_path / "other"
    other.write_text("{2}\n")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(file)
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert hashed() != before


def test_a_remembered_hash_saves_the_second_reading(tmp_path: Path) -> None:
    file, memory = tmp_path / "pairs.jsonl", tmp_path / "fingerprints.json"
    file.write_text("{}\n")
    first = Fingerprints(memory)
    hashed = first.of(str(file), "key")
    first.save()
    written = memory.stat().st_mtime_ns
    second = Fingerprints(memory)
    assert second.of(str(file), "key") == hashed
    second.save()
    assert memory.stat().st_mtime_ns == written


def test_a_folder_is_identified_by_names_and_contents(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a").write_text("1")

    def fingerprint() -> str:
        return Fingerprints(tmp_path / "memory.json").of(str(folder), "key")

    first = fingerprint()
    (folder / "a").rename(folder / "b")
    assert fingerprint() != first


def test_a_missing_file_is_named_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"datasets\.pairs\.source\.path: 'nowhere\.jsonl' is missing"):
        resolve(make_config("nowhere.jsonl"), Fingerprints(tmp_path / "memory.json").of)


def test_files_of_both_splits_are_inputs() -> None:
    config = make_config()
    config["datasets"]["pairs"]["source"]["path"] = {"train": "t.jsonl", "eval": "e.jsonl"}
    (dataset,) = plan(config).of_kind("dataset")
    assert dataset.local_files == ("t.jsonl", "e.jsonl")


# Mistakes


def test_an_unknown_key_gets_the_nearest_valid_name() -> None:
    message = refused(with_value(make_config(), "defaults.ppo.kl_coeficient", 0.1))
    assert "defaults.ppo: unknown key 'kl_coeficient'; did you mean 'kl_coefficient'?" in message


def test_an_unknown_key_unlike_any_other_gets_the_list() -> None:
    assert "valid keys: datasets, defaults, experiments, models" in refused({**make_config(), "zzz": 1})


def test_several_mistakes_are_reported_together() -> None:
    config = with_value(make_config(), "defaults.sft.learning_rate", -1.0)
    message = refused(with_value(config, "defaults.ppo.gamma", 2.0))
    assert "2 mistake(s)" in message
    assert "defaults.sft.learning_rate" in message
    assert "defaults.ppo.gamma" in message


def test_an_exponent_that_yaml_reads_as_text_is_explained() -> None:
    value = yaml.safe_load("1e-5")
    assert value == "1e-5"
    message = refused(with_value(make_config(), "defaults.sft.learning_rate", value))
    assert "defaults.sft.learning_rate" in message
    assert "write 1.0e-5" in message


def test_an_exponent_in_a_sweep_is_explained() -> None:
    message = refused(make_config(sweep={"sft.learning_rate": ["1e-5"]}))
    assert "experiments.demo.sft.learning_rate" in message
    assert "write 1.0e-5" in message
    assert "sweep point" in message


def test_an_undefined_dataset_gets_the_nearest_name() -> None:
    message = refused(make_config(data_path=["pears"]))
    assert "experiments.demo.data_path: 'pears' is not defined under `datasets`; did you mean 'pairs'?" in message


def test_the_undefined_dataset_of_a_tokenizer_is_found_where_it_is_named() -> None:
    config = make_config(policy="own")
    config["models"]["own"] = {
        "source": "scratch",
        "architecture": {"model_type": "gpt2"},
        "tokenizer": {"dataset": "pears"},
    }
    assert "models.own.tokenizer.dataset: 'pears' is not defined under `datasets`" in refused(config)


def test_an_undefined_model_gets_the_list() -> None:
    assert "experiments.demo.policy: 'zzz' is not defined under `models`; defined: big, small" in refused(
        make_config(policy="zzz")
    )


@pytest.mark.parametrize("key", ["policy", "reward_model"])
def test_a_model_must_be_named(key: str) -> None:
    config = make_config()
    del config["defaults"][key]
    assert f"experiments.demo.{key}: not given; name one of `models`: big, small" in refused(config)


def test_an_experiment_needs_data() -> None:
    assert "experiments.demo.data_path: name at least one dataset" in refused(make_config(data_path=[]))


def test_a_configuration_needs_an_experiment() -> None:
    assert "experiments: none is defined" in refused({**make_config(), "experiments": {}})


def test_a_sweep_over_an_unknown_key_is_refused() -> None:
    message = refused(make_config(sweep={"ppo.kl_coeficient": [0.1]}))
    assert "experiments.demo.ppo: unknown key 'kl_coeficient'; did you mean 'kl_coefficient'?" in message


@pytest.mark.parametrize("values", [[], [0.1, 0.1], 0.1])
def test_a_sweep_needs_a_list_of_different_values(values: Any) -> None:
    assert "experiments.demo.sweep" in refused(make_config(sweep={"ppo.kl_coefficient": values}))


def test_duplicate_seeds_are_refused() -> None:
    assert "experiments.demo.seeds: seeds [1, 1] repeat a value" in refused(make_config(seeds=[1, 1]))


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "a b", "-x", "x" * 65])
@pytest.mark.parametrize("section", ["datasets", "models", "experiments"])
def test_names_cannot_leave_their_folder(section: str, name: str) -> None:
    config = make_config()
    config[section][name] = next(iter(config[section].values()))
    with pytest.raises(UserError, match=section):
        parse(config)


def test_a_dataset_may_have_a_split_of_its_own() -> None:
    config = make_config(data_path=["pairs", "instructions"], data_split="2,4,4")
    config["datasets"]["instructions"] = {"source": {"hub": "org/tasks"}, "data_split": "1,0,0"}
    resolved = plan(config)
    assert [stage.settings.data_split for stage in resolved.of_kind("split")] == ["2,4,4", "1,0,0"]
    without = plan(with_value(config, "datasets.instructions.data_split", None))
    assert {stage.id for stage in resolved.of_kind("dataset")} == {stage.id for stage in without.of_kind("dataset")}


def test_all_datasets_whose_prompts_are_answered_have_one_gold_reward_or_none() -> None:
    config = make_config(data_path=["pairs", "more"])
    config["datasets"]["more"] = {"source": {"hub": "org/more"}}
    config["datasets"]["pairs"]["gold_reward"] = "rlhf.data.reviews:gold_reward"
    said = "give all of these datasets the same gold_reward, or none (pairs: rlhf.data.reviews:gold_reward, more: none)"
    assert said in refused(config)
    sft_only = plan(with_value(config, "datasets.more.data_split", "1,0,0"))
    assert sft_only.of_kind("ppo")[0].settings.gold_reward == "rlhf.data.reviews:gold_reward"


def test_every_phase_needs_data() -> None:
    assert "demo.data_split: 1,1,0 leaves phase ppo without data" in refused(make_config(data_split="1,1,0"))


def test_minibatches_must_divide_the_rollout() -> None:
    message = refused(make_config(ppo={"prompts_per_rollout": 96, "minibatches": 5}))
    assert "experiments.demo.ppo: minibatches (5) must divide prompts_per_rollout (96)" in message


@pytest.mark.parametrize(
    ("ppo", "said"),
    [
        ({"actor": {"num_warmup_steps": 12}}, "actor.num_warmup_steps (12) must be below the 12 steps of 3 iterations"),
        ({"critic": {"num_warmup_steps": 90}}, "critic.num_warmup_steps (90) must be below the 12 steps"),
        (
            {"critic_warmup_iterations": 1, "actor": {"num_warmup_steps": 8}},
            "actor.num_warmup_steps (8) must be below the 8 steps of 2 iterations",
        ),
        ({"actor": {"num_warmup_steps": 11}}, None),
        ({"advantage_estimator": "rloo", "answers_per_prompt": 2, "critic": {}}, None),  # by default 100 steps
        ({"actor": {"num_warmup_steps": 90, "lr_scheduler_type": "cosine"}}, "actor.num_warmup_steps (90)"),
        ({"actor": {"lr_scheduler_type": "constant"}}, None),  # it has no warm-up
        ({"iterations": None, "actor": {"num_warmup_steps": 90}}, None),
    ],
)
def test_a_warm_up_ends_within_the_training(ppo: dict[str, Any], said: str | None) -> None:
    settings = {"iterations": 3, "ppo_epochs": 2, "minibatches": 2, "prompts_per_rollout": 8}
    short = {"actor": {"num_warmup_steps": 0}, "critic": {"num_warmup_steps": 0}}
    config = make_config(ppo={**settings, **short, **ppo})
    assert said in refused(config) if said else plan(config)


def test_an_overlay_is_judged_together_with_the_defaults() -> None:
    config = with_value(make_config(ppo={"minibatches": 3}), "defaults.ppo.prompts_per_rollout", 96)
    (ppo,) = plan(config).of_kind("ppo")
    assert (ppo.settings.prompts_per_rollout, ppo.settings.minibatches) == (96, 3)


@pytest.mark.parametrize("source", [{}, {"hub": "a/b", "path": "c"}])
def test_a_source_is_exactly_one(source: dict[str, str]) -> None:
    assert "give exactly one of hub, path" in refused(with_value(make_config(), "models.big.source", source))


def test_dropout_in_ppo_is_refused() -> None:
    assert "defaults.ppo.actor.dropout" in refused(with_value(make_config(), "defaults.ppo.actor.dropout", 0.1))


# Merging and weight


def test_merging_changes_neither_side() -> None:
    base, overlay = {"a": {"b": 1, "c": [1]}}, {"a": {"c": [2]}, "d": None}
    before = copy.deepcopy((base, overlay))
    merged = deep_merge(base, overlay)
    assert merged == {"a": {"b": 1, "c": [2]}, "d": None}
    merged["a"]["c"].append(3)
    assert (base, overlay) == before


def test_the_configuration_can_be_imported_without_heavy_packages(repo_root: Path) -> None:
    # Every submitted job parses the Snakefile again.
    program = (
        "import sys, rlhf.config; print(*{'torch', 'pandas', 'numpy', 'datasets', 'transformers'} & set(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(repo_root / "workflow")}
    loaded = subprocess.run(
        [sys.executable, "-c", program], env=environment, text=True, capture_output=True, check=True
    )
    assert loaded.stdout.strip() == ""


def test_how_a_prompt_is_computed_is_no_part_of_the_result() -> None:
    stages = [
        plan(make_config(reward=reward)).runs[0].stages["reward"]
        for reward in ({}, {"execution": {"share_prompt": True}}, {"margin_coefficient": 0.5})
    ]
    assert stages[0] == stages[1] != stages[2]


def test_the_token_wise_loss_cannot_share_a_prompt() -> None:
    with pytest.raises(UserError, match=r"demo\.reward: execution\.share_prompt: loss token_wise .* set it to false"):
        plan(make_config(reward={"loss": "token_wise", "execution": {"share_prompt": True}}))


def in_reverse(value: Any) -> Any:
    """The same, with the keys of all dictionaries in the reverse order."""
    if isinstance(value, dict):
        return {key: in_reverse(value[key]) for key in reversed(value)}
    return [in_reverse(item) for item in value] if isinstance(value, list) else value


def test_the_order_of_keys_changes_nothing_that_is_written() -> None:
    """Specifications and runs are parameters of rules: another text would make them run again."""
    config = tiny_config()
    config["experiments"]["tiny"] |= {
        "seeds": [1, 2],
        "sweep": {"ppo.kl_coefficient": [0.1, 0.0], "ppo.gamma": [1.0, 0.9]},
        "data_weights": {"reviews": 0.5},
    }
    texts = []
    for given in (config, in_reverse(config)):
        resolved = plan(given)
        specifications = {key: yaml.safe_dump(one.spec(), sort_keys=False) for key, one in resolved.stages.items()}
        texts.append((specifications, resolved.runs_text("tiny")))
    assert texts[0] == texts[1]
    assert "arguments:\n      rows: 600\n      seed: 0\n" in "".join(texts[0][0].values())


@pytest.mark.parametrize(
    ("experiments", "expected"),
    [
        ({"my run": {}}, "experiments.my run: a name has letters (a-z, A-Z), digits, `_`, `.` and `-`"),
        ({False: {}}, "experiments.0: a name must be text, and YAML reads this one (as no, yes,"),
        ({12: {}}, "experiments.12: a name must be text"),
        ({"tiny": None}, "experiments.tiny: it is empty; write `{}`, or keys below it"),
        ({"tiny": {"sft": None}}, "experiments.tiny.sft: it is empty; write `{}`, or keys below it"),
        ({"tiny": {"sft": 3}}, "experiments.tiny.sft: it must be keys with values below it (given: 3)"),
        ({"tiny": {"data_split": "2:4:4"}}, "data_split: write three numbers with commas between them"),
        (
            {"tiny": {"data_split": "4,4"}},
            "data_split: write three numbers with commas between them, for example '2,4,4'",
        ),
        (
            {"tiny": {"sft": {"execution": {"saving": {"max_shard_size": "5 GB"}}}}},
            "write a number and KB, MB or GB",
        ),
        (
            {"tiny": {"ppo": {"execution": {"saving": {"license": "my own"}}}}},
            "apache-2.0 (given: 'my own')",
        ),
        (
            {"tiny": {"sft": {"execution": {"gpu_type": "a 100"}}}},
            "write the cluster's name of it, for example a100",
        ),
        ({"tiny": {"sft": {"execution": {"environment": {"A-B": 1}}}}}, "environment.A-B: a variable has letters"),
    ],
)
def test_messages_are_in_plain_words(experiments: Any, expected: str) -> None:
    message = refused({**make_config(), "experiments": experiments})
    assert expected in message
    assert "pattern" not in message
    assert "[key]" not in message
    assert "ExperimentSettings" not in message


def patterns(schema: Any) -> Iterator[str]:
    """All regular expressions of a JSON schema."""
    if isinstance(schema, dict):
        yield from [schema["pattern"]] if isinstance(schema.get("pattern"), str) else []
        yield from (each for key in ("patternProperties",) for each in schema.get(key, {}))
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else []:
        yield from patterns(part)


def test_every_pattern_of_the_schema_is_said_in_words() -> None:
    """A text that does not fit gets these words, never the regular expression."""
    found = set(patterns(Configuration.model_json_schema()))
    assert len(found) >= 10
    assert found == ALLOWED.keys()
    assert not [words for words in ALLOWED.values() if re.search(r"[\\^$]|\(\?|\]\*", words)]


@pytest.mark.parametrize("template", ["chatml", "Tokenizer", "{% for message in messages %}{% endfor %}"])
def test_a_name_is_no_chat_template(template: str) -> None:
    message = refused(with_value(make_config(), "datasets.pairs.chat_template", template))
    assert "datasets.pairs.chat_template: " in message and repr(template) in message
    assert "is taken for a Jinja template" in message and "{{ message.content }}" in message
    assert "`tokenizer`, the template of the model's tokenizer" in message


@pytest.mark.parametrize("section", ["models", "datasets"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("https://huggingface.co/facebook/opt-125m", ": facebook/opt-125m (given"),
        ("https://huggingface.co/datasets/a/b/tree/v1", ": a/b, and its revision as `revision: v1` (given"),
        ("facebook/opt-125m/", ": facebook/opt-125m (given"),
        ("facebook/opt-125m@main", ": facebook/opt-125m, and its revision as `revision: main` (given"),
        ("a/b@hf_abcdefghijklmnopqrstuv", ": a/b, and its revision as `revision: hf_***` (given: 'a/b@hf_***')"),
        ("no name", "without an address (given: 'no name')"),
    ],
)
def test_an_address_of_a_hub_is_told_as_the_name_to_write(section: str, given: str, said: str) -> None:
    config = tiny_config()
    config[section]["mine"] = {"source": {"hub": given}}
    with pytest.raises(UserError) as raised:
        parse(config)
    assert said in str(raised.value)
    assert str(raised.value).startswith("the configuration has 1 mistake(s):")  # not that it is no `scratch` too


def test_a_misspelt_scratch_says_what_may_stand_there() -> None:
    config = tiny_config()
    config["models"]["mine"] = {"source": "scrath"}
    with pytest.raises(UserError, match="Input should be 'scratch'"):
        parse(config)


# Overrides


def test_overrides_win_over_every_experiment_and_not_over_a_sweep() -> None:
    config = make_config(ppo={"prompts_per_rollout": 64, "minibatches": 4}, sweep={"ppo.temperature": [0.7, 1.0]})
    config["experiments"]["other"] = {"ppo": {"prompts_per_rollout": 32}, "seeds": [1, 2]}
    config["overrides"] = {"ppo": {"prompts_per_rollout": 8, "temperature": 0.9}, "seeds": [5]}
    found = plan(config)
    settings = [found.stages["ppo", run.stages["ppo"]].settings for run in found.runs]
    assert [(run.experiment, run.seed) for run in found.runs] == [("demo", 5), ("demo", 5), ("other", 5)]
    assert [one.prompts_per_rollout for one in settings] == [8, 8, 8]
    assert [one.minibatches for one in settings] == [4, 4, 1]
    assert [one.temperature for one in settings] == [0.7, 1.0, 0.9]


def test_a_key_that_overrides_leave_without_effect_is_not_refused() -> None:
    """An overlay that lowers everything need not know what each recipe says."""
    config = make_config(reward={"execution": {"gpus_per_node": 8, "gpu_type": "a100"}})
    plan(config)
    without = {"reward": {"execution": {"gpus_per_node": 0}}}
    assert plan(config | {"overrides": without}).runs
    assert "execution.gpu_type: it has no effect" in refused(
        make_config(reward={"execution": {"gpus_per_node": 0, "gpu_type": "a100"}})
    )
    misspelt = {"overrides": {"reward": {"execution": {"gpu_typ": "x"}}}}
    assert "overrides.reward.execution: unknown key 'gpu_typ'; did you mean 'gpu_type'?" in refused(config | misspelt)
