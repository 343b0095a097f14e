"""Experiments that leave out phases: their stages, their data, what they are refused for, and what they end with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from rlhf.config import Plan, closing_message, resolve
from rlhf.config.command_line import with_types
from rlhf.errors import UserError
from rlhf.phases import PHASES

SHARED = {"dataset", "policy", "sft", "evaluate_sft"}
SCORED = {"reward_model", "reward", "evaluate_reward"}


def config(*datasets: dict[str, Any], defaults: dict[str, Any] | None = None, **experiment: Any) -> dict[str, Any]:
    """One experiment on local files, with a policy and a reward model from the hub."""
    named = {f"data{number}": section for number, section in enumerate(datasets or ({},))}
    return {
        "datasets": {name: {"source": {"path": f"{name}.jsonl"}, **section} for name, section in named.items()},
        "models": {"big": {"source": {"hub": "org/big"}}, "small": {"source": {"hub": "org/small"}}},
        "defaults": {"data_path": list(named), "policy": "big", "reward_model": "small", **(defaults or {})},
        "experiments": {"demo": experiment},
    }


def plan(configuration: dict[str, Any]) -> Plan:
    return resolve(configuration, lambda path, key: "content")


def stages(configuration: dict[str, Any]) -> dict[str, str]:
    (run,) = plan(configuration).runs
    return run.stages


def refused(configuration: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        plan(configuration)
    return str(error.value)


@pytest.mark.parametrize(
    ("phases", "kinds"),
    [
        (["sft"], SHARED),
        (["reward"], {"dataset"} | SCORED),
        (["sft", "reward"], SHARED | SCORED),
        (list(PHASES), SHARED | SCORED | {"ppo", "baseline", "evaluate_ppo"}),
    ],
)
def test_a_chain_has_its_stages_and_shares_them_with_longer_ones(phases: list[str], kinds: set[str]) -> None:
    whole, found = stages(config()), stages(config(phases=phases))
    assert found.keys() == kinds
    assert found == {kind: whole[kind] for kind in kinds}


def test_nothing_is_made_or_asked_for_that_the_chain_does_not_need() -> None:
    made = plan(config(phases=["sft"]))
    assert {kind for kind, _ in made.stages} == {"dataset", "model", "tokens", "split", "sft", "evaluate_sft"}
    assert len(made.of_kind("model")) == len(made.of_kind("tokens")) == 1
    assert not [file for file in [*made.products(), *made.results()] if re.search("ppo|reward|baseline", file)]
    ((policy, asked),) = made.requirements.items()
    assert policy == made.runs[0].stages["policy"]
    assert {each.key for each in asked} == {"experiments.demo.sft.max_seq_len"}


def test_models_of_phases_that_are_left_out_need_no_name() -> None:
    for phase, name in (("sft", "policy"), ("reward", "reward_model")):
        named = config(phases=[phase])
        named["defaults"] = {"data_path": ["data0"], name: "big"}
        assert phase in stages(named)


def test_a_phase_that_is_left_out_needs_no_rows_and_one_that_is_not_does() -> None:
    assert "sft" in stages(config(phases=["sft"], data_split="10,0,0"))
    assert "reward" in stages(config(phases=["reward"], data_split="0,1,0"))
    assert "data_split: 10,0,0 leaves phase reward without data" in refused(
        config(phases=["sft", "reward"], data_split="10,0,0")
    )
    assert "data_split: 0,1,1 leaves phase sft without data" in refused(config(phases=["sft"], data_split="0,1,1"))


def test_what_judges_answers_need_not_agree_where_none_is_judged() -> None:
    one, other = {"gold_reward": "rlhf.data.reviews:gold_reward"}, {}
    assert "same gold_reward" in refused(config(one, other))
    assert "same gold_reward" in refused(config(one, other, phases=["reward"]))
    assert "sft" in stages(config(one, other, phases=["sft"]))
    # The second dataset has prompts for PPO alone, which is left out.
    second = {**other, "data_split": "0,0,1"}
    assert "same gold_reward" in refused(config(one, second))
    assert "reward" in stages(config(one, second, phases=["sft", "reward"]))


def test_mistakes_in_sections_that_are_left_out_are_nobodys() -> None:
    unused = {"ppo": {"prompts_per_rollout": 5, "minibatches": 2}, "reward": {"dtype": "fp16"}}
    message = refused(config(defaults=unused))
    assert "minibatches (2) must divide" in message
    assert "reward: dtype fp16 needs a GPU" in message
    assert "sft" in stages(config(defaults=unused, phases=["sft"]))


@pytest.mark.parametrize(
    ("experiment", "said"),
    [
        ({"phases": ["ppo"]}, "demo.phases: ppo starts from the models of sft and reward; add sft, reward"),
        ({"phases": ["sft", "ppo"]}, "demo.phases: ppo starts from the models of sft and reward; add reward"),
        ({"phases": ["reward"], "reward": {"start_from": "sft"}}, "demo.phases: reward.start_from is sft; add sft"),
        ({"phases": ["reward", "sft"]}, "phases: name each phase once, in the order sft, reward, ppo"),
        ({"phases": ["sft", "sft"]}, "phases: name each phase once"),
        ({"phases": ["dpo"]}, "demo.phases.0: Input should be 'sft', 'reward' or 'ppo' (given: 'dpo')"),
        ({"phases": []}, "demo.phases: List should have at least 1 item"),
        ({"phases": "sft"}, "demo.phases: Input should be a valid list"),
    ],
)
def test_chains_that_lead_nowhere_are_refused(experiment: dict[str, Any], said: str) -> None:
    assert said in refused(config(**experiment))


@pytest.mark.parametrize(
    ("phases", "key", "value"),
    [
        (["sft"], "ppo.actor.learning_rate", 1e-5),
        (["sft", "reward"], "ppo.kl_coefficient", 0.2),
        (["sft"], "reward.loss", "last_token"),
        (["sft"], "reward_model", "small"),
        (["reward"], "policy", "big"),
        (["reward"], "sft.dtype", "fp32"),
        (["sft", "reward"], "evaluation.prompts", 8),
        (["sft", "reward"], "evaluation.best_of_n", 8),
    ],
)
def test_a_key_of_a_phase_that_is_left_out_is_refused_where_it_is_the_experiments_own(phases, key, value) -> None:
    *parents, last = key.split(".")
    own: dict[str, Any] = {last: value}
    for parent in reversed(parents):
        own = {parent: own}
    phase = {"reward_model": "reward", "policy": "sft"}.get(key, key.split(".")[0].replace("evaluation", "ppo"))
    reason = f"phase {phase} alone reads it, and `phases` leaves that out"
    assert f"experiments.demo.{key}: {reason}" in refused(config(phases=phases, **own))
    assert f"experiments.demo.sweep.{key}: {reason}" in refused(config(phases=phases, sweep={key: [value]}))
    assert stages(config(phases=phases, defaults=own))  # it serves other experiments
    other = config(phases=phases, defaults=own)
    other["experiments"]["whole"] = own  # of which this is one
    assert len(plan(other).runs) == 2


def test_keys_that_begin_like_those_of_a_phase_are_no_keys_of_it() -> None:
    own = {"evaluation": {"seed": 5}, "reward_model": "small", "seeds": [3]}
    assert "reward" in stages(config(phases=["reward"], **own))


def test_phases_can_be_swept() -> None:
    swept = config(sweep={"phases": [["sft"], list(PHASES)]}, ppo={"kl_coefficient": 0.2})
    runs = plan(swept).runs
    assert ["ppo" in run.stages for run in runs] == [False, True]
    assert runs[0].stages["sft"] == runs[1].stages["sft"]
    swept["experiments"]["demo"]["sweep"]["ppo.gamma"] = [0.9, 1.0]
    assert "sweep.ppo.gamma: phase ppo alone reads it" in refused(swept)


def test_phases_can_be_given_on_the_command_line() -> None:
    given = {"experiments": {"short": {"phases": ["sft"]}}}
    merged = config()
    merged["experiments"] |= given["experiments"]
    assert {run.experiment: "ppo" in run.stages for run in plan(with_types(merged, given)).runs} == {
        "demo": True,
        "short": False,
    }


@pytest.mark.parametrize(
    ("phases", "named"),
    [
        (["sft"], {"SFT model": "sft"}),
        (["sft", "reward"], {"SFT model": "sft", "reward model": "reward"}),
        (list(PHASES), {"policy": "ppo"}),
    ],
)
def test_the_end_names_the_models_that_no_later_phase_goes_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phases: list[str], named: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = plan(config(phases=phases, seeds=[7]))
    (run,) = made.runs
    for phase in phases:
        Path("results", phase, run.stages[phase], "model").mkdir(parents=True)
    Path("results/experiments/demo").mkdir(parents=True)
    Path("results/experiments/demo/index.md").touch()
    lines = [line.strip() for line in closing_message(made).splitlines() if line.endswith("/model")]
    assert lines == [f"{title}, seed 7  results/{phase}/{run.stages[phase]}/model" for title, phase in named.items()]
