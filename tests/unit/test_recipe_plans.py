"""Each published recipe fits the GPUs that its header names, in every stage, by its memory plans."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoConfig, PreTrainedConfig

from rlhf.config import Plan
from rlhf.config.specification import JOBS, TRAINED
from rlhf.memory.devices import GIB, USABLE, find_device
from rlhf.phases import PLANNED
from rlhf.planning.files import earlier_adapters
from rlhf.planning.forecast import ROLES
from rlhf.planning.plan import plan_stage
from rlhf.records.plan import MemoryPlan
from tests.unit.test_recipes import NAMES, RECIPES, load

ABSENT = Path("no-folder-of-adapters")


def opt(width: int, layers: int, heads: int, **more: Any) -> PreTrainedConfig:
    keys = {"vocab_size": 50272, "max_position_embeddings": 2048, "word_embed_proj_dim": width} | more
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "ffn_dim": 4 * width}
    return AutoConfig.for_model("opt", **shape, **keys)


# As their config.json says on the hub; the vocabulary of Llama grows by the padding token.
PUBLISHED = {
    "facebook/opt-350m": opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
    "facebook/opt-1.3b": opt(2048, 24, 32),
    "facebook/opt-6.7b": opt(4096, 32, 32),
    "facebook/opt-13b": opt(5120, 40, 40),
    "facebook/opt-66b": opt(9216, 64, 72),
    "meta-llama/Llama-2-7b-hf": AutoConfig.for_model(
        "llama",
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32008,
        max_position_embeddings=4096,
    ),
}


def header(name: str) -> tuple[int, int, int]:
    """(nodes, GPUs of each, GB of a GPU) as the first line of a recipe says."""
    line = (RECIPES / f"{name}.yaml").read_text().splitlines()[0]
    found = re.search(r"on (?:one GPU|(?:one node|(\d+) nodes) of (\d+) GPUs) with (\d+) GB", line)
    assert found, line
    nodes, gpus, size = found.groups()
    return int(nodes or 1), int(gpus or 1), int(size)


def base(plan: Plan, kind: str, identifier: str) -> PreTrainedConfig:
    """The configuration of the published model from which a stage's model starts in the end."""
    stage: Any = plan.stages[kind, identifier]
    return PUBLISHED[stage.settings.source.hub] if kind == "model" else base(plan, *stage.upstream.start)


def planned(name: str, kind: str) -> MemoryPlan:
    """The memory plan of a stage of a recipe, without its models, as the workflow makes it with them."""
    plan = load(name)
    (stage,) = plan.of_kind(kind)
    spec = JOBS[kind].model_validate({**stage.spec(), "execution": stage.job.model_dump(mode="json")})
    upstream = [TRAINED[before].model_validate(one.spec()) for before in TRAINED for one in plan.of_kind(before)]
    configs = {role: base(plan, *start) for role, start in zip(ROLES[kind], spec.upstream.starts, strict=True)}
    adapters = earlier_adapters(spec, [ABSENT] * len(configs), upstream)
    assert stage.memory is not None
    device = find_device(stage.memory.gpu, stage.memory.gpu_memory_gib)
    return plan_stage(kind, spec.settings, spec.execution, configs, device, stage.memory.on_misfit, adapters)


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_of_a_recipe_fits_the_gpus_that_its_header_names(name: str) -> None:
    nodes, gpus, size = header(name)
    named = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())["defaults"]["memory"]["gpu"]
    assert find_device(named).capacity == size * GIB
    for kind in PLANNED:
        found = planned(name, kind)
        upper = found["upper_device"]
        assert upper is not None
        assert (found["verdict"], found["decision"]) == ("fits", "accept"), (kind, upper / GIB)
        assert upper <= USABLE * size * GIB
        assert found["resources"]["nodes"] <= nodes and found["resources"]["gpus"] <= nodes * gpus


@pytest.mark.parametrize("name", NAMES)
def test_where_a_process_has_the_whole_policy_it_has_all_its_weights(name: str) -> None:
    """The plan of sampling has the weights in the precision of the evaluation, and keys and values of all tokens."""
    found = planned(name, "baseline")
    (stage,) = load(name).of_kind("baseline")
    execution, settings = stage.job.model_dump(), stage.settings.model_dump()
    policy = base(load(name), "sft", load(name).of_kind("sft")[0].id)
    part = next(one for one in found["phases"] if one["part"] == "generate policy")
    held = {row["kind"]: row["bytes"] for row in part["rows"]}
    rows = execution["per_device_eval_batch_size"]
    tokens = settings["max_prompt_seq_len"] + settings["max_answer_seq_len"]
    cache = rows * tokens * 2 * policy.num_hidden_layers * policy.hidden_size * 2  # key and value, 2 bytes
    assert settings["dtype"] == "fp16"
    assert cache * 0.99 <= held["kv_cache"] <= cache * 1.3
    inner = 12 * policy.hidden_size**2 * policy.num_hidden_layers  # of the layers: parameters to 1 %
    shared = execution["gpus_per_node"] if execution["zero_stage"] == 3 else 1
    assert held["weights"] >= 0.99 * 2 * inner / shared
