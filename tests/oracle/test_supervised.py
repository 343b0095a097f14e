"""Runs of SFT and of reward training against the same runs computed by `tests.oracle.supervised`."""

from __future__ import annotations

import collections
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.oracle.comparing import differences, near, weight_differences
from tests.oracle.material import Row, random_rows, save_policy
from tests.oracle.networks import LanguageModel, Scorer, language_model, score_model
from tests.oracle.stages import Data, Outcome, adapters_of, make_data, run, weights_in
from tests.oracle.supervised import Likelihood, Preference, Training, sequences

BASE: dict[str, Any] = {
    "learning_rate": 3.0e-3,
    "weight_decay": 0.3,
    "adam_beta1": 0.8,
    "adam_beta2": 0.9,
    "adam_epsilon": 1.0e-3,
    "gradient_clipping": 0.0,
    "lr_scheduler_type": "constant",
    "global_batch_size": 8,
    "num_train_epochs": 2,
    "max_seq_len": 16,  # the longest row has 21
    "eval_interval": 2,
    "dropout": 0.0,
    "dtype": "fp32",
    "execution": {"per_device_train_batch_size": 3, "per_device_eval_batch_size": 5},
}
LORA = {"lora_dim": 3, "lora_module_name": "attn", "lora_learning_rate": 6.0e-3}
SCHEDULE = {"lr_scheduler_type": "cosine", "num_warmup_steps": 3, "gradient_clipping": 0.5}
SFT: dict[str, dict[str, Any]] = {
    "answers": {},
    "whole rows, clipping, cosine": {"loss_on": "all", **SCHEDULE},
    "packed": {"execution": {"packing": True, "per_device_train_batch_size": 1}},
    "packed, whole rows": {"loss_on": "all", "execution": {"packing": True, "per_device_eval_batch_size": 2}},
    "the best, before too many steps": {"keep_best": True, "learning_rate": 1.0e-2, "num_train_epochs": 4},
    "adapters alone, scale 1": {**LORA, "only_optimize_lora": True},
    "adapters and all else, scale 4": {**LORA, "lora_alpha": 12.0},
}
REWARD: dict[str, dict[str, Any]] = {
    "pairs and groups": {},
    "margins, clipping, linear": {"margin_coefficient": 0.4, **SCHEDULE, "lr_scheduler_type": "linear"},
    "one prompt for all answers": {"execution": {"share_prompt": True}, "margin_coefficient": 0.2},
    "token-wise": {"loss": "token_wise", "margin_coefficient": 0.2},
    "the best, before too many steps": {
        "keep_best": True,
        "early_stopping_patience": 2,
        "learning_rate": 1.0e-2,
        "num_train_epochs": 6,
    },
    "adapters and head": {**LORA, "only_optimize_lora": True, "lora_alpha": 6.0},
}
WEIGHTS = {"data-0": 1.5, "data-1": 0.5}
CLOCK = {"phase", "time", "tokens_per_second"}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model of each family, two datasets of pairs and groups, and one of answers of one length."""
    root = tmp_path_factory.mktemp("supervised")
    models = {family: save_policy(root / family, family, seed=60) for family in ("gpt2", "llama")}

    def data(name: str, rows: int, seed: int, **shape: Any) -> Data:
        texts = [random_rows(count, seed + number, longest=10, **shape) for number, count in enumerate((rows, 11))]
        return make_data(root / name, *texts, models["gpt2"], "1,1,1")

    groups: dict[str, Any] = {"answers": (2, 3, 2, 4)}
    two = [data("first", 44, 70, **groups), data("second", 30, 72, **groups)]
    return {"models": models, "groups": two, "pairs": [data("equal", 44, 74, equal=True)]}


def run_stage(
    kind: str, folder: Path, material: dict[str, Any], settings: dict[str, Any], family: str
) -> tuple[Outcome, list[Data]]:
    data = material["pairs" if settings.get("loss") == "token_wise" else "groups"]
    nested = {"execution": BASE["execution"] | settings.get("execution", {})}
    weights = {name: WEIGHTS[name] for name in WEIGHTS if len(data) > 1}
    experiment = {kind: BASE | settings | nested, "data_weights": weights}
    return run(kind, folder, data, experiment, model=material["models"][family]), data


def rows_of(data: list[Data], kind: str, fits: Any) -> tuple[dict[tuple[int, int], Row], list[Row]]:
    """Training rows of a phase by dataset and number, and unseen rows; both without those that are too long."""
    train = {(i, row): one.train[row] for i, one in enumerate(data) for row in one.rows_of(kind)}
    unseen = [row for one in data for row in one.unseen]
    kept = {place: row for place, row in train.items() if fits(row)}
    assert len(kept) < len(train)
    return kept, [row for row in unseen if fits(row)]


def require_epochs(batches: list[list[tuple[int, int]]], rows: dict[tuple[int, int], Row], weights: Any) -> int:
    """Each epoch sees each dataset as often as its weight says, all rows of it alike; returns the rows of an epoch."""
    sizes = [sum(place[0] == number for place in rows) for number in range(len(weights))]
    shares = [int(w) * size + round((w - int(w)) * size) for w, size in zip(weights, sizes, strict=True)]
    whole = sum(shares)
    steps = -(-whole // BASE["global_batch_size"])
    epochs = [sum(batches[start : start + steps], []) for start in range(0, len(batches), steps)]
    for epoch in epochs:
        assert len(epoch) == whole
        counts = collections.Counter(epoch)
        for number, weight in enumerate(weights):
            seen = [counts[place] for place in rows if place[0] == number]
            assert set(seen) <= {int(weight), int(np.ceil(weight))}
            assert sum(seen) == shares[number]
    assert epochs[0] != epochs[1]
    halves = collections.Counter(epochs[0] + epochs[1])
    if 0.5 in weights:  # what the first epoch leaves out, the second one sees
        assert max(halves[place] for place in rows if place[0] == weights.index(0.5)) == 1
    return whole


def compare(outcome: Outcome, training: Training, rows: dict[tuple[int, int], Row]) -> None:
    """All metrics of a run, and the weights at its end."""
    steps, evaluations = training.run([[rows[place] for place in batch] for batch in outcome.witness.batches])
    for phase, expected in (("train", steps), ("eval", evaluations)):
        found = [{key: value for key, value in line.items() if key not in CLOCK} for line in outcome.lines(phase)]
        assert len(found) == len(expected)
        for ours, theirs in zip(expected, found, strict=True):
            assert differences(theirs, ours) == {}, (phase, ours["step"])
    expected_weights = {name: weight.detach() for name, weight in training.result().weights.items()}
    assert weight_differences(weights_in(outcome.output / "model"), expected_weights) == {}
    summary = json.loads((outcome.output / "manifest.json").read_text())["steps"]
    assert (summary["planned"], summary["done"]) == (training.total_steps, len(steps))
    assert (summary["stopped_early"], summary["best_step"]) == (len(steps) < training.total_steps, training.best_step)


@pytest.mark.parametrize("scenario", list(SFT))
def test_sft_is_that_of_the_oracle(
    scenario: str, material: dict[str, Any], tmp_path: Path, group: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="rlhf")
    family = "llama" if scenario == "whole rows, clipping, cosine" else "gpt2"
    outcome, data = run_stage("sft", tmp_path / "sft", material, SFT[scenario], family)
    settings = outcome.settings
    start, _ = outcome.witness.model(has_scores=False)
    network = LanguageModel(language_model(material["models"][family]), settings, adapters_of(start))
    objective = Likelihood(network, settings["loss_on"])
    rows, unseen = rows_of(data, "sft", lambda row: objective.tokens(row) <= settings["max_seq_len"])
    training = Training(settings, objective, unseen, require_epochs(outcome.witness.batches, rows, [1.5, 0.5]))
    compare(outcome, training, rows)
    if settings["keep_best"]:
        assert 0 < training.best_step < training.total_steps
    told = re.findall(r"^(train|eval): (\d+) of (\d+) rows; (\d+) too long", "\n".join(caplog.messages), re.MULTILINE)
    assert [name for name, *_ in told] == ["train", "eval"]
    assert [int(kept) for _, kept, *_ in told] == [len(rows), len(unseen)]
    assert all(int(kept) + int(left_out) == int(total) for _, kept, total, left_out in told)


@pytest.mark.parametrize("scenario", list(REWARD))
def test_reward_training_is_that_of_the_oracle(
    scenario: str, material: dict[str, Any], tmp_path: Path, group: None
) -> None:
    family = "llama" if scenario == "margins, clipping, linear" else "gpt2"
    outcome, data = run_stage("reward", tmp_path / "reward", material, REWARD[scenario], family)
    settings = outcome.settings
    start, _ = outcome.witness.model(has_scores=True)
    model = score_model(material["models"][family], head=start["score.weight"])
    network = Scorer(model, False, settings, adapters_of(start))
    objective = Preference(network, settings["loss"], settings["margin_coefficient"])
    rows, unseen = rows_of(data, "reward", lambda row: objective.tokens(row) <= settings["max_seq_len"])
    weights = [1.5, 0.5] if len(data) > 1 else [1.0]
    training = Training(settings, objective, unseen, require_epochs(outcome.witness.batches, rows, weights))
    compare(outcome, training, rows)
    if settings["keep_best"]:
        assert 0 < training.best_step < training.total_steps
    require_statistics(outcome, training, unseen)


def require_statistics(outcome: Outcome, training: Training, unseen: list[Row]) -> None:
    """Mean and deviation of the scores of all unseen answers, each once, under the weights that are kept."""
    network = training.result()
    with torch.no_grad():
        scores = np.array([float(network.scores(ids)[-1]) for row in unseen for ids in sequences(row)])
    config = json.loads((outcome.output / "model/config.json").read_text())
    assert near("score", config["reward_mean"], scores.mean())
    assert near("score", config["reward_std"], scores.std())


class Loaded(Exception):
    """A model was asked for, with these arguments."""


@pytest.mark.parametrize(
    ("kind", "loader"),
    [("sft", "rlhf.training.sft.load_policy"), ("reward", "rlhf.training.reward.load_reward_backbone")],
)
def test_under_zero_3_a_model_is_loaded_in_partitions(
    kind: str, loader: str, material: dict[str, Any], tmp_path: Path, group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, it would not fit where its partitions do."""

    def load(*arguments: Any) -> None:
        raise Loaded(arguments)

    monkeypatch.setattr(loader, load)
    for stage, expected in ((2, None), (3, 3)):
        with pytest.raises(Loaded) as loaded:
            run_stage(kind, tmp_path / str(stage), material, {"execution": {"zero_stage": stage}}, "gpt2")
        config = loaded.value.args[0][-1]
        assert (config and config["zero_optimization"]["stage"]) == expected
