"""Specifications: what a file says is what the resolver made, IDs stay, and a misspelt key is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf.config import Plan, resolve
from rlhf.config.specfile import read_execution, read_job, read_spec
from rlhf.config.specification import (
    JOBS,
    TRAINING,
    DatasetSpecification,
    ModelSpecification,
    PpoSpecification,
    RewardSpecification,
    SftSpecification,
    SplitSpecification,
    TokensSpecification,
)
from rlhf.errors import UserError
from tests.specifications import specification

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path.name for path in (ROOT / "config/recipes").glob("*.yaml"))
CONFIGURATIONS = ("config/config.yaml", *(f"config/recipes/{name}" for name in RECIPES))
CACHED = {
    "dataset": DatasetSpecification,
    "model": ModelSpecification,
    "tokens": TokensSpecification,
    "split": SplitSpecification,
}
# A change of an ID makes users compute again: it needs a reason, and a line in CHANGELOG.md.
IDS = {
    "dataset": "reviews-6dfcd0f8",
    "policy": "gpt2-scratch-9a239adf",
    "sft": "gpt2-scratch-s1-650687d8",
    "reward": "gpt2-scratch-s1-33b5c51a",
    "ppo": "gpt2-scratch-s1-94d2eae6",
    "evaluate_sft": "gpt2-scratch-s1-f2050d8b",
    "evaluate_reward": "gpt2-scratch-s1-f7ce534f",
    "baseline": "gpt2-scratch-s1-df71b7b5",
    "evaluate_ppo": "gpt2-scratch-s1-dc932ae9",
}
SPLIT, TOKENS = "reviews-9af1a72d", "reviews-gpt2-scratch-5c58c7cd"


def plan(configuration: str = "config/config.yaml") -> Plan:
    return resolve(yaml.safe_load((ROOT / configuration).read_text()), lambda path, key: "content")


def test_the_embedded_configuration_has_the_ids_it_had() -> None:
    resolved = plan()
    first = resolved.runs[0].stages
    assert {role: first[role] for role in IDS} == IDS
    assert [stage.id for stage in resolved.of_kind("split")] == [SPLIT]
    assert [stage.id for stage in resolved.of_kind("tokens")] == [TOKENS]


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_a_file_gives_back_what_the_resolver_made(configuration: str, tmp_path: Path) -> None:
    for number, stage in enumerate(plan(configuration).stages.values()):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(stage.spec(), sort_keys=False, allow_unicode=True))
        if stage.kind in CACHED:
            spec = read_spec(CACHED[stage.kind], path)
        else:
            spec = read_spec(JOBS[stage.kind], path, stage.job.model_dump(mode="json"))
            assert spec.execution.model_dump(exclude={"memory_steps"}) == stage.job.model_dump()
        assert spec.identity() == stage.spec()
        assert list(spec.identity()["settings"]) == list(stage.spec()["settings"])  # logs and cards keep the order


def written(folder: Path, kind: str, **changes: Any) -> Path:
    """A spec.yaml with changed entries of its settings, or of the file itself."""
    content = specification(kind).identity()
    content["settings"] |= changes.pop("settings", {})
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    return path


def test_a_misspelt_setting_is_refused_with_the_file_and_the_key_it_resembles(tmp_path: Path) -> None:
    path = written(tmp_path, "sft", settings={"lora_dmi": 8})
    with pytest.raises(UserError) as error:
        read_spec(SftSpecification, path, {})
    assert str(error.value).startswith(f"{path}: settings: unknown key 'lora_dmi'; did you mean 'lora_dim'?")


def test_a_misspelt_setting_of_a_nested_section_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "ppo", settings={"actor": {"learning_rat": 1e-3}})
    with pytest.raises(UserError, match=r"spec\.yaml: settings\.actor: unknown key 'learning_rat'; did you mean"):
        read_spec(PpoSpecification, path, {})


def test_a_misspelt_key_of_execution_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "sft")
    with pytest.raises(UserError, match=r"^--execution: unknown key 'zero_stge'; did you mean 'zero_stage'\?"):
        read_spec(SftSpecification, path, {"zero_stge": 2})
    with pytest.raises(UserError, match=r"^--execution: saving: unknown key 'licence'; did you mean 'license'\?"):
        read_spec(SftSpecification, path, {"saving": {"licence": "mit"}})
    with pytest.raises(UserError, match=r"^--execution: unknown key 'zero_stage'"):  # PPO has two
        read_spec(PpoSpecification, written(tmp_path, "ppo"), {"zero_stage": 2})


def test_every_mistake_is_named_with_its_key(tmp_path: Path) -> None:
    path = written(tmp_path, "sft", settings={"learning_rate": -1.0, "dtype": "fp8"})
    with pytest.raises(UserError) as error:
        read_spec(SftSpecification, path, {"threads": "two"})
    for key in (f"{path}: settings.learning_rate: ", f"{path}: settings.dtype: ", "--execution: threads: "):
        assert key in str(error.value)
    with pytest.raises(UserError, match=r"spec\.yaml: unknown key 'sead'; did you mean 'seed'\?"):
        read_spec(SftSpecification, written(tmp_path, "sft", sead=1), {})


@pytest.mark.parametrize("key", ["kl_coefficient", "actor.lora_dim"])
def test_a_setting_that_is_not_given_is_not_guessed(tmp_path: Path, key: str) -> None:
    """Today's default may be another than that of the code which gave the stage its ID."""
    content = specification("ppo").identity()
    *sections, name = ("settings", *key.split("."))
    section = content
    for part in sections:
        section = section[part]
    del section[name]
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=rf"spec\.yaml: settings\.{key}: missing"):
        read_spec(PpoSpecification, tmp_path / "spec.yaml", {})


@pytest.mark.parametrize("added", [{"data_weights": [1.0]}, {"gold_reward": None}])
def test_what_only_some_stages_depend_on_is_a_key_of_these(tmp_path: Path, added: dict[str, Any]) -> None:
    content = specification("ppo").identity()
    for name in added:
        del content["settings"][name]
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=rf"settings\.{next(iter(added))}: Field required"):
        read_spec(PpoSpecification, tmp_path / "spec.yaml", {})


def test_a_file_of_another_kind_of_stage_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "reward")
    with pytest.raises(UserError, match=r"spec\.yaml: stage: Input should be 'sft' \(given: 'reward'\)"):
        read_spec(SftSpecification, path, {})
    assert isinstance(read_job(TRAINING, path, {}), RewardSpecification)
    with pytest.raises(UserError, match=r"spec\.yaml: stage: 'evaluate_sft' is none of sft, reward, ppo"):
        read_job(TRAINING, written(tmp_path, "evaluate_sft"), {})


@pytest.mark.parametrize("text", ["- 1", "", "a: [", "\x00"])
def test_what_is_no_specification_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(UserError, match=r"spec\.yaml: no (readable )?specification"):
        read_spec(SftSpecification, tmp_path / "spec.yaml", {})
    with pytest.raises(UserError, match=r"lost\.yaml: no readable specification"):
        read_spec(SftSpecification, tmp_path / "lost.yaml", {})


def test_a_reward_stage_starts_from_one_model() -> None:
    data: dict[str, list[str]] = {"tokens": [], "split": []}
    assert specification("reward", upstream={"sft": "s-00000000"}).upstream.start == ("sft", "s-00000000")
    assert specification("reward", upstream={"model": "m-00000000"}).upstream.start == ("model", "m-00000000")
    for start in ({}, {"sft": "s-00000000", "model": "m-00000000"}):
        with pytest.raises(ValueError, match="exactly one of model, sft"):
            specification("reward", upstream=start | data)


def test_the_launcher_reads_what_all_stages_have_in_common() -> None:
    assert read_execution({"nodes": 2, "gpus_per_node": 4, "zero_stage": 3, "memory_steps": []}).world_size == 8
    with pytest.raises(UserError, match=r"^--execution: nodes: "):
        read_execution({"nodes": 0})


def test_steps_that_fit_the_memory_are_part_of_how_an_attempt_runs(tmp_path: Path) -> None:
    spec = read_spec(SftSpecification, written(tmp_path, "sft"), {"mem_mb": 900, "memory_steps": ["offload"]})
    assert (spec.execution.mem_mb, spec.execution.memory_steps) == (900, ["offload"])
    assert "execution" not in spec.identity()
