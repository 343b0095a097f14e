"""The user's own DeepSpeed settings: kept where they are free, refused with a reason where the trainer drives them."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.config import resolve
from rlhf.config.deepspeed import DRIVEN, FREE, deepspeed_mistakes
from rlhf.config.stages import SftExecution
from rlhf.errors import UserError
from tests.project import tiny_config


def sft_execution(**execution: Any) -> SftExecution:
    """The execution of the SFT stage, as its script gets it."""
    return plan(sft={"execution": execution}).of_kind("sft")[0].execution


def plan(**sections: Any) -> Any:
    config = copy.deepcopy(tiny_config())
    for name, changes in sections.items():
        config["defaults"][name] = config["defaults"].get(name, {}) | changes
    return resolve(config, lambda path, key: "0" * 64)


def refusal(**sections: Any) -> str:
    with pytest.raises(UserError) as error:
        plan(**sections)
    return str(error.value)


def test_settings_come_from_a_mapping_or_a_file(tmp_path: Path) -> None:
    settings = {"wall_clock_breakdown": True, "zero_optimization": {"overlap_comm": False}}
    (tmp_path / "ds.json").write_text(json.dumps(settings))
    for given in (settings, str(tmp_path / "ds.json")):
        assert sft_execution(zero_stage=2, deepspeed_config=given).deepspeed_config == settings


def test_a_file_is_no_part_of_a_stages_identity(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text("{}")
    with_file = plan(sft={"execution": {"deepspeed_config": str(tmp_path / "ds.json")}})
    assert with_file.runs[0].stages == plan().runs[0].stages


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no readable file"), ("{", "no JSON"), ("[1]", "the file holds a list")]
)
def test_an_unusable_file_is_refused_by_its_key(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "ds.json").write_text(content)
    text = refusal(sft={"execution": {"deepspeed_config": str(tmp_path / "ds.json")}})
    assert "sft.execution.deepspeed_config" in text
    assert message in text


@pytest.mark.parametrize("key", sorted(DRIVEN))
def test_what_the_trainer_drives_is_refused_with_the_reason(key: str) -> None:
    section, _, inner = key.partition(".")
    settings = {section: {inner: True} if inner else {"enabled": True}}
    (mistake,) = deepspeed_mistakes(settings, section if section in ("bf16", "fp16") else "fp32", [2])
    assert mistake == f"{key} is refused: {DRIVEN[key]}"


def test_what_is_free_is_kept() -> None:
    free = {key: {} for key in FREE - {"fp16"}} | {"bf16": {"enabled": True}}
    assert not list(deepspeed_mistakes(free, "bf16", [1]))
    assert not FREE & set(DRIVEN)


@pytest.mark.parametrize(
    ("settings", "dtype", "stages", "message"),
    [
        ({"wall_clock_brakedown": True}, "fp32", [0], "did you mean 'wall_clock_breakdown'"),
        ({"zero_optimization": {"reduce_bucket_size": "auto"}}, "fp32", [2], "'auto' is for another trainer"),
        ({"zero_optimization": {"stage": 3}}, "fp32", [2], r"zero_optimization.stage (3) contradicts"),
        ({"zero_optimization": {"stage": 3}}, "fp32", [3, 2], r"zero_optimization.stage (3) contradicts"),
        ({"zero_optimization": {"overlap_comm": True}}, "fp32", [0], "no effect with ZeRO 0"),
        ({"bf16": {"enabled": True}}, "fp32", [0], "bf16 contradicts dtype, which is fp32"),
        ({"fp16": {"loss_scale": 8}}, "bf16", [1], "fp16 contradicts dtype, which is bf16"),
        ({"bf16": {"enabled": False}}, "bf16", [1], "bf16.enabled: false contradicts dtype"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], dtype: str, stages: list[int], message: str) -> None:
    (mistake,) = deepspeed_mistakes(settings, dtype, stages)
    assert message in mistake


@pytest.mark.parametrize(
    ("settings", "dtype", "stages"),
    [
        ({"zero_optimization": {"stage": 2}}, "fp32", [2, 2]),
        ({"fp16": {"enabled": False}}, "bf16", [0]),
        ({"fp16": {"enabled": True, "initial_scale_power": 12}}, "fp16", [0]),
        ({"zero_optimization": {"overlap_comm": True}}, "fp32", [0, 3]),
    ],
)
def test_what_agrees_is_kept(settings: dict[str, Any], dtype: str, stages: list[int]) -> None:
    assert not list(deepspeed_mistakes(settings, dtype, stages))


# What a stage needs to run at all


def test_fp16_without_a_gpu_is_refused_before_anything_runs() -> None:
    for stage in ("sft", "reward", "ppo"):
        text = refusal(**{stage: {"dtype": "fp16"}})
        assert f"experiments.tiny.{stage}: dtype fp16 needs a GPU" in text
        on_gpus = {"dtype": "fp16", "execution": {"gpus_per_node": 1}}
        assert plan(**{stage: on_gpus}, evaluation={"dtype": "bf16"}).runs
        # What is evaluated has the precision of its training unless another one is given.
        assert f"tiny.evaluation: dtype fp16 (as {stage}.dtype) needs a GPU" in refusal(**{stage: on_gpus})
        assert plan(**{stage: on_gpus}, evaluation={"execution": {"gpus_per_node": 1}}).runs
    assert "tiny.evaluation: dtype fp16 needs a GPU" in refusal(evaluation={"dtype": "fp16"})


def test_offload_without_zero_is_refused() -> None:
    assert "experiments.tiny.sft: execution.offload has no effect" in refusal(sft={"execution": {"offload": True}})
    critic_only = {"offload": True, "critic_zero_stage": 2}
    assert plan(ppo={"execution": critic_only}).runs
    group = {"advantage_estimator": "rloo", "answers_per_prompt": 2, "execution": critic_only}
    assert "experiments.tiny.ppo: execution.offload has no effect" in refusal(ppo=group)
    assert plan(sft={"execution": {"offload": True, "zero_stage": 1}}).runs
