"""What is drawn at random follows from the seed and from what it is drawn for, and from nothing else.

The policy of these runs gives every token the same logits and hardly moves, so an answer shows its noise alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.oracle.material import EOS, random_rows, save_flat_policy, save_policy, save_reward, words
from tests.oracle.stages import Data, Outcome, make_data, run
from tests.unit.conftest import VOCABULARY

LONGEST = 6
STILL = {"learning_rate": 1.0e-12, "lr_scheduler_type": "constant", "num_warmup_steps": 0}
PPO: dict[str, Any] = {
    "iterations": 3,
    "prompts_per_rollout": 8,
    "answers_per_prompt": 2,
    "ppo_epochs": 2,
    "minibatches": 2,
    "max_prompt_seq_len": 16,
    "max_answer_seq_len": LONGEST,
    "ptx_coefficient": 0.1,
    "ptx_rows_per_step": 3,
    "dtype": "fp32",
    "actor": STILL | {"lora_dim": 2, "lora_module_name": "attn"},
    "critic": STILL,
}
SUPERVISED: dict[str, Any] = {
    "global_batch_size": 4,
    "num_train_epochs": 2,
    "max_seq_len": 32,
    "dropout": 0.0,
    "dtype": "fp32",
    "lora_dim": 2,
    "lora_module_name": "attn",
    **STILL,
}
EVALUATION: dict[str, Any] = {"prompts": 8, "best_of_n": 2, "dtype": "fp32"}
# How a stage runs: other batches, checkpoints after each step, recomputed activations.
OTHERWISE: dict[str, dict[str, Any]] = {
    "ppo": {
        "per_device_training_batch_size": 3,
        "per_device_generation_batch_size": 5,
        "checkpoint_steps": 1,
        "actor_gradient_checkpointing": True,
        "actor_zero_stage": 1,
    },
    "sft": {"per_device_train_batch_size": 3, "per_device_eval_batch_size": 5, "checkpoint_steps": 1, "zero_stage": 1},
    "reward": {"per_device_train_batch_size": 3, "per_device_eval_batch_size": 5, "checkpoint_steps": 1},
    "evaluation": {"per_device_eval_batch_size": 5},
}


class Runs:
    """Runs of small stages, each made once."""

    def __init__(self, folder: Path) -> None:
        logits = np.zeros(VOCABULARY)
        logits[[0, EOS, 2]] = -40.0
        self._folder, self._known = folder, dict[tuple[Any, ...], Outcome]()
        self._flat = save_flat_policy(folder / "flat", logits.tolist())
        self._policy = save_policy(folder / "policy", "gpt2", seed=1)
        # With words of other numbers, so that the value model gets a new head.
        self._reward = save_reward(folder / "reward", "gpt2", seed=2, shift=5)
        rows, unseen = random_rows(48, seed=3), random_rows(20, seed=4)
        self._data: list[Data] = [make_data(folder / "data", rows, unseen, self._policy, "1,1,1")]

    def __call__(self, kind: str, seed: int = 1, otherwise: bool = False, **settings: Any) -> Outcome:
        """A run of a stage.

        Args:
            kind: of the stage.
            seed: of the stage.
            otherwise: whether it runs in another way.
            settings: over those of its section.
        """
        key = kind, seed, otherwise, *settings.items()
        if key not in self._known:
            self._known[key] = self._run(kind, seed, otherwise, settings)
        return self._known[key]

    def _run(self, kind: str, seed: int, otherwise: bool, settings: dict[str, Any]) -> Outcome:
        section = kind if kind in ("ppo", "sft", "reward") else "evaluation"
        execution = {"execution": OTHERWISE[section]} if otherwise else {}
        own = {"ppo": PPO, "evaluation": EVALUATION | {"seed": seed}}.get(section, SUPERVISED)
        experiment = {"ppo": PPO, section: own | settings | execution}
        folders = {"sft": self._flat, "reward": self._reward}
        if kind in ("sft", "reward"):
            folders = {"model": self._policy}
        if kind == "evaluate_ppo":
            folders |= {"policy": self._flat, "baseline": self("baseline", seed).output / "samples.jsonl"}
        return run(kind, self._folder / f"run-{len(self._known)}", self._data, experiment, seed, **folders)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, group: None) -> Runs:
    """Runs that the tests share."""
    return Runs(tmp_path_factory.mktemp("randomness"))


def prompts(outcome: Outcome) -> list[str]:
    """Prompts of all rollouts, one for each group of answers."""
    return [words(prompt) for rollout in outcome.witness.rollouts for prompt in rollout.prompts[::2]]


def answers(outcome: Outcome) -> list[str]:
    """Answers of all rollouts."""
    return [words(answer) for rollout in outcome.witness.rollouts for answer in rollout.answers]


def minibatches(outcome: Outcome) -> list[list[list[int]]]:
    """Each PPO epoch's minibatches, in all rollouts."""
    return [[sorted(rows.tolist()) for rows in epoch] for roll in outcome.witness.rollouts for epoch in roll.epochs]


def mixed(outcome: Outcome) -> list[float]:
    """Loss of the SFT rows of each iteration: it shows which they were, as the policy hardly moves."""
    return [round(line["ptx_loss"], 4) for line in outcome.lines("train")]


def batches(outcome: Outcome) -> list[list[tuple[int, int]]]:
    """Rows of each optimizer step of SFT or reward training."""
    return [sorted(batch) for batch in outcome.witness.batches]


def drawn_weights(outcome: Outcome, has_scores: bool) -> dict[str, list[float]]:
    """Weights that no file has: heads and first adapters."""
    start, _ = outcome.witness.model(has_scores)
    names = [name for name in start if name.endswith("lora_A") or (name == "score.weight")]
    assert names
    return {name: start[name].ravel().tolist() for name in names}


def samples(outcome: Outcome) -> list[tuple[str, str]]:
    """Prompts and answers of an evaluation."""
    return [(row["prompt"], one["text"]) for row in outcome.jsonl("samples.jsonl") for one in row["answers"]]


def test_a_rollout_follows_from_the_seed_however_it_is_made(runs: Runs) -> None:
    one, again = runs("ppo"), runs("ppo", otherwise=True)
    for drawn in (prompts, answers, minibatches, mixed):
        assert drawn(one) == drawn(again), drawn.__name__
    for has_scores in (False, True):
        assert drawn_weights(one, has_scores) == drawn_weights(again, has_scores)


def test_another_seed_gives_another_rollout(runs: Runs) -> None:
    one, other = runs("ppo"), runs("ppo", seed=2)
    assert prompts(one) != prompts(other)
    assert not set(answers(one)) & set(answers(other))  # 6 words of 47: no two are equal by chance
    assert all(a != b for a, b in zip(minibatches(one), minibatches(other), strict=True))
    assert all(a != b for a, b in zip(mixed(one), mixed(other), strict=True))
    for has_scores in (False, True):
        ours, theirs = (drawn_weights(run, has_scores) for run in (one, other))
        assert all(ours[name] != theirs[name] for name in ours)


def test_no_noise_is_used_twice(runs: Runs) -> None:
    """Not in another iteration, not for another prompt, not for another answer to the same one."""
    drawn = answers(runs("ppo"))
    assert len(set(drawn)) == len(drawn) == 3 * 8 * 2
    starts = [answer.split()[0] for answer in drawn]
    assert len(set(starts)) > 20  # nor at the first token alone


def test_each_pass_over_the_prompts_and_each_epoch_has_an_order_of_its_own(runs: Runs) -> None:
    order = prompts(runs("ppo"))
    first, second = order[:16], order[16:]
    assert len(set(first)) == 16 and set(second) < set(first) and second != first[: len(second)]
    epochs = minibatches(runs("ppo"))
    assert all(sorted(sum(epoch, [])) == list(range(16)) for epoch in epochs)
    assert len({str(epoch) for epoch in epochs}) == len(epochs) == 6
    assert len(set(mixed(runs("ppo")))) == 3


def test_settings_that_draw_nothing_move_nothing(runs: Runs) -> None:
    one, other = runs("ppo"), runs("ppo", kl_coefficient=0.3, ema_decay=0.5)
    for drawn in (prompts, answers, minibatches, mixed):
        assert drawn(one) == drawn(other), drawn.__name__


@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_the_order_of_training_rows_follows_from_seed_and_epoch(runs: Runs, kind: str) -> None:
    one, again, other = runs(kind), runs(kind, otherwise=True), runs(kind, seed=2)
    evaluated = runs(kind, eval_interval=1, keep_best=True)
    assert batches(one) == batches(again) == batches(evaluated)
    assert len(batches(one)) == 8
    first, second = batches(one)[:4], batches(one)[4:]
    assert sorted(sum(first, [])) == sorted(sum(second, [])) and first != second
    assert batches(one) != batches(other)
    has_scores = kind == "reward"
    ours, same, theirs = (drawn_weights(run, has_scores) for run in (one, again, other))
    assert ours == same
    assert all(ours[name] != theirs[name] for name in ours)


def test_answers_of_an_evaluation_follow_from_its_seed(runs: Runs) -> None:
    one, again, other = runs("baseline"), runs("baseline", otherwise=True), runs("baseline", seed=2)
    assert samples(one) == samples(again)
    assert [prompt for prompt, _ in samples(one)] != [prompt for prompt, _ in samples(other)]
    texts = [answer for run in (one, other) for _, answer in samples(run)]
    # Another model has other noise, or one that has learnt nothing would seem to answer as before.
    texts += [row["policy"] for row in runs("evaluate_ppo").jsonl("samples.jsonl")]
    assert len(set(texts)) == len(texts) == 2 * 8 * 3 + 8
