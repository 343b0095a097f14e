"""Memory plans know the adapters of the stages before, which need not have run, and what is delivered of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoConfig

from rlhf.commands.memory import main
from rlhf.config.schema import MemorySettings
from rlhf.config.specfile import read_job
from rlhf.config.specification import TRAINED
from rlhf.config.stages import SftSection
from rlhf.errors import UserError
from rlhf.memory.blueprint import Blueprint, EarlierAdapters
from rlhf.models.loading import load_policy, load_reward, load_reward_backbone
from rlhf.models.lora import add_lora
from rlhf.models.saving import write_adapter
from rlhf.planning.files import earlier_adapters, plan_from_files
from rlhf.planning.forecast import stored_adapters
from rlhf.planning.plan import plan_stage
from rlhf.planning.traces import Traces
from rlhf.training.weights import adapter_weights
from tests.specifications import specification
from tests.unit.conftest import make_model
from tests.unit.test_merged import deliver, lora

SFT = {"lora_dim": 4, "lora_module_name": "layers."}
REWARD = {"lora_dim": 2, "lora_module_name": "q_proj"}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_model(tmp_path / "llama", "llama")


def chain(tmp_path: Path, dtype: str = "bf16") -> tuple[Any, list[Path]]:
    """A PPO stage whose reward model starts from its SFT model, and the specifications before it."""
    before = [
        specification("sft", SFT, id="s-00000000"),
        specification("reward", REWARD, upstream={"sft": "s-00000000"}, id="r-00000000"),
    ]
    files = [tmp_path / f"{spec.stage}.yaml" for spec in before]
    for spec, file in zip(before, files, strict=True):
        file.write_text(yaml.safe_dump(spec.identity()))
    small = {"prompts_per_rollout": 2, "max_prompt_seq_len": 8, "max_answer_seq_len": 8, "dtype": dtype}
    return specification("ppo", small, id="p-00000000"), files


def weights(plan: dict[str, Any], phase: str) -> dict[str, int]:
    part = next(part for part in plan["phases"] if part["phase"] == phase)
    return {row["model"]: row["bytes"] for row in part["rows"] if row["kind"] == "weights"}


def test_models_are_planned_as_they_will_be_loaded(base: Path, tmp_path: Path) -> None:
    """Bytes of each model's weights: as planned from specifications, and as held once the stages before have run."""
    policy = load_policy(base, "bf16")
    add_lora(policy, lora(base, **SFT), "sft")
    sft = deliver(policy, tmp_path / "sft", base)
    scorer = load_reward_backbone(sft, "bf16", seed=0)
    scorer.config.reward_mean, scorer.config.reward_std = 0.0, 1.0
    add_lora(scorer, lora(base, **REWARD), "reward")
    reward = deliver(scorer, tmp_path / "reward", base)
    stage, files = chain(tmp_path)
    plan = plan_from_files(stage, MemorySettings(), [base, base], tmp_path / "plan.json", files)
    held = {"policy": load_policy(sft, "bf16"), "reward": load_reward(reward, "bf16")}
    sizes = {role: sum(parameter.nbytes for parameter in model.parameters()) for role, model in held.items()}
    expected = {"policy": sizes["policy"], "reference": sizes["policy"]}
    expected |= {"reward": sizes["reward"], "value": sizes["reward"]}
    planned = weights(plan, "score")
    assert planned.keys() == expected.keys()
    buffers = 200  # frequencies of the positions
    assert all(0 <= planned[role] - expected[role] <= buffers for role in expected), (planned, expected)
    configs = dict.fromkeys(("policy", "reward"), AutoConfig.from_pretrained(base))
    plain = weights(plan_stage("ppo", stage.settings, stage.execution, configs), "score")
    assert all(plain[role] < planned[role] for role in planned)
    for folder, head in ((sft, "lm"), (reward, "score")):  # the same from the folders themselves
        blueprint = Blueprint(AutoConfig.from_pretrained(folder), head, "bf16", None, earlier=stored_adapters(folder))
        role = "policy" if head == "lm" else "reward"
        assert Traces(cuda=True).counts(blueprint).all * 2 == sizes[role]


def test_fp32_keeps_nothing_apart(base: Path, tmp_path: Path) -> None:
    stage, files = chain(tmp_path, "fp32")
    plan = plan_from_files(stage, MemorySettings(), [base, base], tmp_path / "plan.json", files)
    configs = dict.fromkeys(("policy", "reward"), AutoConfig.from_pretrained(base))
    assert plan["phases"] == plan_stage("ppo", stage.settings, stage.execution, configs)["phases"]


def test_adapters_follow_the_stages_to_where_training_began(tmp_path: Path, base: Path) -> None:
    stage, files = chain(tmp_path)
    first, second = EarlierAdapters(4, "layers."), EarlierAdapters(2, "q_proj")
    upstream = [read_job(TRAINED, file) for file in files]
    assert earlier_adapters(stage, [base, base], upstream) == {"policy": (first,), "reward": (first, second)}
    assert earlier_adapters(upstream[1], [base], upstream) == {"model": (first,)}
    assert earlier_adapters(upstream[0], [base], []) == {"model": ()}
    with pytest.raises(UserError, match="the spec.yaml of sft s-00000000 is missing; give results/sft/s-00000000/spec"):
        earlier_adapters(stage, [base, base], [])


@pytest.mark.parametrize("only_lora", [True, False])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_plan_knows_the_size_on_disk(base: Path, tmp_path: Path, dtype: str, only_lora: bool) -> None:
    section = SftSection(dtype=dtype, max_seq_len=16, only_optimize_lora=only_lora, **SFT)
    plan = plan_stage("sft", section, section.execution, {"model": AutoConfig.from_pretrained(base)})
    model = load_policy(base, dtype)
    adapted = add_lora(model, section, "sft")
    write_adapter(model, adapter_weights(model, keep=True), adapted, tmp_path / "adapter", "base")
    folder = deliver(model, tmp_path / "model", base)
    for path in (folder, tmp_path / "adapter"):
        size = sum(file.stat().st_size for file in path.rglob("*.safetensors"))
        assert 0 <= size - plan["disk"][path.name] < 6000, path  # the names of the tensors
    assert plan["disk"].keys() == {"model", "adapter"}


def test_the_command_plans_from_a_trained_folder(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_policy(base, "bf16")
    add_lora(model, lora(base, **SFT), "sft")
    deliver(model, tmp_path / "sft", base)
    printed = []
    for folder in (base, tmp_path / "sft"):
        assert main([str(folder), "--set", "max_seq_len=16", "--gpus", "0"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] != printed[1] and "GiB on disk" in printed[1]
