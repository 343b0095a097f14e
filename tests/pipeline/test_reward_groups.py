"""The reward stage and its evaluation on groups of rated answers, in this process."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf.config.specification import ResolvedDataset
from rlhf.data.dataset import cache_dataset
from rlhf.data.split import split_dataset
from rlhf.data.tokens import tokenize
from rlhf.errors import UserError
from rlhf.evaluation.frame import Evaluation
from rlhf.evaluation.supervised import evaluate_reward, unseen_scores
from rlhf.files import read_json, read_jsonl
from rlhf.models.loading import load_reward
from rlhf.models.scores import TokenScorer
from rlhf.training.reward import train_reward
from rlhf.training.stage import StagePaths, TrainingStage
from tests.specifications import specification
from tests.unit.conftest import make_model

RATED_WORDS = (10, 20, 30, 40)  # an answer is rated by how often it says w30 or w40
SETTINGS = {
    "learning_rate": 3e-3,
    "global_batch_size": 16,
    "num_train_epochs": 3,
    "max_seq_len": 32,
    "dtype": "fp32",
    "margin_coefficient": 0.1,
}


def rated_rows(prompts: int) -> list[dict[str, Any]]:
    """Two to six answers to each prompt."""
    generator, rows = np.random.default_rng(0), []
    for number in range(prompts):
        prompt = f"w{3 + number // 40} w{3 + number % 40} w5"
        for _ in range(generator.integers(2, 7)):
            words = generator.choice(RATED_WORDS, generator.integers(2, 6))
            answer = " ".join(f"w{word}" for word in words)
            subset = "even" if number % 2 == 0 else "odd"
            rows.append({"prompt": prompt, "answer": answer, "rating": int((words >= 30).sum()), "subset": subset})
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cached, tokenised and split dataset, and a model to start from."""
    folder = tmp_path_factory.mktemp("rated")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rated_rows(300)))
    source = {"path": str(folder / "rows.jsonl"), "eval_share": 0.2}
    settings = ResolvedDataset(source=source, shape="ratings", max_bad_share=0.5, answer_format=" {answer}")
    cache_dataset(settings, folder / "dataset", "datasets.rated")
    model = make_model(folder / "model", "gpt2")
    tokenize(folder / "dataset", model, folder / "tokens")
    split_dataset(folder / "dataset", "0,1,0", 0, folder / "split")
    return folder


def train(data: Path, output: Path, execution: dict[str, Any] | None = None, **settings: Any) -> Path:
    """Run the reward stage; returns its folder."""
    paths = StagePaths([data / "tokens"], [data / "split"], output, output / "state")
    output.mkdir()
    with TrainingStage(specification("reward", SETTINGS | settings, execution), paths) as stage:
        train_reward(stage, data / "model")
    return output


@pytest.fixture(scope="module")
def trained(data: Path, group: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(data, tmp_path_factory.mktemp("plain") / "reward")


def test_a_reward_model_learns_from_groups(trained: Path) -> None:
    unseen = [row for row in read_jsonl(trained / "metrics.jsonl") if row["phase"] == "eval"]
    assert unseen[-1]["loss"] < unseen[0]["loss"]
    assert unseen[-1]["accuracy"] > 0.8


def test_the_shared_prompt_trains_the_same_model(data: Path, trained: Path, tmp_path: Path) -> None:
    shared = train(data, tmp_path / "shared", {"share_prompt": True, "per_device_train_batch_size": 5})
    losses = [[row["loss"] for row in read_jsonl(folder / "metrics.jsonl")] for folder in (trained, shared)]
    assert losses[0][:5] == pytest.approx(losses[1][:5], rel=1e-4)
    assert losses[0][-1] == pytest.approx(losses[1][-1], rel=0.05)


def test_the_evaluation_of_groups(data: Path, trained: Path, tmp_path: Path) -> None:
    paths = StagePaths([data / "tokens"], [data / "split"], tmp_path, tmp_path / "state")
    settings = {"max_seq_len": SETTINGS["max_seq_len"]}
    spec = specification("evaluate_reward", settings, {"per_device_eval_batch_size": 7})
    with Evaluation(spec, paths) as evaluation:
        evaluate_reward(evaluation, trained / "model")
    result = read_json(tmp_path / "evaluation.json")
    last = read_jsonl(trained / "metrics.jsonl")[-1]
    assert result["accuracy"] == pytest.approx(last["accuracy"], abs=0.01)
    assert result["accuracy_low"] < result["accuracy"] < result["accuracy_high"]
    assert result["pairs"] > 2 * result["prompts"]
    for table in ("by_subset", "by_longer", "by_length_difference", "calibration"):
        assert sum(row["pairs"] for row in result[table]) == result["pairs"]
    assert [row["subset"] for row in result["by_subset"]] == ["even", "odd"]
    # The stored normalisation is that of the unseen answers, each counted once.
    assert result["score_mean"] == pytest.approx(0, abs=1e-4)
    assert result["score_std"] == pytest.approx(1, abs=1e-4)
    model, corpus = load_reward(trained / "model", "fp32"), paths.corpus("eval", "reward")
    raw = np.concatenate(unseen_scores(TokenScorer(model).eval(), corpus, 64))
    assert len(raw) == sum(len(corpus.answers(row)) for row in range(len(corpus)))
    assert (raw.mean(), raw.std()) == pytest.approx((model.config.reward_mean, model.config.reward_std), rel=1e-4)


def test_a_margin_that_the_data_lacks_stops_before_training(data: Path, group: None, tmp_path: Path) -> None:
    rows = [{"prompt": f"w{row}", "answers": [" w4", " w5"]} for row in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ResolvedDataset(source={"path": str(tmp_path / "rows.jsonl")}, shape="ranked")
    cache_dataset(settings, tmp_path / "dataset", "datasets.ranked")
    tokenize(tmp_path / "dataset", data / "model", tmp_path / "tokens")
    split_dataset(tmp_path / "dataset", "0,1,0", 0, tmp_path / "split")
    (tmp_path / "model").symlink_to(data / "model")
    with pytest.raises(UserError, match=r"reward\.margin_coefficient: 0\.1, but no pair of the data has a margin"):
        train(tmp_path, tmp_path / "reward")
    assert [path.name for path in (tmp_path / "reward").iterdir()] == ["state"]
    assert not (tmp_path / "reward/state/metrics.jsonl").exists()
