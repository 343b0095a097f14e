"""The models of PPO: how those that only score are partitioned and kept, and what they are made from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from rlhf.config.stages import Role
from rlhf.data.corpus import Corpus
from rlhf.models.loading import load_policy
from rlhf.ppo import models as ppo_models
from rlhf.ppo.models import load_models
from rlhf.training.engine import EngineSettings
from rlhf.training.frame import supervised_engine
from rlhf.training.weights import is_partitioned
from tests.oracle.conftest import Start, starts  # noqa: F401  (a fixture)
from tests.specifications import specification

CPU = {"device": "cpu"}
IDS = torch.tensor([[3, 4, 5, 6, 7]])


def stage(settings: dict[str, Any] | None = None, **execution: Any) -> Any:
    spec = specification("ppo", {"dtype": "fp32"} | (settings or {}), execution)
    return SimpleNamespace(settings=spec.settings, execution=spec.execution, seed=1)


@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_an_engine_runs_as_its_stage_is_executed(kind: str) -> None:
    execution = {"zero_stage": 2, "per_device_train_batch_size": 5, "offload": True, "gradient_checkpointing": True}
    overrides = {"bf16": {"enabled": True}}
    spec = specification(kind, {"dtype": "bf16"}, execution | {"deepspeed_config": overrides})
    found = supervised_engine(cast(Any, SimpleNamespace(settings=spec.settings, execution=spec.execution)))
    assert found == EngineSettings(2, "bf16", 5, True, True, overrides)


@pytest.mark.parametrize(("role", "expected"), [("actor", (2, True)), ("critic", (3, False))])
def test_each_engine_of_ppo_runs_as_its_role_is_executed(role: Role, expected: tuple[int, bool]) -> None:
    own = {"actor_zero_stage": 2, "critic_zero_stage": 3, "actor_gradient_checkpointing": True}
    asked = stage({"dtype": "bf16"}, per_device_training_batch_size=5, offload=True, **own)
    assert ppo_models.ppo_engine(asked, role) == EngineSettings(expected[0], "bf16", 5, True, expected[1], {})


def prompts(start: Start) -> Corpus:
    return Corpus([start.data.tokens], [start.data.split], "train", "ppo")


@pytest.mark.parametrize("role", ["actor", "critic"])
@pytest.mark.parametrize("kept", [set(), {"reference"}, {"reward"}, {"reference", "reward"}])
def test_a_frozen_model_is_partitioned_like_its_twin_and_offloaded_by_its_own_key(role: str, kept: set[str]) -> None:
    own, other = ("actor", "critic") if role == "actor" else ("critic", "actor")
    execution = {f"offload_{name}_model": True for name in kept} | {"offload": True, f"{other}_zero_stage": 3}
    assert ppo_models._frozen_config(stage(**execution), role) is None
    assert ppo_models._trained_loading(stage(**execution), role) is None
    partitioned = stage(**execution, **{f"{own}_zero_stage": 3})
    config, trained = ppo_models._frozen_config(partitioned, role), ppo_models._trained_loading(partitioned, role)
    assert config is not None and trained is not None
    offloaded = {"actor": "reference", "critic": "reward"}[role] in kept
    assert config["zero_optimization"] == {"stage": 3} | ({"offload_param": CPU} if offloaded else {})
    assert trained["zero_optimization"] == {"stage": 3, "offload_optimizer": CPU, "offload_param": CPU}


@pytest.mark.parametrize("kept", [set(), {"reference"}, {"reward"}, {"reference", "reward"}])
def test_frozen_models_rest_on_the_host_by_their_own_keys(monkeypatch: pytest.MonkeyPatch, kept: set[str]) -> None:
    monkeypatch.setattr(ppo_models, "OffloadedModel", lambda model, device: model)
    models = {"reference": torch.nn.Linear(1, 1), "reward": torch.nn.Linear(1, 1)}
    asked = stage(**{f"offload_{name}_model": True for name in kept})
    assert ppo_models._offloaded(asked, **models) == [model for name, model in models.items() if name in kept]
    assert ppo_models._offloaded(asked, None, models["reward"]) == [models["reward"]] * ("reward" in kept)


def test_under_zero_3_models_are_partitioned_from_the_start(
    starts: dict[str, Start],  # noqa: F811
    group: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whole weights are on no process, neither of what trains nor of what scores; and they are those of the folder."""
    begin, whole = starts["gpt2"], []
    for name in ("load_policy", "load_reward"):
        load = getattr(ppo_models, name)

        def watched(*arguments: Any, load: Any = load) -> Any:
            model = load(*arguments)
            whole.append(not is_partitioned(model))
            return model

        monkeypatch.setattr(ppo_models, name, watched)
    models = load_models(
        stage(actor_zero_stage=3, critic_zero_stage=3), begin.policy, begin.reward, prompts(begin), 2, 2
    )
    assert whole == [False] * 4  # policy, reward model, reference, value model
    reference: Any = models.reference
    assert not reference.module.training
    expected = load_policy(begin.policy, "fp32").eval()(IDS).logits
    with torch.no_grad():
        torch.testing.assert_close(reference(IDS).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("same", [False, True])
def test_a_value_model_is_loaded_in_partitions_whatever_it_starts_from(
    monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    """From the reward model, or, where that reads other tokens, from the policy."""

    class Loaded(Exception):
        pass

    def load(*arguments: Any) -> None:
        raise Loaded(arguments)

    monkeypatch.setattr(ppo_models, "load_reward" if same else "load_reward_backbone", load)
    for zero_stage, expected in ((2, None), (3, 3)):
        with pytest.raises(Loaded) as loaded:
            ppo_models._value_model(stage(critic_zero_stage=zero_stage), Path("sft"), Path("reward"), same)
        folder, *_, config = loaded.value.args[0]
        assert folder == Path("reward" if same else "sft")
        assert (config and config["zero_optimization"]["stage"]) == expected


def test_the_reward_model_is_read_within_its_positions_and_where_it_is_asked(
    starts: dict[str, Start],  # noqa: F811
    group: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(ppo_models, "reward_scorer", lambda *arguments: asked.append(arguments))
    begin = starts["gpt2"]
    models = load_models(stage({"score_at": "before_eos"}), begin.policy, begin.reward, prompts(begin), 2, 2)
    ((scorer, positions, _, tokenizer, _, place),) = asked
    assert (positions, place) == (scorer.model.config.n_positions, "before_eos")
    assert tokenizer is models.tokenizer
