"""Cards, generation settings and adapters of models that the stages trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rlhf.files import read_json, sha256_tree
from rlhf.training.sft import train_sft
from rlhf.training.stage import StagePaths, TrainingStage
from tests.project import Project
from tests.specifications import specification_of


@pytest.mark.parametrize("kind", ["sft", "reward", "ppo"])
def test_every_model_has_a_card_that_names_no_machine(finished, kind):
    folder = finished.results(kind)
    manifest = read_json(folder / "manifest.json")
    text = (folder / "model/README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "transformers"
    assert manifest["outputs"]["model/README.md"] == sha256_tree(folder / "model")["README.md"]
    assert manifest["id"] in text and manifest["code"]["hash"] in text
    (data,) = manifest["lineage"]["datasets"]
    assert f"| {data['dataset']} | 2,4,4 | 1234 | {data['split']} |" in text
    for private in (manifest["host"], str(finished.folder), str(Path.home())):
        assert private not in text


def test_a_policys_generation_settings_are_those_of_its_rollouts(finished):
    settings = read_json(finished.results("ppo") / "model/generation_config.json")
    assert (settings["do_sample"], settings["temperature"], settings["max_new_tokens"]) == (True, 1.0, 12)
    assert "max_new_tokens" not in read_json(finished.results("sft") / "model/generation_config.json")
    assert not (finished.results("reward") / "model/generation_config.json").exists()


def train_with_adapters(project: Project, output: Path, zero_stage: int) -> Path:
    """The SFT stage of the small run with adapters, in this process."""
    stage = project.plan.stages["sft", project.results("sft").name]
    settings = {"lora_dim": 4, "lora_module_name": "h.", "lora_learning_rate": 1e-2, "num_train_epochs": 1}
    execution: dict[str, Any] = {"zero_stage": zero_stage, "saving": {"max_shard_size": "20KB", "license": "mit"}}
    if zero_stage == 3:
        execution["deepspeed_config"] = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    spec = specification_of(stage, settings, execution)
    paths = StagePaths(
        [project.folder / "results/tokens" / id for id in spec.upstream.tokens],
        [project.folder / "results/split" / id / "rows" for id in spec.upstream.split],
        output,
        output.parent / f"state-{output.name}",
    )
    with TrainingStage(spec, paths) as stage:
        train_sft(stage, base_folder(project))
    return output


def base_folder(project: Project) -> Path:
    return project.folder / "resources/models" / project.plan.runs[0].stages["policy"] / "model"


def test_adapters_are_saved_whole_with_and_without_partitions(finished, group, tmp_path):
    """A weight that was not gathered is empty, also in a single process, unless DeepSpeed keeps it for being small."""
    loaded = []
    for zero_stage in (0, 3):
        output = train_with_adapters(finished, tmp_path / f"zero-{zero_stage}", zero_stage)
        base = AutoModelForCausalLM.from_pretrained(base_folder(finished))
        with_adapter = PeftModel.from_pretrained(base, output / "adapter").merge_and_unload().state_dict()
        merged = AutoModelForCausalLM.from_pretrained(output / "model").state_dict()
        assert with_adapter.keys() == merged.keys()
        for name, value in merged.items():
            torch.testing.assert_close(with_adapter[name], value, rtol=1e-5, atol=1e-6)
        loaded.append(merged)
        config = json.loads((output / "adapter/adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == f"resources/models/{base_folder(finished).parent.name}/model"
        manifest = read_json(output / "manifest.json")
        assert {"adapter/adapter_model.safetensors", "model/model.safetensors.index.json"} <= set(manifest["outputs"])
        assert "the matrices alone are not this model" in (output / "model/README.md").read_text()
    for name, value in loaded[0].items():
        torch.testing.assert_close(loaded[1][name], value, rtol=1e-3, atol=1e-4)
