"""Runs of PPO against the same runs computed by `tests.oracle.ppo`: all metrics, and the weights at the end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from tests.oracle.comparing import differences, weight_differences
from tests.oracle.conftest import Start
from tests.oracle.evaluation import surprise
from tests.oracle.material import EOS, gold, save_reward, with_eos, words
from tests.oracle.networks import LanguageModel, Scorer, language_model, score_model
from tests.oracle.ppo import Ppo, Rollout
from tests.oracle.stages import Outcome, Weights, adapters_of, run, weights_in

# Far from the defaults, so that none can stand in for what is set. Adam blows the rounding noise of gradients that are
# exactly 0 (key biases) up to whole steps: not with this epsilon.
TRAINING: dict[str, Any] = {
    "learning_rate": 2.0e-3,
    "weight_decay": 0.3,
    "adam_beta1": 0.8,
    "adam_beta2": 0.9,
    "adam_epsilon": 1.0e-3,
    "gradient_clipping": 0.0,
    "lr_scheduler_type": "constant",
    "num_warmup_steps": 0,
}
BASE: dict[str, Any] = {
    "iterations": 3,
    "prompts_per_rollout": 6,
    "ppo_epochs": 2,
    "minibatches": 2,
    "max_prompt_seq_len": 8,  # one below the longest
    "max_answer_seq_len": 10,
    "temperature": 0.7,
    "kl_coefficient": 0.15,
    "gamma": 0.95,
    "gae_lambda": 0.9,
    "clip_range": 0.1,
    "value_clip_range": 0.15,
    "reward_clip": 1.5,
    "missing_eos_penalty": 0.7,
    "dtype": "fp32",
    "actor": TRAINING,
    "critic": TRAINING | {"learning_rate": 3.0e-3, "adam_beta1": 0.7},
    "execution": {"per_device_training_batch_size": 2, "per_device_generation_batch_size": 4},
}
LORA = {"lora_dim": 3, "lora_module_name": "attn", "lora_learning_rate": 6.0e-3}
WARM = {"lr_scheduler_type": "cosine", "num_warmup_steps": 3, "gradient_clipping": 0.4}
SCENARIOS: dict[str, tuple[str, dict[str, Any]]] = {
    "gae, penalty k1": ("gpt2", {}),
    "gae, penalty k2, nothing normalised": (
        "llama",
        {
            "kl_estimator": "k2",
            "normalise_score": False,
            "whiten_advantages": False,
            "value_clip_range": None,
            "score_at": "before_eos",
            "temperature": 1.3,
            "gamma": 1.0,
        },
    ),
    "gae, loss k3, two answers, adaptive": (
        "gpt2",
        {"kl_estimator": "k3", "kl_in": "loss", "kl_target": 0.4, "kl_horizon": 30, "answers_per_prompt": 2},
    ),
    "gae, penalty k3, scaled rewards, adaptive": (
        "llama",
        {"kl_estimator": "k3", "whiten_rewards": True, "kl_target": 3.0, "kl_horizon": 20, "minibatches": 3},
    ),
    "rloo, penalty k1": (  # not whitened, which would hide a wrong factor of all advantages
        "gpt2",
        {"advantage_estimator": "rloo", "answers_per_prompt": 2, "whiten_advantages": False},
    ),
    "grpo, loss k2": (
        "gpt2",
        {"advantage_estimator": "grpo", "answers_per_prompt": 3, "kl_in": "loss", "kl_estimator": "k2"},
    ),
    "clipping, warm-up, cosine, average": (
        "gpt2",
        {"iterations": None, "num_train_epochs": 2, "actor": WARM, "critic": WARM, "ema_decay": 0.7},
    ),
    "value model first, SFT rows mixed in": (
        "gpt2",
        {
            "critic_warmup_iterations": 1,
            "ptx_coefficient": 0.6,
            "ptx_rows_per_step": 8,  # all there are, none longer than 9 + 10 tokens
            "max_prompt_seq_len": 9,
            "actor": {"lr_scheduler_type": "linear", "num_warmup_steps": 2},
            "critic": {"lr_scheduler_type": "linear"},
            "ema_decay": 0.5,
        },
    ),
    "adapters alone, scale 1": (
        "gpt2",
        {
            "actor": LORA | {"only_optimize_lora": True},
            "critic": LORA | {"only_optimize_lora": True},
            "ema_decay": 0.6,
        },
    ),
    "adapters alone, separate reference, scale 2": (
        "llama",
        {
            "actor": LORA | {"only_optimize_lora": True, "lora_alpha": 6.0},
            "execution": {**BASE["execution"], "reference": "separate"},
        },
    ),
    "adapters and all else, scale 3": (
        "gpt2",
        {"actor": LORA | {"lora_alpha": 9.0}, "critic": LORA | {"lora_alpha": 1.5}, "ema_decay": 0.6},
    ),
    "another tokenizer": ("gpt2", {"score_at": "before_eos"}),
}
CHECKED = {"sampling_logprob_error": 1e-4, "first_ratio_error": 1e-6, "first_ratio_mean_error": 1e-6}
CLOCK = {"step", "phase", "time", "tokens_per_second", "time_generate", "time_score", "time_train"}


def merged(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a scenario over those of all."""
    nested = {key: value for key, value in settings.items() if isinstance(value, dict)}
    return BASE | settings | {key: BASE[key] | value for key, value in nested.items()}


def run_ppo(folder: Path, start: Start, settings: dict[str, Any], reward: Path) -> Outcome:
    return run("ppo", folder, [start.data], {"ppo": merged(settings)}, sft=start.policy, reward=reward)


def gold_of_ids(prompt: np.ndarray, answer: np.ndarray, finished: bool) -> float:
    """The gold reward of a text, which has neither padding nor unknown words, though both can be sampled."""
    texts = (words([id for id in ids if id > 2]) for ids in (prompt, answer))
    return gold(*texts, finished)


class Reward:
    """The reward model's score at an answer's EOS, or at the token before, or at the last one of a cut answer.

    Args:
        scorer: the model.
        before_eos: whether the EOS is not read.
        shift: added to the number of each word where the reward model has a tokenizer of its own.
    """

    def __init__(self, scorer: Scorer, before_eos: bool, shift: int = 0) -> None:
        self._scorer, self._before_eos, self._shift = scorer, before_eos, shift

    def __call__(self, prompt: np.ndarray, answer: np.ndarray, finished: bool) -> float:
        """Score of one answer."""
        ids = np.concatenate([prompt, answer])
        if finished and self._before_eos:
            ids = ids[:-1]
        if self._shift:  # it reads the text; special tokens that are drawn are special tokens to it too
            ids = np.array([shifted(id, self._shift) if id > 2 else id for id in ids])
        return float(self._scorer.scores(ids)[-1])


def shifted(word: int, by: int) -> int:
    """The number of a word w3 ... w49 in a vocabulary that begins with another word."""
    return (word - 3 + by) % 47 + 3


def oracle_of(outcome: Outcome, start: Start, reward: Path, shift: int) -> Ppo:
    """The same run, from the same models."""
    settings, witness = outcome.settings, outcome.witness
    scorer = Scorer(score_model(reward), settings["normalise_score"])
    critic = None
    if settings["advantage_estimator"] == "gae":
        first, _ = witness.model(has_scores=True)
        model = score_model(reward)
        if shift:  # a value model reads the policy's ids: the SFT model, with a new head
            model = score_model(start.policy, head=first["score.weight"])
        critic = Scorer(model, settings["normalise_score"] and not shift, settings["critic"], adapters_of(first))
    mixed = [start.data.train[row] for row in start.data.rows_of("sft")] if settings["ptx_coefficient"] else []
    first, _ = witness.model(has_scores=False)
    assert all(not b.any() for _, b in adapters_of(first).values())
    return Ppo(
        settings,
        len(witness.rollouts),
        LanguageModel(language_model(start.policy), settings["actor"], adapters_of(first)),
        LanguageModel(language_model(start.policy)),
        critic,
        Reward(scorer, settings["score_at"] == "before_eos", shift),
        [(np.array(row.prompt), with_eos(row.answers[0])) for row in mixed],
        gold_of_ids,
    )


@pytest.mark.parametrize("scenario", list(SCENARIOS))
def test_a_run_is_that_of_the_oracle(scenario: str, starts: dict[str, Start], tmp_path: Path, group: None) -> None:
    family, settings = SCENARIOS[scenario]
    start, shift = starts[family], 5 if scenario == "another tokenizer" else 0
    reward = save_reward(tmp_path / "reward", family, seed=50, shift=shift) if shift else start.reward
    outcome = run_ppo(tmp_path / "ppo", start, settings, reward)
    require_prompts(outcome.witness.rollouts, start, outcome.settings)
    oracle, surprises = oracle_of(outcome, start, reward, shift), []
    for rollout, row in zip(outcome.witness.rollouts, outcome.lines("train"), strict=True):
        drawn = list(zip(rollout.prompts, rollout.answers, strict=True))
        surprises.append(surprise(oracle.policy, drawn, outcome.settings["temperature"]))
        expected = oracle.iteration(rollout)
        assert all(row[name] <= limit for name, limit in CHECKED.items() if name in row)
        found = {name: value for name, value in row.items() if name not in CLOCK and name not in CHECKED}
        assert differences(found, expected) == {}, f"iteration {row['step']}"
    assert abs(sum(surprises)) < 3 * math.sqrt(len(surprises))
    require_same_weights(outcome, oracle)
    actor = outcome.settings["actor"]
    assert (outcome.output / "adapter").exists() == ("lora_dim" in actor and actor["lora_dim"] > 0)
    if (outcome.output / "adapter").exists() and actor["only_optimize_lora"]:
        require_same_adapter(outcome.output / "adapter", start, oracle)
    require_tellable(outcome.witness.rollouts, outcome.settings)
    assert json.loads((outcome.output / "manifest.json").read_text())["inputs"].keys() == {"tokenizer"}
    (process,) = json.loads((outcome.output / "memory.json").read_text())["processes"]
    assert {"generate", "score", "train"} <= {phase["name"] for phase in process["phases"]}


def require_prompts(rollouts: list[Rollout], start: Start, settings: dict[str, Any]) -> None:
    """Each pass has every prompt of the phase once, those that are too long left out; its answers stand together."""
    many = settings["answers_per_prompt"]
    rows = [start.data.train[row].prompt for row in start.data.rows_of("ppo")]
    allowed = sorted(prompt for prompt in rows if len(prompt) <= settings["max_prompt_seq_len"])
    drawn: list[list[int]] = []
    for rollout in rollouts:
        prompts = [prompt.tolist() for prompt in rollout.prompts]
        assert prompts == [prompt for prompt in prompts[::many] for _ in range(many)]
        assert len(prompts) == many * settings["prompts_per_rollout"]
        drawn += prompts[::many]
    assert sorted(drawn[: len(allowed)]) == allowed
    second = drawn[len(allowed) :]
    assert second and len(set(map(tuple, second))) == len(second) and second != drawn[: len(second)]


def require_tellable(rollouts: list[Rollout], settings: dict[str, Any]) -> None:
    """What was drawn is such that wrong padding, ends and minibatches can be seen."""
    many = settings["answers_per_prompt"]
    for rollout in rollouts:
        for answer, finished in zip(rollout.answers, rollout.finished, strict=True):
            assert np.flatnonzero(answer == EOS).tolist() == ([len(answer) - 1] if finished else [])
            assert finished or len(answer) == settings["max_answer_seq_len"]
        for epoch in rollout.epochs:
            assert sorted(np.concatenate(epoch).tolist()) == list(range(len(rollout.answers)))
            assert {len(rows) for rows in epoch} == {len(rollout.answers) // settings["minibatches"]}
    ends = [end for rollout in rollouts for end in rollout.finished]
    assert any(ends) and not all(ends)
    assert len({len(answer) for rollout in rollouts for answer in rollout.answers}) > 3
    if settings["advantage_estimator"] == "grpo":  # a group of equal answers would be scaled up from rounding noise
        places = range(0, len(rollouts[0].answers), many)
        groups = [set(map(tuple, rollout.answers[place : place + many])) for rollout in rollouts for place in places]
        assert min(map(len, groups)) > 1


def require_same_weights(outcome: Outcome, oracle: Ppo) -> None:
    """The trained models in memory, the files of the policy and those of its average."""
    pairs: list[tuple[Weights, Any]] = [
        (outcome.witness.model(has_scores=False)[1], oracle.policy.trained | oracle.policy.weights),
        (weights_in(outcome.output / "model"), oracle.policy.merged()),
    ]
    if oracle.critic is not None:
        pairs.append((outcome.witness.model(has_scores=True)[1], oracle.critic.trained | oracle.critic.weights))
    if outcome.settings["ema_decay"] is not None:
        pairs.append((weights_in(outcome.output / "model_ema"), oracle.averaged().merged()))
    for found, expected in pairs:
        assert weight_differences(found, {name: weight.detach() for name, weight in expected.items()}) == {}


def require_same_adapter(folder: Path, start: Start, oracle: Ppo) -> None:
    """The adapter, as others load it, on the SFT model."""
    model = PeftModel.from_pretrained(language_model(start.policy), folder, autocast_adapter_dtype=False).double()
    row = start.data.unseen[0]
    prompt, answer = np.array(row.prompt), with_eos(row.answers[0])
    with torch.no_grad():
        logits = model(torch.from_numpy(np.concatenate([prompt, answer]))[None]).logits[0]
        found = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        assert float((found - oracle.policy.distributions(prompt, answer, 1.0)).abs().max()) <= 1e-4
