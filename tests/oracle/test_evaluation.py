"""The evaluations against `tests.oracle.evaluation`: every number of evaluation.json, with its sign."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.errors import UserError
from rlhf.files import write_jsonl
from tests.oracle.comparing import differences
from tests.oracle.evaluation import (
    RewardReport,
    answer_of,
    best_of,
    surprise,
    win,
    wins_against,
    with_error,
)
from tests.oracle.material import (
    Row,
    gold,
    ids_of,
    random_rows,
    save_changed,
    save_policy,
    save_reward,
    words,
)
from tests.oracle.networks import LanguageModel, Scorer, language_model, score_model
from tests.oracle.stages import Data, Outcome, make_data, run
from tests.oracle.supervised import Likelihood, sequences

PROMPTS, LONGEST, TEMPERATURE, N = 24, 8, 0.7, 4
EXPERIMENT: dict[str, Any] = {
    "sft": {"max_seq_len": 16},
    "reward": {"max_seq_len": 17},
    "ppo": {"max_prompt_seq_len": 9, "max_answer_seq_len": LONGEST, "temperature": TEMPERATURE},
    "evaluation": {
        "prompts": PROMPTS,
        "best_of_n": N,
        "seed": 5,
        "dtype": "fp32",
        "execution": {"per_device_eval_batch_size": 7},
    },
}
HEAD = {"schema_version", "stage", "id", "execution"}


@dataclass(frozen=True)
class Trained:
    """Models as the three phases would leave them, and unseen rows."""

    sft: Path
    policy: Path
    reward: Path
    data: list[Data]

    def unseen(self, longest: int) -> list[Row]:
        """Unseen rows none of whose sequences is longer."""
        rows = [row for one in self.data for row in one.unseen]
        kept = [row for row in rows if max(map(len, sequences(row))) <= longest]
        assert len(kept) < len(rows)
        return kept

    def seen(self, rows: Sequence[Row]) -> int:
        """How many of the rows have a prompt that is trained on too."""
        known = {words(row.prompt) for one in self.data for row in one.train}
        count = sum(words(row.prompt) in known for row in rows)
        assert 0 < count < len(rows)
        return count


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A policy that has moved away from the SFT model, and two datasets."""
    root = tmp_path_factory.mktemp("evaluation")
    sft = save_policy(root / "sft", "gpt2", seed=80, only_words=True)
    policy = save_changed(sft, root / "policy", seed=81)
    reward = save_reward(root / "reward", "gpt2", seed=82)
    data = []
    for number in range(2):
        unseen = random_rows(30, 84 + number, answers=(2, 3, 2, 4), longest=10)
        train = [*random_rows(9, 83, longest=10), *unseen[: 12 - 4 * number]]  # a source whose sides overlap
        data.append(make_data(root / f"data-{number}", train, unseen, sft, "1,1,1"))
    return Trained(sft, policy, reward, data)


def phases(outcome: Outcome) -> set[str]:
    """Of the memory measurement."""
    (process,) = json.loads((outcome.output / "memory.json").read_text())["processes"]
    return {phase["name"] for phase in process["phases"]}


def measured(outcome: Outcome) -> dict[str, Any]:
    return {key: value for key, value in outcome.evaluation.items() if key not in HEAD}


def require_equal(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Same keys, and numbers that are near."""
    names = {name for name, value in expected.items() if isinstance(value, str)}
    assert {name: found[name] for name in names} == {name: expected[name] for name in names}
    numbers = [{key: value for key, value in part.items() if key not in names} for part in (found, expected)]
    assert differences(*numbers) == {}


def require_equal_rows(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for ours, theirs in zip(expected, found, strict=True):
        require_equal(theirs, ours)


def gold_of_row(prompt: list[int], answer: list[int]) -> float:
    return gold(words(prompt), words(answer), True)


def test_evaluation_of_the_sft_model(trained: Trained, tmp_path: Path, group: None) -> None:
    outcome = run("evaluate_sft", tmp_path / "out", trained.data, EXPERIMENT, model=trained.sft)
    objective = Likelihood(LanguageModel(language_model(trained.sft)), "completion")
    rows = [row for one in trained.data for row in one.unseen]
    kept = [row for row in rows if objective.tokens(row) <= EXPERIMENT["sft"]["max_seq_len"]]
    with torch.no_grad():
        _, expected = objective.loss(kept)
    expected |= {"tokens": sum(len(row.answers[0]) + 1 for row in kept), "rows": len(kept)}
    expected["seen_in_train"] = trained.seen(kept)
    require_equal(measured(outcome), expected | {"rows_too_long": len(rows) - len(kept)})
    assert len(kept) < len(rows)
    assert phases(outcome) == {"load", "score"}


@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_a_limit_that_leaves_no_row_is_named_as_in_the_configuration(
    kind: str, trained: Trained, tmp_path: Path, group: None
) -> None:
    experiment = EXPERIMENT | {kind: EXPERIMENT[kind] | {"max_seq_len": 2}}
    with pytest.raises(UserError, match=rf"^{kind}\.max_seq_len: 2"):
        run(f"evaluate_{kind}", tmp_path / "out", trained.data, experiment, model=getattr(trained, kind))


def test_evaluation_of_the_reward_model(trained: Trained, tmp_path: Path, group: None) -> None:
    outcome = run("evaluate_reward", tmp_path / "out", trained.data, EXPERIMENT, model=trained.reward)
    found = measured(outcome)
    model = score_model(trained.reward)
    rows = trained.unseen(EXPERIMENT["reward"]["max_seq_len"])
    mean, std = model.config.reward_mean, model.config.reward_std
    report = RewardReport(rows, Scorer(model, normalised=False), mean, std, gold_of_row)
    tables = {name: found.pop(name) for name in ("calibration", "by_subset", "by_longer", "by_length_difference")}
    calibration, error = report.calibration([(row["from"], row["to"]) for row in tables["calibration"]])
    too_long = sum(len(one.unseen) for one in trained.data) - len(rows)
    counts = {"rows_too_long": too_long, "rows_of_equal_answers": 0, "seen_in_train": trained.seen(rows)}
    require_equal(found, {**report.numbers(), "calibration_error": error, **counts})
    require_equal_rows(tables["calibration"], calibration)
    require_equal_rows(tables["by_subset"], report.by_subset())
    require_equal_rows(tables["by_longer"], report.by_longer())
    bins = tables["by_length_difference"]
    require_equal_rows(bins, [report.between(row["from"], row["to"]) for row in bins])
    for table in (calibration, bins):
        assert sum(row["pairs"] for row in table) == len(report.pairs)
        assert all(before["to"] <= after["from"] for before, after in zip(table, table[1:], strict=False))
        assert len(table) > 3
    assert 0.2 < found["accuracy"] < 0.8 and found["gold_pairs"] < len(report.pairs)


class Judge:
    """Scores of answers given as text: by the reward model, normalised, at the last token; and by the gold reward."""

    def __init__(self, reward: Path) -> None:
        self._scorer = Scorer(score_model(reward), normalised=True)

    def __call__(self, prompt: str, text: str) -> dict[str, Any]:
        """What samples.jsonl must say of an answer."""
        answer, finished = answer_of(text, LONGEST)
        with torch.no_grad():
            score = float(self._scorer.scores(np.concatenate([ids_of(prompt), answer]))[-1])
        numbers = {"score": score, "length": len(answer), "finished": finished}
        return {"text": text, **numbers, "gold": gold(prompt, text, finished)}


@pytest.fixture(scope="module")
def baseline(trained: Trained, tmp_path_factory: pytest.TempPathFactory, group: None) -> Outcome:
    """Answers of the SFT model."""
    folders = {"sft": trained.sft, "reward": trained.reward}
    return run("baseline", tmp_path_factory.mktemp("baseline") / "out", trained.data, EXPERIMENT, **folders)


def test_the_baseline_is_that_of_its_samples(trained: Trained, baseline: Outcome) -> None:
    assert phases(baseline) == {"load", "generate", "score"}
    samples, judge = baseline.jsonl("samples.jsonl"), Judge(trained.reward)
    require_prompts(samples, trained)
    assert all(len(row["answers"]) == N + 1 for row in samples)
    for row in samples:
        require_equal_rows(row["answers"], [judge(row["prompt"], answer["text"]) for answer in row["answers"]])
    score, worth = (np.array([[one[key] for one in row["answers"]] for row in samples]) for key in ("score", "gold"))
    every = [answer for row in samples for answer in row["answers"]]
    known = {words(row.prompt) for one in trained.data for row in one.train}
    assert [row["seen_in_train"] for row in samples] == [row["prompt"] in known for row in samples]
    expected = {
        "prompts": PROMPTS,
        "seen_in_train": sum(row["prompt"] in known for row in samples),
        "n": N,
        "score_mean": score[:, 0].mean(),
        "score_std": score[:, 0].std(),
        "gold_mean": worth[:, 0].mean(),
        "response_length": np.mean([answer["length"] for answer in every]),
        "eos_share": np.mean([answer["finished"] for answer in every]),
    }
    found = measured(baseline)
    rows = found.pop("best_of_n")
    require_equal(found, expected)
    require_equal_rows(rows, [best_of_row(n, score, worth) for n in (1, 2, 4)])
    drawn = [(ids_of(row["prompt"]), answer_of(one["text"], LONGEST)[0]) for row in samples for one in row["answers"]]
    assert abs(surprise(LanguageModel(language_model(trained.sft)), drawn, TEMPERATURE)) < 3
    assert abs(surprise(LanguageModel(language_model(trained.sft)), drawn, 1.0)) > 5


def best_of_row(n: int, score: np.ndarray, worth: np.ndarray) -> dict[str, float]:
    """The first answer to each prompt is what the others, from which the best is chosen, are compared with."""
    candidates, golden = score[:, 1:], worth[:, 1:]
    return {
        "n": n,
        "kl": math.log(n) - (n - 1) / n,
        "score": best_of(n, candidates, candidates),
        "win_rate": best_of(n, candidates, wins_against(candidates, score[:, 0])),
        "gold": best_of(n, candidates, golden),
        "gold_win_rate": best_of(n, candidates, wins_against(golden, worth[:, 0])),
    }


def require_prompts(samples: list[dict[str, Any]], trained: Trained) -> None:
    """Different unseen prompts, none of them too long."""
    unseen = {words(row.prompt) for one in trained.data for row in one.unseen}
    prompts = [row["prompt"] for row in samples]
    assert len(prompts) == len(set(prompts)) == PROMPTS
    assert set(prompts) <= {prompt for prompt in unseen if len(prompt.split()) <= 9}


def test_the_policy_is_compared_with_the_first_answers(
    trained: Trained, baseline: Outcome, tmp_path: Path, group: None
) -> None:
    folders = {"policy": trained.policy, "sft": trained.sft, "reward": trained.reward}
    first_answers = baseline.output / "samples.jsonl"
    outcome = run("evaluate_ppo", tmp_path / "out", trained.data, EXPERIMENT, **folders, baseline=first_answers)
    before, samples, judge = baseline.jsonl("samples.jsonl"), outcome.jsonl("samples.jsonl"), Judge(trained.reward)
    assert [row["prompt"] for row in samples] == [row["prompt"] for row in before]
    # Both judged here, so that equal answers tie in float64, too.
    own = [judge(row["prompt"], row["policy"]) for row in samples]
    first = [judge(row["prompt"], row["answers"][0]["text"]) for row in before]
    for row, ours, theirs in zip(samples, own, first, strict=True):
        numbers = {
            f"{who}_{key}": one[key]
            for key in ("score", "gold", "length", "finished")
            for who, one in (("sft", theirs), ("policy", ours))
        }
        texts = {"prompt": row["prompt"], "row": row["row"], "sft": theirs["text"], "policy": ours["text"]}
        require_equal(row, {**texts, **numbers, "seen_in_train": row["seen_in_train"]})
    assert [row["seen_in_train"] for row in samples] == [row["seen_in_train"] for row in before]
    policy, sft = (LanguageModel(language_model(folder)) for folder in (trained.policy, trained.sft))
    drawn = [(ids_of(row["prompt"]), answer_of(row["policy"], LONGEST)[0]) for row in samples]
    with torch.no_grad():
        kl = [float((policy.logprobs(*pair, TEMPERATURE) - sft.logprobs(*pair, TEMPERATURE)).sum()) for pair in drawn]
    expected = {"prompts": PROMPTS, "seen_in_train": sum(row["seen_in_train"] for row in before)}
    for name, key in (("", "score"), ("gold_", "gold")):
        wins = [win(ours[key], theirs[key]) for ours, theirs in zip(own, first, strict=True)]
        expected[f"{name}win_rate"], expected[f"{name}win_rate_se"] = with_error(wins)
    expected["kl"], expected["kl_se"] = with_error(kl)
    for name, answers in (("", own), ("sft_", first)):
        for key, entry in (("score", "score_mean"), ("gold", "gold_mean"), ("length", "response_length")):
            expected[f"{name}{entry}"] = np.mean([answer[key] for answer in answers])
        expected[f"{name}eos_share"] = np.mean([answer["finished"] for answer in answers])
    require_equal(measured(outcome), expected)
    assert expected["kl"] > 1
    assert abs(surprise(policy, drawn, TEMPERATURE)) < 3
    assert abs(surprise(sft, drawn, TEMPERATURE)) > 5


def test_policy_and_sft_model_do_not_share_their_noise(
    trained: Trained, baseline: Outcome, tmp_path: Path, group: None
) -> None:
    """Else a policy that has learnt nothing would give the same answers, and its win rate no information."""
    folders = {"policy": trained.sft, "sft": trained.sft, "reward": trained.reward}
    first_answers = baseline.output / "samples.jsonl"
    outcome = run("evaluate_ppo", tmp_path / "out", trained.data, EXPERIMENT, **folders, baseline=first_answers)
    assert measured(outcome)["kl"] == 0
    assert sum(row["sft"] == row["policy"] for row in outcome.jsonl("samples.jsonl")) < PROMPTS / 4


def test_answers_to_other_prompts_are_refused(trained: Trained, baseline: Outcome, tmp_path: Path, group: None) -> None:
    others = tmp_path / "samples.jsonl"
    write_jsonl(others, reversed(baseline.jsonl("samples.jsonl")))
    folders = {"policy": trained.sft, "sft": trained.sft, "reward": trained.reward}
    with pytest.raises(UserError, match=f"^{others}: answers other prompts"):
        run("evaluate_ppo", tmp_path / "out", trained.data, EXPERIMENT, **folders, baseline=others)
